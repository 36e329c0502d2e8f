"""Collate examples into batches that contain each distinct input once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from mmzoo.data.tokens import check_placeholders, pad_rows
from mmzoo.errors import BadInput, FeatureCacheError, MmzooError
from mmzoo.interfaces import Example, Task, TextContext
from mmzoo.modalities.identity import input_key
from mmzoo.modalities.pipeline import InputPipeline


class FeatureSource(Protocol):
    """Define a source of precomputed features. It can be pickled."""

    def of(self, source: Any, key: Hashable) -> dict[str, Tensor]:
        """Return ``feature_pooled`` [pooled_dim] of one input and, if tokens are stored, ``feature_tokens`` [tokens, dim] and
        ``feature_mask`` [tokens]. ``key`` is its `mmzoo.modalities.identity.input_key`.

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
class Collator:
    """Collate examples into a batch.

    The batch has ``inputs`` [inputs, ...] with each distinct input (image, clip) once, ``index`` from example to input ([batch],
    or [batch, inputs] with -1 for none if an example has several), ``input_lengths`` [inputs] if the encoder has
    ``variable_length``, and the task's tensors. With ``features``, precomputed features take the place of ``inputs``. For an
    encoder without input no input is opened, and the one input of a batch is empty.

    It runs in data workers, so it has no weights of the encoder or the language model. Problems with inputs are stored in the
    batch (``bad``: pairs of id and message), and the main process raises or counts them.
    """

    task: Task
    text: TextContext
    pipeline: InputPipeline
    training: bool = True
    blank: bool = False
    features: FeatureSource | None = None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        opened: list[Any] = []
        index: list[list[int]] = []
        readable: list[Example] = []
        bad: list[tuple[str, str]] = []
        position: dict[Hashable, int] = {}
        for example in examples:
            try:
                index.append([self._place(each, opened, position) for each in example.inputs(self.pipeline.modality)])
                readable.append(example)
            except BadInput as error:
                bad.append((example.id, str(error)))
            except FeatureCacheError as error:  # an exception from a worker process would lose its type
                return {"bad": bad, "error": (type(error), str(error))}
        batch: dict[str, Any] = {"bad": bad, "names": [example.id for example in readable]}
        if readable:
            if self.features is None:
                batch |= self.pipeline.batch(opened)
            else:
                batch |= {name: torch.stack([each[name] for each in opened]) for name in opened[0]}
            several = max(len(row) for row in index) > 1
            batch["index"] = pad_rows(index, -1) if several else torch.tensor([row[0] for row in index])
            try:
                batch.update(self.task.collate(readable, self.text, training=self.training))
                for row, example in zip(batch.get("ids", ()), readable, strict=False):
                    check_placeholders(row.tolist(), self.text, len(example.inputs(self.pipeline.modality)), example.id)
            except MmzooError as error:
                batch["error"] = (type(error), str(error))
        return batch

    def _place(self, source: Any, opened: list[Any], position: dict[Hashable, int]) -> int:
        """Return the index of the input in ``opened``, and open it if it is new."""
        key = "blank" if self.blank or self.pipeline.transform is None else input_key(source)
        if key not in position:
            if self.features is not None:
                opened.append(self.features.of(source, key))
            else:
                opened.append(self.pipeline.blank() if self.blank else self.pipeline.open(source))
            position[key] = len(opened) - 1
        return position[key]


def raise_bad(batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Remove the bad inputs from a batch and return them; raise the error that a worker stored in the batch."""
    if error := batch.pop("error", None):
        raise error[0](error[1])
    return batch.pop("bad", [])


def tensors(batch: dict[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors of a batch, moved to ``device``."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}
