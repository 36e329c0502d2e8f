"""Collate examples into batches that contain each distinct input once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from mmzoo.data.tokens import check_placeholders, pad_rows
from mmzoo.errors import BadInput, DataError, MmzooError
from mmzoo.interfaces import Example, Task, TextContext
from mmzoo.modalities.identity import input_key
from mmzoo.modalities.pipeline import InputPipeline

TEXT = ("ids", "mask", "decoder_ids", "rows")  # the tensors of a task that decide what the language model reads


class FeatureSource(Protocol):
    """Define a source of precomputed features. It can be pickled."""

    def of(self, source: Any, key: Hashable) -> dict[str, Tensor]:
        """Return ``pooled`` [pooled_dim] of one input and, if tokens are stored, ``tokens`` [tokens, dim] and ``mask`` [tokens].
        ``key`` is its `mmzoo.modalities.identity.input_key`.

        Raises:
            BadInput: the input cannot be read.
            FeatureCacheError: its features are missing or damaged.
        """


@dataclass(frozen=True)
class Tiled:
    """Transform an image and its tiles to [1 + grid ** 2, channels, height, width]: the whole image, then the tiles row by row.

    See LLaVA-NeXT, https://llava-vl.github.io/blog/2024-01-30-llava-next/.
    """

    transform: Any
    grid: int

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        xs, ys = ([round(size * i / self.grid) for i in range(self.grid + 1)] for size in (width, height))
        spans = ([(a, max(a + 1, b)) for a, b in pairwise(edges)] for edges in (ys, xs))
        boxes = [(left, top, right, bottom) for (top, bottom), (left, right) in product(*spans)]
        return torch.stack([self.transform(image), *(self.transform(image.crop(box)) for box in boxes)])


@dataclass
class TaskLayout:
    """Hold what the collator needs of one task: the task, the key of its targets, and whether it takes whatever targets there
    are (`mmzoo.data.open.takes_default`)."""

    task: Task
    target: str
    default: bool = True


@dataclass
class Collator:
    """Collate examples into a batch.

    The batch has by encoder (``encoders``) ``inputs`` [inputs, ...] with each distinct input (image, clip) once, ``index`` from
    example to input ([batch], or [batch, inputs] with -1 for none if an example has several or lacks its input), and ``lengths``
    [inputs] if the encoder has ``variable_length``; with ``features``, precomputed features take the place of ``inputs``. By task
    (``tasks``) it has the task's tensors and, if some examples have no target of it, ``rows``, the examples that have one. A task
    whose text is that of an earlier one has that task's name (``text_of``) in place of ``ids`` and ``mask``. For an encoder
    without input no input is opened, and the one input of a batch is empty.

    It runs in data workers, so it has no weights of the encoders or the language model. Problems with inputs are stored in the
    batch (``bad``: pairs of id and message), and the main process raises or counts them. ``kept`` holds the places of the other
    examples, which are those of the batch.

    Args:
        pipelines: by encoder.
        blank: the modalities whose inputs are blanked.
        optional: whether an example may lack an input.
        features: precomputed features, by encoder.
        skip_bad: treat an example that a task refuses, such as one whose text is too long, as one whose input cannot be read.
    """

    tasks: Mapping[str, TaskLayout]
    text: TextContext
    pipelines: Mapping[str, InputPipeline]
    training: bool = True
    blank: Collection[str] = ()
    optional: bool = False
    features: dict[str, FeatureSource] = field(default_factory=dict)
    skip_bad: bool = False

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        problems: dict[int, str] = {}  # by the place of the example
        try:
            problems = self._refused_by_tasks(examples) if self.skip_bad else {}
            opened = {name: _Opened(self, name) for name in self.pipelines}
            for i, example in enumerate(examples):
                try:
                    placed = {} if i in problems else {name: inputs.place(example) for name, inputs in opened.items()}
                except BadInput as error:
                    problems[i] = str(error)
                for name, row in placed.items() if i not in problems else ():
                    opened[name].index.append(row)
            kept = [i for i in range(len(examples)) if i not in problems]
            batch: dict[str, Any] = {"names": [examples[i].id for i in kept], "kept": kept}
            if kept:
                batch["encoders"] = {name: inputs.batch() for name, inputs in opened.items()}
                batch["tasks"] = self._collate_tasks([examples[i] for i in kept])
        except MmzooError as error:  # an exception from a worker process would lose its type
            batch = {"error": (type(error), str(error))}
        return {**batch, "bad": [(examples[i].id, problem) for i, problem in sorted(problems.items())]}

    def _refused_by_tasks(self, examples: Sequence[Example]) -> dict[int, str]:
        """Return why a task refuses an example, by its place. Inputs are not opened."""
        with suppress(DataError):
            self._collate_tasks(examples)
            return {}
        problems = {}
        for i, example in enumerate(examples):
            try:
                self._collate_tasks([example])
            except DataError as error:
                problems[i] = str(error).removeprefix(f"example {example.id}: ")
        return problems

    def _collate_tasks(self, examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
        batches: dict[str, dict[str, Any]] = {}
        for name, layout in self.tasks.items():
            own = [example.for_task(layout.target, default=layout.default) for example in examples]
            rows = list(range(len(own)))
            if self.training and not layout.default:
                rows = [i for i in rows if own[i].targets]
                if not rows:
                    continue
            chosen = [own[i] for i in rows]
            batch: dict[str, Any] = layout.task.collate(chosen, self.text, training=self.training)
            # The texts of a task that compares inputs with texts hold no inputs.
            for ids, example in zip(() if layout.task.needs_input else batch.get("ids", ()), chosen, strict=False):
                check_placeholders(ids.tolist(), self.text, example)
            if len(rows) < len(examples):
                batch["rows"] = torch.tensor(rows)
            shareable = {other: earlier for other, earlier in batches.items() if not self.tasks[other].task.gathers}
            batches[name] = _share_text(batch, shareable)
        return batches


def _share_text(batch: dict[str, Any], earlier: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a task's batch without its text if an earlier task has the same, so that the language model reads it once."""

    def same(name: str, other: dict[str, Any]) -> bool:
        one, two = batch.get(name), other.get(name)
        return torch.equal(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else one is two

    for name, other in earlier.items():
        if "ids" in other and all(same(key, other) for key in TEXT):
            return {**{key: value for key, value in batch.items() if key not in TEXT}, "text_of": name}
    return batch


class _Opened:
    """Hold the distinct inputs of one encoder in a batch; ``index`` has a row for each example."""

    def __init__(self, collator: Collator, name: str) -> None:
        self.pipeline, self.features = collator.pipelines[name], collator.features.get(name)
        self.blank = self.pipeline.modality in collator.blank
        self.optional = collator.optional
        self.inputs: list[Any] = []
        self.index: list[list[int]] = []
        self.position: dict[Hashable, int] = {}

    def place(self, example: Example) -> list[int]:
        """Return the positions of an example's inputs, which are opened if they are new; none if they are missing.

        Raises:
            BadInput: one cannot be read, or is missing and must not be. FeatureCacheError: its features are missing.
        """
        if self.pipeline.transform is None:
            return [self._place(None)]
        sources = example.of(self.pipeline.modality)
        if not sources and not self.optional:
            raise self.pipeline.reader.error(f"there is no {self.pipeline.modality}")
        return [self._place(source) for source in sources]

    def _place(self, source: Any) -> int:
        key = "blank" if self.blank or self.pipeline.transform is None else input_key(source)
        if key not in self.position:
            if self.features is not None:
                self.inputs.append(self.features.of(source, key))
            else:
                self.inputs.append(self.pipeline.blank() if self.blank else self.pipeline.open(source))
            self.position[key] = len(self.inputs) - 1
        return self.position[key]

    def batch(self) -> dict[str, Tensor]:
        """Return the encoder's tensors; only an ``index`` of -1 if every input is missing."""
        single = all(len(row) == 1 for row in self.index)
        index = torch.tensor([row[0] for row in self.index]) if single else pad_rows(self.index, -1)
        if not self.inputs:
            return {"index": index}
        if self.features is None:
            return {**self.pipeline.batch(self.inputs), "index": index}
        return {**{name: torch.stack([each[name] for each in self.inputs]) for name in self.inputs[0]}, "index": index}


def raise_bad(batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Remove the bad inputs from a batch and return them; raise the error that a worker stored in the batch."""
    if error := batch.pop("error", None):
        raise error[0](error[1])
    return batch.pop("bad", [])


def tensors(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Return what a model computes with: ``encoders`` and ``tasks`` of a batch, with their tensors on ``device``."""
    return {key: _moved(batch[key], device) for key in ("encoders", "tasks") if key in batch}


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return {key: _moved(item, device) for key, item in value.items()} if isinstance(value, Mapping) else value
