"""Compare the time of ``mmzoo list`` in a new process with that of ``import torch`` alone."""

from __future__ import annotations

import time

from benchmarks.common import Ratio, Settings, alternate, child

TARGET = 0.35


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    child(*arguments)
    return time.perf_counter() - started


def run(settings: Settings) -> list[Ratio]:
    ours, theirs = alternate(
        lambda: _seconds("-m", "mmzoo", "list"),
        lambda: _seconds("-c", "import torch"),
        repeats=max(5, settings.repeats),
        warm=True,
    )
    return [Ratio("startup: mmzoo list / import torch", ours, theirs, "s", TARGET, sides=("mmzoo list", "import torch"))]
