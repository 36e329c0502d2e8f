"""Measure two sides in turns, and compare the median ratio of the turns with a target."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5


@dataclass(frozen=True)
class Ratio:
    """Hold the measurements of two sides. The median ratio must be at most ``target``, or at least ``target`` if ``higher``; a
    target of None is none.

    Ratios are taken turn by turn: a machine's speed drifts by more than some targets allow, but alike for both sides of a turn.
    """

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str
    target: float | None
    higher: bool = False
    sides: tuple[str, str] = ("mmzoo", "plain")

    @property
    def value(self) -> float:
        return median(self.turns)

    @property
    def turns(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def holds(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.higher else self.value <= self.target

    def to_dict(self) -> dict[str, Any]:
        data = {**asdict(self), "ours": list(self.ours), "theirs": list(self.theirs)}
        return {**data, "ratio": round(self.value, 4), "holds": self.holds}

    def __str__(self) -> str:
        bound = "no target" if self.target is None else f"target {'>=' if self.higher else '<='} {self.target:g}: "
        bound += "" if self.target is None else "met" if self.holds else "MISSED"
        sides = ", ".join(
            f"{side} {median(values):.4g} {self.unit} ({min(values):.4g} to {max(values):.4g})"
            for side, values in zip(self.sides, (self.ours, self.theirs), strict=True)
        )
        spread = f"{min(self.turns):.3f} to {max(self.turns):.3f} in {len(self.turns)} turns"
        return f"{self.name}: {self.value:.3f} ({bound}; {spread}); {sides}"


@dataclass(frozen=True)
class Fact:
    """Hold what was found that is no ratio: numbers and words by name. It ``holds`` unless a check failed."""

    name: str
    values: Mapping[str, Any]
    holds: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.values, "holds": self.holds}

    def __str__(self) -> str:
        values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.values.items())
        return f"{self.name}: {', '.join(values)}{'' if self.holds else ' (MISSED)'}"


@dataclass
class Settings:
    """Hold the options of the command line. ``work`` is a folder for large files, or None for a temporary one."""

    repeats: int = REPEATS
    steps: int = 150
    work: Path | None = None
    recipes: list[str] = field(default_factory=list)
    epochs: float | None = None
    blind_epochs: float = 3
    max_steps: int | None = None
    limit: int | None = None
    seed: int = 0
    cards: Path | None = None
    minutes: float = 6


def alternate(*sides: Callable[[], Any], repeats: int, warm: bool = False) -> list[list[Any]]:
    """Call the sides in ``repeats`` turns, each turn starting with another side, and return the results of each side.

    With ``warm`` each side runs once before, and the result is dropped.
    """
    if warm:
        for side in sides:
            side()
    results: list[list[Any]] = [[] for _ in sides]
    for turn in range(repeats):
        for i in range(len(sides)):
            chosen = (turn + i) % len(sides)
            results[chosen].append(sides[chosen]())
    return results


def child(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run python with ``arguments`` in a new process and return what it prints.

    Raises:
        RuntimeError: the process fails; holds its stderr.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)[:200]} failed:\n{done.stderr}")
    return done.stdout


@contextmanager
def step_times(now: Callable[[], float] = time.perf_counter) -> Iterator[list[float]]:
    """Yield a list to which ``mmzoo.train`` within the block adds the time at which its first step begins, and at which each step
    ends. Saving comes after the last one's end."""
    from transformers import TrainerCallback

    import mmzoo
    from mmzoo.registry.manager import plugin_manager

    times: list[float] = []

    class Note(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.extend(() if times else [now()])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    module = ModuleType("clock")
    module.mmzoo_train_callbacks = mmzoo.hookimpl(lambda recipe: [Note()])  # type: ignore[attr-defined]
    plugin_manager().manager.register(module)
    try:
        yield times
    finally:
        plugin_manager().manager.unregister(module)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of the libraries."""
    import torch

    from mmzoo.common.environment import environment

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": environment(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
