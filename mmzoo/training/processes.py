"""Share a run out over processes: batches that come out even, and work that all must do where only some have something to do.

What a step trains on depends on its number and on ``batch_size * accumulate * processes`` only, so that a run may be resumed on
another number of processes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import BatchSampler

from mmzoo.common.processes import is_main
from mmzoo.data.collate import TEXT, tensors
from mmzoo.errors import TrainingError
from mmzoo.interfaces import IGNORE

log = logging.getLogger(__name__)

Parts = dict[tuple[str, str], str]  # by kind and name


class EvenBatches:
    """Yield the batches of a sampler, then empty ones until each of the ``processes`` has as many.

    accelerate's own way is to repeat examples.
    """

    def __init__(self, sampler: Any, size: int, processes: int) -> None:
        self.batches, self.processes = BatchSampler(sampler, size, drop_last=False), processes

    def __len__(self) -> int:
        return len(self.batches) + -len(self.batches) % self.processes

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches
        yield from ([] for _ in range(-len(self.batches) % self.processes))


def launch(step: int, arguments: Any) -> dict[str, int]:
    """Return since which step a run has how many processes, and how many batches each of them has in a step."""
    return {"step": step, "processes": arguments.world_size, "accumulate": arguments.gradient_accumulation_steps}


def accumulated(accumulate: int, launches: Sequence[Mapping[str, int]]) -> int:
    """Return how many batches each process has in a step, so that all have the examples that a resumed run had in it before.

    Args:
        accumulate: that of the recipe.
        launches: those of the checkpoint; empty for a new run.

    Raises:
        TrainingError: the batches of a step cannot be shared out evenly.
    """
    if not launches:
        return accumulate
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    before, accumulate = launches[-1]["processes"], launches[-1]["accumulate"]
    batches, each = before * accumulate, before * accumulate // processes
    if batches % processes:
        fitting = ", ".join(str(n) for n in range(1, batches + 1) if not batches % n)
        raise TrainingError(
            f"--resume: a step of this run has {batches} batches ({before} processes, {accumulate} each), which {processes} "
            f"processes cannot share out evenly; resume with one of these numbers of processes: {fitting}"
        )
    if processes != before and is_main():
        log.warning(
            "resumed on %d processes instead of %d: each has %d batches in a step instead of %d, so that steps stay as they were",
            *(processes, before, each, accumulate),
        )
    return each


def share_parts(samples: list[dict[str, Any]], model: Any, accelerator: Accelerator, *, sharded: bool) -> set[str]:
    """Give each process the tasks and inputs of a step that others have and it lacks, in place and without labels.

    A process that waits for the tensors of others would wait forever for one that computes nothing: in a task that gathers, or,
    with ``sharded`` weights, in all that is trained. What is given has no weight in the loss, so that the gradients are those of
    one process with the batches of all. It costs no time: the process would wait for the other that computes it. All processes
    must call this.

    Returns:
        With ``sharded`` weights the keys of the tasks, encoders and learned vectors (``missing.NAME``) that a process had.
    """
    shared = {name for name, task in model.tasks.items() if sharded or task.gathers}
    encoders = {name for name in model.encoders if sharded and model.provenance.policies[f"encoders.{name}"] != "frozen"}
    if not shared and not encoders:
        return set()
    ran = {key for batch in samples for key in _keys(batch, model)} if sharded else set()
    every = gather_object([([_parts(batch, shared, encoders) for batch in samples], ran)])
    for i, batch in enumerate(samples):
        _complete(batch, [own[i] for own, _ in every], model, accelerator, sharded)
    return set().union(*(other for _, other in every))


def _keys(batch: Mapping[str, Any], model: Any) -> Iterator[str]:
    yield from (f"tasks.{name}" for name in batch.get("tasks", {}))
    for name, own in batch.get("encoders", {}).items():
        if len(own) > 1:  # more than an index
            yield f"encoders.{name}"
        if own["index"].ndim == 2 or model.recipe.training.modality_dropout:
            yield f"missing.{name}"


def _parts(batch: Mapping[str, Any], tasks: set[str], encoders: set[str]) -> Parts:
    """Return the tasks and the encoders with inputs that a batch has, with the task whose text each task reads."""
    own = {("tasks", name): each.get("text_of", "") for name, each in batch.get("tasks", {}).items() if name in tasks}
    given = {name for name, each in batch.get("encoders", {}).items() if len(each) > 1}  # more than an index
    return own | {("encoders", name): "" for name in given & encoders}


def _complete(batch: dict[str, Any], every: list[Parts], model: Any, accelerator: Accelerator, sharded: bool) -> None:
    if sharded and any(own != every[0] for own in every):  # else the language model would not run equally often
        batch["tasks"] = _with_own_texts(batch.get("tasks", {}))
    missing = {part for own in every for part in own if any(part not in other for other in every)}
    donors = {part: next(i for i, own in enumerate(every) if part in own) for part in missing}
    for donor in sorted(set(donors.values())):
        given = [None]
        if donor == accelerator.process_index:
            given = [tensors({**batch, "tasks": _with_own_texts(batch["tasks"])}, "cpu")]  # type: ignore[list-item]
        broadcast_object_list(given, from_process=donor)
        wanted = {part for part in missing - set(every[accelerator.process_index]) if donors[part] == donor}
        if wanted and donor != accelerator.process_index:
            _add(batch, tensors(given[0], accelerator.device), wanted)  # type: ignore[arg-type]
    if "tasks" in batch:
        batch["tasks"] = {name: batch["tasks"][name] for name in model.tasks if name in batch["tasks"]}


def _add(batch: dict[str, Any], given: Mapping[str, Any], wanted: set[tuple[str, str]]) -> None:
    """Add tasks and inputs of another process's batch; a task reads them with the features of the first example, or, if there is
    none, with those of that batch."""
    empty = not batch.get("encoders")
    if empty:
        batch["encoders"] = given["encoders"]
    own = batch.setdefault("tasks", {})
    for kind, name in wanted:
        if kind == "encoders":
            batch["encoders"][name] = {**given["encoders"][name], "index": batch["encoders"][name]["index"]}
        else:
            task = {**given["tasks"][name], "labels": _no_labels(given["tasks"][name]["labels"])}
            own[name] = task if empty else {**task, "rows": torch.zeros_like(task["ids"][:, 0])}


def _no_labels(labels: Tensor) -> Tensor:
    return torch.full_like(labels, torch.nan if labels.is_floating_point() else IGNORE)


def _with_own_texts(tasks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the batches of tasks, none of which reads the text of another."""
    texts = {name: tasks[own["text_of"]] if "text_of" in own else own for name, own in tasks.items()}
    return {
        name: {key: value for key, value in own.items() if key != "text_of"}
        | {key: texts[name][key] for key in TEXT if key in texts[name]}
        for name, own in tasks.items()
    }
