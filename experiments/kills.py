"""Kill a mixed, validated training in two processes at random moments, and compare what each resumed run ends with.

``python -m experiments.kills --kills 20`` trains a small model for two tasks on two data sets, which are mixed by weights, with
validation, over gloo. Then it starts the same run again and again, each time kills it by SIGKILL at a moment of its whole
duration, loading and saving included, resumes it, and compares weights, curves and the best checkpoint with the unbroken run's.
The record is ``experiments/runs/kills.json``; docs/experiments.md is written from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

RECORD = "kills.json"
FINISHED = "the finished model"
TRIES = 3  # of a moment, while it comes after the end of the run
PROCESSES = 2
COLOURS = ("red", "green", "blue", "black", "white", "yellow")
RECIPE: dict[str, Any] = {
    "encoder": {"use": "cnn", "image_size": 16, "channels": [8, 16]},
    "fusion": "late-product",
    "language_model": {"use": "lstm", "dim": 32},
    "tasks": {
        "caption": {"use": "caption", "max_new_tokens": 6},
        "vqa": {"use": "classify", "hidden": 16, "dropout": 0.3},
    },
    "data": {"weights": {"caption": 1, "vqa": 2}},
    "training": {
        "epochs": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "log_every": 2,
        "save_every": 3,
        "evaluate_every": 5,
        "metric": "caption/cider-d",
        "workers": 1,
    },
}
EXAMPLES = {"train": 60, "validation": 12}  # of each data set


def main() -> int:
    from experiments.common import RUNS

    parser = argparse.ArgumentParser(prog="python -m experiments.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, default=RUNS / RECORD, help="the file that is written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(Path(folder), arguments.kills, arguments.seed)
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(section(record))
    return 0 if all(kill["equal"] for kill in record["kills"]) else 1


def run(work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Return the record: the unbroken run, and for each kill when it came, what it left, and whether the resumed run is equal."""
    import transformers  # noqa: F401 - once, before the processes are forked

    import mmzoo
    from mmzoo.common.energy import hardware
    from mmzoo.common.environment import environment

    mmzoo.train  # noqa: B018 - which loads it
    _write_data(work / "data")
    started = time.monotonic()
    _wait(_start(work, "whole", resume=False))
    seconds = time.monotonic() - started
    whole = _result(work / "whole")
    moments = random.Random(seed)
    rows = []
    duration = seconds
    for number in range(kills):
        share, victims = (number + moments.random()) / kills, moments.choice([(0,), (1,), (0, 1)])  # one in each part of the run
        for attempt in range(TRIES):
            row = _kill(work, f"killed-{number}-{attempt}", share * duration, victims, whole)
            if row["left"] != FINISHED:
                break
            duration = share * duration  # this run was faster
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    training = json.loads((work / "whole" / "run.json").read_text(encoding="utf-8"))["training"]
    return {
        "seed": seed,
        "recipe": RECIPE,
        "processes": PROCESSES,
        "steps": training["steps"],
        "validation": training.get("validation"),
        "seconds": round(seconds, 1),
        "kills": rows,
        "hardware": hardware("cpu"),
        "versions": environment(),
    }


def section(record: Mapping[str, Any]) -> str:
    """Return the section of docs/experiments.md."""
    rows = record["kills"]
    equal = sum(row["equal"] for row in rows)
    lines = [
        "## Killed and resumed\n",
        "A model of two tasks is trained on two data sets, mixed by weights, with validation, in "
        f"{record['processes']} processes over gloo: {record['steps']} steps in {record['seconds']} s. The run is started "
        f"{len(rows)} times and killed by SIGKILL, once in each part of its duration, loading and saving included: the first "
        "process, the second, or both at once (a launcher ends the other). Then it is resumed. Equal means the same bits of "
        "every weight, the same loss curve, and the same validation scores and best checkpoint as without the kill.\n",
        f"**{equal} of {len(rows)} are equal to the unbroken run.**\n",
        "| killed after, s | process | left behind | resumed from step | equal |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        victims = " and ".join(str(victim) for victim in row["victims"])
        step = "" if row["left"] == FINISHED else "the beginning" if row["step"] is None else str(row["step"])
        lines.append(f"| {row['moment']:.1f} | {victims} | {row['left']} | {step} | {'yes' if row['equal'] else '**no**'} |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"{record['hardware'] or 'cpu'}; {versions}.\n"])


def _kill(work: Path, name: str, moment: float, victims: tuple[int, ...], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Start a run, kill it, resume it, and return the row of the record."""
    processes = _start(work, name, resume=False)
    time.sleep(moment)
    for victim in victims:
        os.kill(processes[victim].pid, signal.SIGKILL)
    time.sleep(0.2)
    for process in processes:
        process.kill()
        process.join()
    left, step = _left(work / name)
    if left != FINISHED:
        _wait(_start(work, name, resume=step is not None))
    result = _result(work / name)
    different = [key for key in whole if result[key] != whole[key]]
    row = {"moment": round(moment, 2), "victims": list(victims), "left": left, "step": step, "equal": not different}
    return {**row, "different": different} if different else row


def _left(output: Path) -> tuple[str, int | None]:
    """Return in words what a killed run left, and the step of the checkpoint that it is resumed from."""
    from mmzoo.checkpoints.folder import CHECKPOINTS, is_checkpoint
    from mmzoo.training.output import last_checkpoint

    last = last_checkpoint(output)
    if last is None:
        return (FINISHED if is_checkpoint(output) else "no checkpoint"), None
    complete = {path.parent.name for path in output.glob(f"{CHECKPOINTS}/checkpoint-*/trainer_state.json")}
    every = {path.name for path in (output / CHECKPOINTS).glob("*checkpoint-*")}
    return ("a checkpoint half written" if every - complete else "checkpoints"), int(last.rpartition("-")[2])


def _result(output: Path) -> dict[str, Any]:
    """Return what two runs must have in common: the bytes of the weights, the curves, and the best step."""
    training = json.loads((output / "run.json").read_text(encoding="utf-8"))["training"]
    chosen = {key: training.get(key) for key in ("steps", "history", "validation", "mixture")}
    return {"weights": (output / "model.safetensors").read_bytes(), **chosen}


def _start(work: Path, name: str, *, resume: bool) -> list[Any]:
    """Start the run in two processes, which are forked so that nothing is imported again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_train, args=(rank, port, work, name, resume)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    return processes


def _wait(processes: list[Any]) -> None:
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process ended with {process.exitcode}; its output is above")


def _train(rank: int, port: int, work: Path, name: str, resume: bool) -> None:
    """Be one process of the run, as accelerate would start it."""
    import mmzoo

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    data = work / "data"
    mmzoo.train(
        RECIPE,
        datasets={"caption": str(data / "caption"), "vqa": str(data / "vqa")},
        validation={"caption": f"{data / 'caption'}:validation", "vqa": f"{data / 'vqa'}:validation"},
        output=work / name,
        resume=resume,
        overwrite=not resume,
        progress=False,
    )


def _write_data(folder: Path) -> None:
    """Draw coloured squares: one data set asks for their colour, the other has two captions of each."""
    from PIL import Image

    draw = random.Random(0)
    for task in ("caption", "vqa"):
        (folder / task).mkdir(parents=True)
        for split, count in EXAMPLES.items():
            rows = []
            for i in range(count):
                colour, side = draw.choice(COLOURS), draw.choice(["left", "right"])
                picture = Image.new("RGB", (16, 16), tuple(draw.randint(100, 156) for _ in range(3)))  # none twice
                picture.paste(colour, (2 + 8 * (side == "right"), draw.randint(1, 9), 6 + 8 * (side == "right"), 14))
                picture.save(folder / task / f"{split}-{i}.png")
                captions = [f"a {colour} bar on the {side}", f"{side}: something {colour}"]
                text, target = ("", captions) if task == "caption" else ("what color is it?", colour)
                rows.append(json.dumps({"image": f"{split}-{i}.png", "text": text, "target": target}))
            (folder / task / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
