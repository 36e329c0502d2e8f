"""Run benchmarks and print each number with its target: ``python -m benchmarks [NAME...] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Settings, machine

RATIOS = ("startup", "build", "trainer", "features", "clipcap", "decoding", "several", "shared", "plugins", "validation")
NAMES = (*RATIOS, "easy_vqa", "gpu")


def main() -> int:
    """Run the named benchmarks and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = Settings()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; without a name, all but the last two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="measurements of each side")
    parser.add_argument("--steps", type=int, default=default.steps, help="trainer: training steps of each side")
    parser.add_argument("--work", type=Path, help="a folder for checkpoints and caches; it is not deleted")
    parser.add_argument("--recipe", action="append", default=[], help="easy_vqa, validation: only this recipe; may be repeated")
    parser.add_argument("--epochs", type=float, help="easy_vqa: epochs, instead of the recipe's")
    parser.add_argument("--blind-epochs", type=float, default=default.blind_epochs, help="easy_vqa: epochs of the blind control")
    parser.add_argument("--max-steps", type=int, help="easy_vqa, validation: stop each training after this step, for a trial")
    parser.add_argument("--limit", type=int, help="easy_vqa, features, shared, validation: the number of examples, for a trial")
    parser.add_argument("--seed", type=int, default=default.seed, help="easy_vqa: seed of training and evaluation")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="gpu: leave out parts that would take longer")
    parser.add_argument("--cards", type=Path, help="easy_vqa: the folder for run records; model_cards/runs, except in a trial")
    arguments = vars(parser.parse_args())
    names, output = arguments.pop("names") or RATIOS, arguments.pop("json")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are: {', '.join(NAMES)}")
    settings = Settings(recipes=arguments.pop("recipe"), **arguments)

    environment = machine()
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    print(
        "{processor}, {cores} cores, {threads} threads, load {load}".format(**environment)
        + (f", {environment['accelerator']}" if environment["accelerator"] else "")
        + f"\n{versions}",
        flush=True,
    )
    report: dict[str, Any] = {"machine": environment, "results": {}}
    missed = False
    for name in names:
        started = time.monotonic()
        measured: list[dict[str, Any]] = []
        for result in importlib.import_module(f"benchmarks.{name}").run(settings):
            print(result, flush=True)
            missed |= not result.holds
            measured.append(result.to_dict())
            report["results"][name] = {"seconds": round(time.monotonic() - started, 1), "measured": measured}
            if output is not None:
                output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
