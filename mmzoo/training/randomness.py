"""Keep random numbers apart from those of the program."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Randomness:
    """Hold states of the random generators of Python, NumPy and torch (on the CPU), apart from those of the program."""

    def __init__(self, *seed: Any) -> None:
        self.numpy = np.random.MT19937()  # the program's is exchanged for it, which costs less than copying its state
        self.python: Any = None
        self.torch = torch.empty(0)
        with self.used(seed):
            pass

    @contextmanager
    def used(self, seed: tuple[Any, ...] | None = None) -> Iterator[None]:
        """Use these states within the block, and the program's afterwards. Without a ``seed`` the block continues where the last
        one ended."""
        numpy: Any = np.random  # whose types lack these functions
        before = random.getstate(), numpy.get_bit_generator(), torch.get_rng_state()
        numpy.set_bit_generator(self.numpy)
        if seed is None:
            random.setstate(self.python)
            torch.set_rng_state(self.torch)
        else:
            number = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4], "big")
            random.seed(number)
            np.random.seed(number)
            torch.default_generator.manual_seed(number)
        try:
            yield
        finally:
            self.python, self.torch = random.getstate(), torch.get_rng_state()
            random.setstate(before[0])
            numpy.set_bit_generator(before[1])
            torch.set_rng_state(before[2])
