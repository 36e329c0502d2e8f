"""Run ``python -m experiments NAME``: each run without a record, then docs/experiments.md and the plots."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# The models are small: one thread is as fast as several, and two runs can share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RENDER = "render"


def main() -> int:
    from experiments import EXPERIMENTS, common, report
    from mmzoo.errors import MmzooError

    experiments = {experiment.name: experiment for experiment in EXPERIMENTS}
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", metavar="NAME", choices=[*experiments, RENDER], help=f"of {', '.join(experiments)}, or {RENDER}")
    parser.add_argument("--work", type=Path, help="the folder of checkpoints; experiments/work if not given")
    parser.add_argument("--seed", type=int, action="append", help="only this seed; may be repeated")
    parser.add_argument("--model", action="append", default=[], help="only this model; may be repeated")
    parser.add_argument("--quick", action="store_true", help="two steps on a few examples, in a temporary folder")
    parser.add_argument("--check", action="store_true", help="render: only report whether the page is up to date")
    arguments = parser.parse_args()

    if arguments.name == RENDER:
        return _render(list(experiments.values()), check=arguments.check)
    experiment = experiments[arguments.name]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            quick = arguments.quick
            work = Path(temporary) if quick else arguments.work or common.ROOT / "experiments" / "work"
            runs = work / "runs" if quick else common.RUNS
            started = time.monotonic()
            for path in common.run(experiment, work=work, runs=runs, seeds=arguments.seed, only=arguments.model, quick=quick):
                print(f"{time.monotonic() - started:7.0f} s  {path.stem}", flush=True)
            if quick:
                print(report.render([experiment], runs=runs))
                return 0
    except MmzooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", file=sys.stderr)
        return 130
    return _render(list(experiments.values()))


def _render(experiments: list, *, check: bool = False) -> int:
    from experiments import common, report

    path = report.DOCS / report.PAGE
    text = report.render(experiments)
    if check:
        is_fresh = path.is_file() and path.read_text(encoding="utf-8") == text
        print(f"{path.name} is {'up to date' if is_fresh else 'out of date; run python -m experiments render'}")
        return 0 if is_fresh else 1
    path.write_text(text, encoding="utf-8")
    for experiment in experiments:
        if common.read(experiment):
            report.plot(experiment)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
