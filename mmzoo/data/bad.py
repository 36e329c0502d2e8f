"""Leave out examples that cannot be used, and note why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from mmzoo.errors import DataError
from mmzoo.interfaces import Example

Bad = list[tuple[str, str]]  # id and error of each example that is skipped


def note(bad: Bad, name: str, error: DataError) -> None:
    """Add an example that is skipped."""
    bad.append((name, str(error).removeprefix(f"example {name}: ")))


class Chosen(Sequence[Example]):
    """Read the examples of these numbers."""

    def __init__(self, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        self.examples, self.numbers = examples, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self.examples[self.numbers[index]]


def none_usable(bad: Bad) -> str:
    """Return the message of an error: every example was skipped."""
    name, problem = bad[0]
    return f"none of the {len(bad)} examples can be used; the first, {name}: {problem}"


def without_bad(examples: Sequence[Example], check: Callable[[Example], None], bad: Bad | None) -> Sequence[Example]:
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
            note(bad, name, error)
    if not numbers:
        raise DataError(none_usable(bad))
    return examples if len(numbers) == len(examples) else Chosen(examples, numbers)


def read_all(rows: Sequence[Example] | Iterable[Example], limit: int | None, bad: Bad) -> Sequence[Example]:
    """Return those of the first ``limit`` rows that can be read, and note the others."""
    if isinstance(rows, Sequence):
        return without_bad(Chosen(rows, range(len(rows))[:limit]), lambda example: None, bad)
    examples = []
    for number, row in enumerate(islice(readable(iter(rows), skip_bad=True), limit)):
        if isinstance(row, DataError):
            note(bad, f"#{number + 1}", row)
        else:
            examples.append(row)
    return examples


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
