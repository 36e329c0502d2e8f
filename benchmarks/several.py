"""Measure what several encoders, fusions and tasks cost.

- A model with one encoder and one task trains as fast, and in as little memory, as the code before a model could have several:
  both sides run ``mmzoo.train`` on easy-VQA in a process of their own, the other side from the commit `BEFORE`.
- A step with three tasks on one batch of pictures costs what the encoder once and three passes of the language model cost, which
  is written out by hand on the other side; losses must be equal.
- A step with three tasks that read the same text costs what a step with one of them costs.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Ratio, Settings, alternate, child

BEFORE = "b4225d3"  # the last commit in which a model has one encoder, one fusion and one task
SAME, TOGETHER = 1.02, 1.1
BATCH, TEXT = 64, 24
TRAINING = """
import json, resource, sys, time
import mmzoo
from mmzoo.registry.manager import plugin_manager
from transformers import TrainerCallback
ends = []
class Note(TrainerCallback):
    def on_step_end(self, *_, **__):
        ends.append(time.perf_counter())
class Clock:
    @mmzoo.hookimpl
    def mmzoo_train_callbacks(self, recipe):
        return [Note()]
plugin_manager().manager.register(Clock())
options = {"max_steps": int(sys.argv[1]), "precision": "fp32", "workers": 0, "log_every": 10}
run = mmzoo.train("cnn-product-lstm", dataset="easy-vqa", output=sys.argv[2], progress=False, training=options)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"code": mmzoo.__file__, "seconds": ends[-1] - ends[0], "mebibytes": peak, "loss": run.history[-1]["loss"]}))
"""


def run(settings: Settings) -> list[Ratio]:
    return [*_one_of_each(settings), *_three_tasks(settings)]


def _one_of_each(settings: Settings) -> list[Ratio]:
    steps, results = settings.steps, {"after": [], "before": []}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder:
        trees = {"after": ROOT, "before": _checkout(Path(folder) / "before")}

        def side(name: str) -> Any:
            def once() -> None:
                tree = trees[name]
                path = f"{tree / 'plugins'}:{tree}"
                line = child(
                    "-P", "-c", TRAINING, str(steps), str(Path(folder) / name / str(time.time_ns())), env={"PYTHONPATH": path}
                )
                result = json.loads(line.splitlines()[-1])
                if not Path(result["code"]).is_relative_to(tree):
                    raise RuntimeError(f"{name}: the code of {result['code']} ran")
                results[name].append(result)

            return once

        alternate(side("after"), side("before"), repeats=settings.repeats)
    for one, other in zip(results["after"], results["before"], strict=True):
        if not math.isclose(one["loss"], other["loss"], rel_tol=1e-3):
            raise RuntimeError(f"the two sides did not do the same: loss {one['loss']} and {other['loss']}")

    def ratio(what: str, key: str, unit: str) -> Ratio:
        sides = [[result[key] for result in results[name]] for name in ("after", "before")]
        return Ratio(f"several: {what} of one encoder and one task, now / before", *sides, unit, SAME, sides=("now", "before"))

    return [ratio(f"time of {steps} steps", "seconds", "s"), ratio("peak memory", "mebibytes", "MiB")]


def _checkout(folder: Path) -> Path:
    """Write the tree of `BEFORE` and the metadata that name its own plugins into ``folder``."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / "plugins" / f"mmzoo-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mmzoo\nVersion: {project['version']}\n", encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _three_tasks(settings: Settings) -> list[Ratio]:
    import torch
    from torch.nn import functional as F

    import mmzoo
    from mmzoo.data.collate import tensors

    tasks = {name: {"use": "classify", "hidden": 256, "labels": ["a", "b", "c", "d"]} for name in ("one", "two", "three")}
    model = mmzoo.build(
        encoder="cnn", fusion="late-product", language_model={"use": "lstm", "dim": 256}, tasks=tasks, seed=settings.seed
    )
    model.train()
    generator = torch.Generator().manual_seed(settings.seed)
    pictures = torch.randn(BATCH, 3, 64, 64, generator=generator)
    texts = {
        name: {
            "ids": torch.randint(4, 100, (BATCH, TEXT), generator=generator),
            "mask": torch.ones(BATCH, TEXT, dtype=torch.long),
            "labels": torch.randint(0, 4, (BATCH,), generator=generator),
        }
        for name in tasks
    }
    batch = tensors({"encoders": {"image": {"inputs": pictures, "index": torch.arange(BATCH)}}, "tasks": texts}, "cpu")

    def ours() -> Any:
        return model(**batch)["loss"]

    def by_hand() -> Any:
        (encoder,), (fusion,), language = model.encoders.values(), model.fusions.values(), model.language_model
        features = encoder(pictures)
        losses = []
        for name, text in texts.items():
            hidden = language(language.embed(text["ids"]), text["mask"])
            fused = fusion.late(features, language.pool(hidden, text["mask"]).unsqueeze(1)).squeeze(1)
            losses.append(F.cross_entropy(model.tasks[name].head(fused), text["labels"]))
        return torch.stack(losses).sum()

    def timed(loss: Any) -> Any:
        def once() -> float:
            began = time.perf_counter()
            for _ in range(max(1, settings.steps // 10)):
                model.zero_grad()
                loss().backward()
            return time.perf_counter() - began

        return once

    if not torch.allclose(ours(), by_hand(), rtol=1e-5):
        raise RuntimeError("the two sides did not do the same")
    sides = alternate(timed(ours), timed(by_hand), repeats=settings.repeats, warm=True)
    sharing = {name: {"text_of": "one", "labels": texts[name]["labels"]} for name in ("two", "three")}
    shared = {**batch, "tasks": {"one": texts["one"], **sharing}}
    alone = {**batch, "tasks": {"one": texts["one"]}}
    same = alternate(
        timed(lambda: model(**shared)["loss"]), timed(lambda: model(**alone)["loss"]), repeats=settings.repeats, warm=True
    )
    return [
        Ratio(
            "several: a step of three tasks / the encoder once and three passes by hand",
            *sides,
            "s",
            TOGETHER,
            sides=("mmzoo", "by hand"),
        ),
        Ratio("several: a step of three tasks on one text / of one task", *same, "s", TOGETHER, sides=("three", "one")),
    ]
