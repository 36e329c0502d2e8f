"""Compare an evaluation that two processes of one thread share with one process of two threads: the same cores.

Both run ``mmzoo.evaluate`` on easy-VQA with both controls, for a model that classifies and one that writes; random weights cost
the same. Scores and predictions must be equal to the last digit, and each process must predict half of the examples. The time is
that of the call, in the slower process: connecting, predicting, exchanging and the bootstrap, without importing and building.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, Settings, alternate, child

TARGET = 1.1
EXAMPLES = {"classify": 4000, "write": 500}
BATCH = 125
WORK = """
import hashlib, json, os, sys, time
from pathlib import Path
import mmzoo
from mmzoo.models.model import MultimodalModel
kind, count, batch, seed, folder = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
labels = ["yes", "no", "circle", "rectangle", "triangle", *"black blue brown gray green red teal yellow".split()]
task = {"use": "classify", "labels": labels}
recipe, changes = ("cnn-product-lstm", {"task": task}) if kind == "classify" else ("cnn-prefix-gpt", {"task": "vqa"})
model = mmzoo.build(recipe, seed=seed, **changes)
predicted, predict = 0, MultimodalModel.predict_examples
def counted(self, examples, **options):
    global predicted
    predicted += len(examples)
    return predict(self, examples, **options)
MultimodalModel.predict_examples = counted
began = time.perf_counter()
found = mmzoo.evaluate(model, dataset="easy-vqa", limit=count, batch_size=batch, progress=False, seed=seed)
seconds = time.perf_counter() - began
scores = {"": found.scores, **found.controls}
scores = {name: {metric: score.to_dict() for metric, score in own.items()} for name, own in scores.items()}
digest = hashlib.sha256(repr(found.predictions).encode()).hexdigest()
result = {"seconds": seconds, "predicted": predicted, "same": [scores, digest]}
Path(folder, os.environ.get("RANK", "0") + ".json").write_text(json.dumps(result))
"""
LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


def run(settings: Settings) -> list[Ratio]:
    return [_compare(kind, settings.limit or count, settings) for kind, count in EXAMPLES.items()]


def _compare(kind: str, count: int, settings: Settings) -> Ratio:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "work.py")
        script.write_text(WORK, encoding="utf-8")
        arguments = [str(script), kind, *map(str, (count, BATCH, settings.seed)), folder]
        results: dict[int, list[list[Any]]] = {1: [], 2: []}

        def side(processes: int) -> Any:
            threads = {"OMP_NUM_THREADS": str(2 // processes), "ACCELERATE_USE_CPU": "true", "PYTHONPATH": _path()}
            launcher = [] if processes == 1 else ["-m", *LAUNCH.split(), "--main_process_port", "0"]

            def once() -> float:
                child(*launcher, *arguments, env=threads)
                own = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]
                results[processes].append(own)
                return max(each["seconds"] for each in own)

            return once

        times = alternate(side(2), side(1), repeats=settings.repeats)
    (alone,) = results[1][0]
    for shared in results[2]:
        if any(each["same"] != alone["same"] for each in shared):
            raise RuntimeError(f"{kind}: two processes have other scores or predictions than one")
        if abs(shared[0]["predicted"] - shared[1]["predicted"]) > BATCH:
            raise RuntimeError(f"{kind}: the processes predicted {[each['predicted'] for each in shared]} examples")
    halves = " and ".join(str(each["predicted"]) for each in results[2][0])
    name = f"shared: {kind} {count} examples three times ({halves} in the processes), two processes of one thread / one of two"
    return Ratio(name, *times, "s", TARGET, sides=("two processes", "one"))


def _path() -> str:
    root = Path(__file__).resolve().parent.parent
    return os.pathsep.join(filter(None, [str(root), str(root / "plugins"), os.environ.get("PYTHONPATH")]))
