"""Read the examples of streams at the positions of a run, so that a run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmzoo.data.bad import readable
from mmzoo.errors import DataError
from mmzoo.interfaces import Example
from mmzoo.training.draws import Turns
from mmzoo.training.randomness import Randomness

Row = Example | DataError


class StreamReader:
    """Read a stream forward, pass after pass, up to the positions that are asked for. It opens no input on the way.

    Where the stream has a ``state_dict``, reading goes on from a state. Else it starts anew, and its own random numbers are apart
    from all others, so that a shuffled stream has the same order when it is read again.

    Args:
        window: this many examples in a row are shuffled together, but none with those of another pass; 0 for the stream's order.
        name: put before the numbers of examples that cannot be read.
        numbers: a number for each of several streams, and how many there are, so that no two have an example of one number.
    """

    def __init__(
        self,
        stream: Iterable[Example],
        seed: int,
        *,
        skip_bad: bool,
        window: int = 0,
        name: str = "",
        numbers: tuple[int, int] = (0, 1),
    ) -> None:
        self.stream, self.seed, self.skip_bad, self.window = stream, seed, skip_bad, max(window, 1)
        self.name, self.numbers = name, numbers
        self._saved: dict[str, Any] | None = None
        self._start({})

    def _start(self, state: dict[str, Any]) -> None:
        """Start at a state, or at the beginning."""
        self.randomness = Randomness(self.seed, "stream")
        self.epoch, self.number = state.get("epoch", 0), state.get("number", 0)  # of the next example
        self.first = state.get("position", 0)  # of the examples in `rows`
        self.rows: list[tuple[Row, int, int]] = []  # with number and epoch, in the order of the positions
        self._reading: Iterator[Row] | None = None
        self._inner = state.get("stream")  # that the stream is to be read from
        self._before: dict[str, Any] | None = None  # the state before `rows`

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state of `state_dict` when examples after it are read."""
        self._saved = state
        self._start(state or {})

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state from which the examples after the last one can be read, as plain data; None if the stream has none."""
        return self._before if self.window > 1 else self._state(self.first + len(self.rows))

    def read(self, positions: Sequence[int]) -> tuple[list[Example], list[tuple[str, str]]]:
        """Return the examples at ascending positions, and place and error of each that cannot be read.

        Raises:
            DataError: the stream is empty, or an example cannot be read and must be.
        """
        return collect([self.at(position) for position in positions])

    def at(self, position: int) -> Example | tuple[str, str]:
        """Return the example at a position, which is not before an earlier one's window; or its place and error.

        Raises:
            DataError: the stream is empty, or the example cannot be read and must be.
        """
        if position < self.first:
            self._start(self._saved if self._saved and self._saved["position"] <= position else {})
        if position >= self.first + len(self.rows):
            with self.randomness.used():
                while position >= self.first + len(self.rows):
                    self._read_window()
        row, number, epoch = self.rows[position - self.first]
        if isinstance(row, DataError):
            return f"{self.name}#{number + 1}", str(row)
        own, every = self.numbers
        return row.in_epoch(self.seed, number * every + own, epoch)

    def _read_window(self) -> None:
        """Read the next examples that are shuffled together."""
        self.first += len(self.rows)
        if self.window > 1:
            self._before = self._state(self.first)
        self.rows = []
        while not self.rows:
            if self._reading is None:
                if self._inner is not None:
                    self.stream.load_state_dict(self._inner)  # type: ignore[attr-defined]
                self._reading, self._inner = readable(iter(self.stream), skip_bad=self.skip_bad), None
            while len(self.rows) < self.window and (row := next(self._reading, None)) is not None:
                self.rows.append((row, self.number, self.epoch))
                self.number += 1
            if len(self.rows) < self.window:  # the pass has ended
                if not self.number:
                    raise DataError("the streamed data set is empty")
                self._reading, self.number, self.epoch = None, 0, self.epoch + 1
        if self.window > 1:
            order = np.random.default_rng((self.seed, self.first)).permutation(len(self.rows))
            self.rows = [self.rows[i] for i in order]

    def _state(self, position: int) -> dict[str, Any] | None:
        """Return the state before the next example that is read from the stream, whose position this is."""
        if not hasattr(self.stream, "state_dict"):
            return None
        inner = self._inner if self._reading is None else self.stream.state_dict()
        return {"position": position, "epoch": self.epoch, "number": self.number, "stream": inner}


class TableReader:
    """Read the examples of a table among streams: all of them in each pass, shuffled."""

    def __init__(self, examples: Sequence[Example], seed: int, numbers: tuple[int, int]) -> None:
        self.examples, self.seed, self.numbers = examples, seed, numbers
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, position: int) -> Example:
        """Return the example at a position."""
        own, every = self.numbers
        epoch, place = divmod(position, len(self.examples))
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, own, epoch)).permutation(len(self.examples))
            self._epoch = epoch
        number = int(self._order[place])
        return self.examples[number].in_epoch(self.seed, number * every + own, epoch)

    def state_dict(self) -> None:
        """Return None: it can be read from any position."""

    def load_state_dict(self, state: Any) -> None:
        """Do nothing, likewise."""


class MixedReader:
    """Read several streams, and tables, in the turns of a run."""

    def __init__(self, readers: Sequence[StreamReader | TableReader], turns: Turns) -> None:
        self.readers, self.turns = readers, turns

    def read(self, positions: Sequence[int]) -> tuple[list[Example], list[tuple[str, str]]]:
        """Return the examples at ascending positions, and place and error of each that cannot be read."""
        draws = [self.turns.at(position) for position in positions]
        return collect([self.readers[stream].at(place) for stream, place in draws])

    def state_dict(self) -> list[Any]:
        """Return the state of each."""
        return [reader.state_dict() for reader in self.readers]

    def load_state_dict(self, states: list[Any] | None) -> None:
        """Go on from the state of each."""
        for reader, state in zip(self.readers, states or [None] * len(self.readers), strict=True):
            reader.load_state_dict(state)


def collect(read: Iterable[Example | tuple[str, str]]) -> tuple[list[Example], list[tuple[str, str]]]:
    """Return the examples, and place and error of those that cannot be read."""
    examples: list[Example] = []
    bad: list[tuple[str, str]] = []
    for each in read:
        if isinstance(each, Example):
            examples.append(each)
        else:
            bad.append(each)
    return examples, bad
