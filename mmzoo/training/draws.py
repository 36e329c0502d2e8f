"""Say from which of several groups of examples each draw of a run is, as a function of seed and position only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 1024  # draws of streams, which have no epochs, that have the shares together


class Draws:
    """Share out draws among groups, in blocks of ``size``.

    A block has as many draws of a group as its share says, rounded by the largest remainder. What is rounded off is made up for
    in later blocks, so that a group with a share below one draw is drawn from in the long run.
    """

    def __init__(self, shares: Sequence[float], size: int) -> None:
        total = np.asarray(shares, np.float64)
        self.shares, self.size = total / total.sum(), size
        self.block, self.before = 0, np.zeros(len(total), np.int64)

    def counts(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how many draws of each group there are before a block, and in it."""
        if block < self.block:
            self.block, self.before = 0, np.zeros_like(self.before)
        while self.block < block:
            self.before = self.before + self._next()
            self.block += 1
        return self.before, self._next()

    def _next(self) -> np.ndarray:
        due = self.shares * (self.size * (self.block + 1)) - self.before
        counts = np.floor(np.maximum(due, 0)).astype(np.int64)
        while rest := self.size - int(counts.sum()):
            left = due - counts
            if rest > 0:
                counts[int(left.argmax())] += 1
            else:  # groups that had more than their share before
                counts[int(np.where(counts > 0, left, np.inf).argmin())] -= 1
        return counts


def in_turn(groups: np.ndarray) -> np.ndarray:
    """Return an order of draws in which their groups take turns, where each has as many draws as the others."""
    numbers = np.empty(len(groups))
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        numbers[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.lexsort((groups, numbers))


class Turns:
    """Say which of several streams each draw is from, and its number among their draws."""

    def __init__(self, shares: Sequence[float], seed: int, *, turns: bool) -> None:
        self.draws = Draws(shares, BLOCK // len(shares) * len(shares) if turns else BLOCK)
        self.seed, self.turns = seed, turns
        self._block, self._of, self._place = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def at(self, position: int) -> tuple[int, int]:
        """Return the stream and the number of a draw, from 0."""
        block, place = divmod(position, self.draws.size)
        if block != self._block:
            before, counts = self.draws.counts(block)
            of = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
            of = of[in_turn(of) if self.turns else np.random.default_rng((self.seed, block)).permutation(len(of))]
            places = np.empty(len(of), np.int64)
            for stream, start in enumerate(before):
                own = np.flatnonzero(of == stream)
                places[own] = start + np.arange(len(own))
            self._block, self._of, self._place = block, of, places
        return int(self._of[place]), int(self._place[place])

    def drawn(self, draws: int) -> list[int]:
        """Return how many of the first ``draws`` are of each stream."""
        block, rest = divmod(draws, self.draws.size)
        before = self.draws.counts(block)[0].copy()
        for position in range(draws - rest, draws):
            before[self.at(position)[0]] += 1
        return before.tolist()
