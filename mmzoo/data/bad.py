"""Leave out examples that cannot be used, and note why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mmzoo.errors import DataError
from mmzoo.interfaces import Example


@dataclass
class BadExamples:
    """Hold the error of each example that is left out, by id."""

    problems: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, error: DataError) -> None:
        """Add an example."""
        self.problems.setdefault(name, str(error).removeprefix(f"example {name}: "))


class Chosen(Sequence[Example]):
    """Read the examples of these numbers."""

    def __init__(self, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        self.examples, self.numbers = examples, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self.examples[self.numbers[index]]


def without_bad(examples: Sequence[Example], check: Callable[[Example], None], bad: BadExamples | None) -> Sequence[Example]:
    """Return the examples that can be read and that ``check`` accepts, and note the others; without ``bad`` only check all.

    Raises:
        DataError: an example cannot be used and there is no ``bad``, or none can be used.
    """
    if bad is None:
        for example in examples:
            check(example)
        return examples
    numbers = []
    for number in range(len(examples)):
        name = f"#{number + 1}"
        try:
            name = (example := examples[number]).id
            check(example)
            numbers.append(number)
        except DataError as error:
            bad.note(name, error)
    if not numbers:
        name, problem = next(iter(bad.problems.items()))
        raise DataError(f"no example can be used; the first is {name}: {problem}")
    return examples if len(numbers) == len(examples) else Chosen(examples, numbers)


def readable(rows: Iterator[Example], *, skip_bad: bool) -> Iterator[Example | DataError]:
    """Yield each example, or with ``skip_bad`` its error. A generator ends at its first error, which is then raised."""
    while True:
        try:
            row: Example | DataError = next(rows)
        except StopIteration:
            return
        except DataError as error:
            if not skip_bad or inspect.isgenerator(rows):
                raise
            row = error
        yield row
