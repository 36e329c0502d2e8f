"""Measure what matters on a GPU, in a few minutes, without network: ``python -m benchmarks gpu [--minutes 6] [--json FILE]``.

- ``tests``: the tests marked ``gpu``;
- ``precision``: ``mmzoo.train`` in bfloat16 beside float32: the loss curves, and the time of a step;
- ``llava``: a model of LLaVA's shape beside `transformers.LlavaForConditionalGeneration` with the same weights and batch: time
  and peak memory of a training step, and the share of the device's peak that it uses (model FLOP utilisation);
- ``writing``: tokens a second of the same models, greedy, beside the library's ``generate``;
- ``cache``: the time of a step with the features of the frozen encoder cached and not.

Weights and data are random. Each side runs in a process of its own, and the sides measure in turns. A comparison whose sides do
not compute the same in float32 is void. A part that fails is reported, and the others go on; parts for which no time is left are
left out. Without a GPU everything runs in a small form.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Fact, Ratio, Settings, alternate
from benchmarks.gpu.process import Process
from benchmarks.gpu.sizes import Sizes

Result = Ratio | Fact
LOSS, LATER = 1e-5, 1e-4  # relative, of the first step in float32 and of those after it, in which rounding has added up
CURVE = 0.05  # how far the loss curves may be apart, of the mean loss
SPEED, MEMORY, WRITING = 1.1, 1.0, 0.97  # targets: at least, at most, at least
TURNS = 3  # of whole trainings


@dataclass
class Bench:
    """Hold what the parts share."""

    settings: Settings
    sizes: Sizes
    folder: Path
    deadline: float
    stack: ExitStack
    opened: dict[str, Process] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def too_late(self, part: str) -> str:
        """Say that no time is left for a part."""
        left, takes = max(0.0, self.left), self.sizes.seconds[part]
        return f"{left:.0f} s are left of --minutes {self.settings.minutes:g}, and it takes up to {takes} s"

    def process(self, target: str, sizes: Any) -> Process:
        """Start a process of this package; those of one module share a folder."""
        folder = self.folder / target.partition(":")[0]
        folder.mkdir(parents=True, exist_ok=True)
        options = {"folder": str(folder), "sizes": sizes, "seed": self.settings.seed}
        return self.stack.enter_context(Process(f"benchmarks.gpu.{target}", self.deadline, **options))

    def llavas(self) -> tuple[Process, Process]:
        """Return mmzoo's side and the library's, opened once, after a check that both compute the same.

        Raises:
            RuntimeError: they do not.
        """
        if not self.opened:
            sides = {name: self.process(f"llava:{name}", self.sizes.llava) for name in ("Library", "Ours")}
            library, ours = (sides[name].call("open") for name in ("Library", "Ours"))
            if library != ours:
                raise RuntimeError(f"the two sides are not the same model: {ours} and {library}")
            one, other = (sides[name].call("check", count=4, steps=3, new=12) for name in ("Ours", "Library"))
            check_same(one, other)
            self.opened = sides
        return self.opened["Ours"], self.opened["Library"]


def run(settings: Settings) -> Iterator[Result]:
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work,
        ExitStack() as stack,
    ):
        deadline = began + 60 * settings.minutes
        with Process("benchmarks.gpu.device:Device", deadline) as device:
            facts = device.call("describe")
        yield Fact("gpu: device", facts)
        sizes = Sizes.of(facts)
        bench = Bench(settings, sizes, Path(work), deadline, stack)
        for name, part in PARTS.items():
            if bench.left < sizes.seconds[name]:
                yield Fact(f"gpu: {name}", {"left out": bench.too_late(name)})
                continue
            try:
                yield from part(bench)
            except Exception as error:  # the other parts go on
                yield Fact(f"gpu: {name}", {"failed": str(error)}, holds=False)


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that losses and texts in float32 are equal.

    Raises:
        RuntimeError: they are not.
    """
    for step, (a, b) in enumerate(zip(one["losses"], other["losses"], strict=True)):
        if abs(a - b) > (LATER if step else LOSS) * abs(b):
            raise RuntimeError(f"void: the two sides do not compute the same: loss {a} and {b} at step {step + 1} in float32")
    if one["texts"] != other["texts"]:
        raise RuntimeError("void: the two sides do not write the same in float32")


def tests(bench: Bench) -> Iterator[Result]:
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed: pip install pytest")
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    report, limit = bench.folder / "tests.xml", min(bench.left, 60 + bench.sizes.seconds["tests"])  # one that hangs leaves time
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *files], cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit
    )
    if not report.is_file():
        raise RuntimeError((done.stdout + done.stderr)[-1500:].strip())
    suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    values: dict[str, Any] = {"passed": count["tests"] - failed - count["skipped"], "failed": failed, "skipped": count["skipped"]}
    if count["skipped"]:
        values["because"] = next((each.get("message") for each in suite.iter("skipped")), "")
    if failed:
        values["output"] = done.stdout[-3000:]
    yield Fact("gpu: tests", values, holds=not failed)


def precision(bench: Bench) -> Iterator[Result]:
    process, size = bench.process("training:Training", bench.sizes.training), bench.sizes
    short = process.call("precision")
    halves, wholes = alternate(
        lambda: process.call("train", precision=short, cache=False),
        lambda: process.call("train", precision="fp32", cache=False),
        repeats=min(TURNS, bench.settings.repeats),
        warm=size.gpu,
    )
    one, other = halves[0]["losses"], wholes[0]["losses"]
    gap = max(abs(a - b) for a, b in zip(one, other, strict=True)) / (sum(other) / len(other))
    values = {"steps": len(other), "first loss": other[0], "last loss": other[-1], f"in {short}": one[-1], "largest gap": gap}
    yield Fact(f"gpu: loss curve in {short} beside fp32", values, holds=gap <= CURVE and other[-1] < other[0])
    name = f"gpu: time of a step of mmzoo.train, {short} / fp32"
    yield Ratio(name, *seconds(halves, wholes), "s", size.half_step, sides=(short, "fp32"))


def llava(bench: Bench) -> Iterator[Result]:
    (ours, library), size = bench.llavas(), bench.sizes
    facts = [side.call("prepare") for side in (ours, library)]
    turns = alternate(
        *[lambda side=side: side.call("steps", count=size.steps) for side in (ours, library)],  # type: ignore[misc]
        repeats=bench.settings.repeats,
        warm=True,
    )
    sides = ("mmzoo", "transformers")
    speeds = [[1 / each for each in side] for side in turns]
    name = f"gpu: LLaVA's shape, {size.llava['batch']} pictures a batch"
    yield Ratio(f"{name}, training steps a second", *speeds, "steps/s", SPEED, higher=True, sides=sides)
    memory = [[fact["bytes"] / 2**30] for fact in facts]
    yield Ratio(f"{name}, peak memory of a step", *memory, "GiB", MEMORY, sides=sides)
    best = size.peak
    values: dict[str, Any] = {"peak TFLOP/s": "unknown" if best is None else best / 1e12}
    for side, fact, took in zip(sides, facts, turns, strict=True):
        fastest = min(took)
        values |= {f"{side}: TFLOP a step": fact["flops"] / 1e12, f"{side}: TFLOP/s": fact["flops"] / fastest / 1e12}
        # The work that the model needs is the same on both sides; one that computes padding too does more.
        values[f"{side}: utilisation"] = "unknown" if best is None else facts[0]["flops"] / fastest / best
        values[f"{side}: loss"] = fact["loss"]
    yield Fact(f"{name}, model FLOP utilisation", values)


def writing(bench: Bench) -> Iterator[Result]:
    (ours, library), size = bench.llavas(), bench.sizes
    for side in (ours, library):
        side.call("shrink")
    for count in (1, 8):
        one, other = alternate(
            *[lambda side=side: side.call("tokens_a_second", count=count, new=size.tokens) for side in (ours, library)],  # type: ignore[misc]  # noqa: B023 (called at once)
            repeats=bench.settings.repeats,
            warm=True,
        )
        name = f"gpu: LLaVA's shape, greedy tokens a second, {count} at once"
        speeds = [[speed for speed, _ in each] for each in (one, other)]
        yield Ratio(name, *speeds, "tokens/s", WRITING, higher=True, sides=("model.generate", "generate"))
        same = sum(a == b for a, b in zip(one[0][1], other[0][1], strict=True))
        yield Fact(f"{name}, the same texts", {"same": same, "of": count})


def cache(bench: Bench) -> Iterator[Result]:
    process, short = bench.process("training:Training", bench.sizes.training), "fp32"
    short = process.call("precision") if bench.sizes.gpu else short
    cached, encoded = alternate(
        lambda: process.call("train", precision=short, cache=True),
        lambda: process.call("train", precision=short, cache=False),
        repeats=min(TURNS, bench.settings.repeats),
        warm=bench.sizes.gpu,
    )
    name = f"gpu: time of a step of mmzoo.train in {short}, features cached / encoded"
    yield Ratio(name, *seconds(cached, encoded), "s", 1.0, sides=("cached", "encoded"))


def seconds(*sides: list[dict[str, Any]]) -> list[list[float]]:
    return [[turn["seconds"] for turn in side] for side in sides]


PARTS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "tests": tests,
    "precision": precision,
    "llava": llava,
    "writing": writing,
    "cache": cache,
}
