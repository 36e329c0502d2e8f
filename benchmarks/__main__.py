"""``python -m benchmarks [NAME...] [--json FILE]``: each number with its target, from one run."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Settings, machine

RATIOS = ("startup", "build", "trainer", "features", "clipcap", "decoding", "plugins")
NAMES = (*RATIOS, "easy_vqa")


def main() -> int:
    """Run the named benchmarks; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = Settings()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all but the last if none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="of each side")
    parser.add_argument("--steps", type=int, default=default.steps, help="trainer: steps of each side")
    parser.add_argument("--work", type=Path, help="a folder for checkpoints and caches, which is kept")
    parser.add_argument("--recipe", action="append", default=[], help="easy_vqa: only this recipe; may be repeated")
    parser.add_argument("--epochs", type=float, help="easy_vqa: instead of the recipe's")
    parser.add_argument("--blind-epochs", type=float, default=default.blind_epochs, help="easy_vqa: of the blind control")
    parser.add_argument("--max-steps", type=int, help="easy_vqa: stop each training there, for a trial")
    parser.add_argument("--limit", type=int, help="easy_vqa, features: so many examples, for a trial")
    parser.add_argument("--seed", type=int, default=default.seed, help="easy_vqa: of training and evaluation")
    parser.add_argument("--cards", type=Path, help="easy_vqa: the folder of run records, model_cards/runs but for trials")
    given = vars(parser.parse_args())
    names, output = given.pop("names") or RATIOS, given.pop("json")
    if wrong := [name for name in names if name not in NAMES]:
        parser.error(f"there is no benchmark '{wrong[0]}'; there are: {', '.join(NAMES)}")
    settings = Settings(recipes=given.pop("recipe"), **given)

    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    print(
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads, load {where['load']}"
        + (f", {where['accelerator']}" if where["accelerator"] else "")
        + f"\n{versions}",
        flush=True,
    )
    report: dict[str, Any] = {"machine": where, "results": {}}
    missed = False
    for name in names:
        started = time.monotonic()
        results = importlib.import_module(f"benchmarks.{name}").run(settings)
        for result in results:
            print(result, flush=True)
            missed |= not result.holds
        seconds = round(time.monotonic() - started, 1)
        report["results"][name] = {"seconds": seconds, "measured": [result.to_dict() for result in results]}
        if output is not None:
            output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
