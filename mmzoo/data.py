"""Examples, the data sets that hold them, and batches. A data set gives `Example` objects; a `Collator` makes
batches of them, in which each distinct input stands once."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from mmzoo.errors import BadInput, BadRecipe, DataError, FeatureCacheError, MmzooError, UnknownName
from mmzoo.interfaces.example import Example, placeholder
from mmzoo.interfaces.part import Options
from mmzoo.interfaces.task import Task, TextContext
from mmzoo.modalities.identity import content_digest, input_key
from mmzoo.modalities.image import open_image as open_image  # where it was first, and people look for it
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.modalities.reader import plural
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.entries import split_use
from mmzoo.registry.isolation import attribute_errors_to
from mmzoo.registry.manager import plugin_manager
from mmzoo.text import check_placeholders, pad


class Dataset(ABC):
    """A source of examples. ``Options`` is its schema; a subclass is registered as an entry of kind ``dataset``.

    Class attributes:
        modality: that of its examples' inputs, for suggestions where another is needed.
    """

    Options: ClassVar[type[BaseModel]] = Options
    modality: ClassVar[str] = "image"

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of its splits, e.g. ``["train", "test"]``."""

    @abstractmethod
    def load(self, split: str) -> Sequence[Example] | Iterable[Example]:
        """The examples of a split: a sequence, or an iterable (started anew by each ``iter``) if it is streamed.

        Raises:
            DataError: it is empty or lacks a column; `BadInput` comes only when an input is opened.
        """


def open_dataset(spec: str | PartConfig | Dataset) -> Dataset:
    """A data set by name (``easy-vqa``), by path (a folder, .jsonl, .csv or .parquet file), or by ``org/name`` id.

    Raises:
        UnknownName: nothing has that name.
        BadRecipe: wrong options.
    """
    if isinstance(spec, Dataset):
        return spec
    part = spec if isinstance(spec, PartConfig) else PartConfig.of(spec, "dataset")
    name, _, _ = split_use(part.use)
    known = {entry.name for entry in plugin_manager().registry.entries("dataset")}
    if name not in known:
        if os.path.exists(os.path.expanduser(part.use)) and "files" in known:
            part = part.with_options(use="files", variant=part.use)  # as an option, since a path may hold '@'
        elif _looks_like_path(part.use):
            raise DataError(f"data set '{part.use}': there is no such file or folder")
        elif "/" in part.use and "datasets" in known:
            part = part.with_options(use=f"datasets:{part.use}")
    try:
        found = resolve("dataset", part)
    except UnknownName as error:
        raise UnknownName(f"{error}\nA data set is a registered name, a path, or an id such as 'org/name'.") from None
    return found.cls(found.options)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or Path(text).suffix in {".jsonl", ".json", ".csv", ".parquet"}


def load_split(dataset: Dataset, split: str) -> Sequence[Example] | Iterable[Example]:
    """A split that exists and is not empty.

    Raises:
        DataError: no such split, or no example in it. PluginBroken: the data set's own code fails.
    """
    with attribute_errors_to(f"data set '{type(dataset).__name__}' cannot be loaded"):
        return _split(dataset, split)


def _split(dataset: Dataset, split: str) -> Sequence[Example] | Iterable[Example]:
    splits = dataset.splits()
    if split not in splits:
        raise DataError(f"there is no split '{split}'; there are: {', '.join(splits) or 'none'}")
    examples = dataset.load(split)
    if isinstance(examples, Sequence) and not len(examples):
        raise DataError(f"split '{split}' is empty; training and evaluation need at least one example")
    return examples


# Batches


class FeatureSource(Protocol):
    """Features that were computed beforehand. Picklable."""

    def of(self, source: Any, key: Hashable) -> dict[str, Tensor]:
        """``feature_pooled`` [pooled_dim], and where they are kept ``feature_tokens`` [tokens, dim] and ``feature_mask``
        [tokens], of an input whose `mmzoo.modalities.identity.input_key` is ``key``.

        Raises:
            BadInput: it cannot be read. FeatureCacheError: its features are not there, or are damaged.
        """


@dataclass(frozen=True)
class Tiled:
    """A picture to [1 + grid ** 2, channels, height, width]: the whole, then its pieces row by row, each through ``transform``
    (LLaVA-NeXT, https://llava-vl.github.io/blog/2024-01-30-llava-next/)."""

    transform: Any
    grid: int

    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        xs, ys = ([round(size * i / self.grid) for i in range(self.grid + 1)] for size in (width, height))
        boxes = [
            (xs[j], ys[i], max(xs[j + 1], xs[j] + 1), max(ys[i + 1], ys[i] + 1))
            for i in range(self.grid)
            for j in range(self.grid)
        ]
        return torch.stack([self.transform(image), *(self.transform(image.crop(box)) for box in boxes)])


@dataclass
class Collator:
    """Examples to a batch: ``inputs`` [inputs, ...] with each distinct input (picture, clip) once, ``index`` from example to
    input, and what the task adds. ``index`` is [batch], or [batch, inputs] with -1 for none where an example has several.
    Where the encoder's inputs vary, ``input_lengths`` [inputs] says how much of each is real. With ``features``, what it gives
    of each input stands in the place of ``inputs``.

    For an encoder that looks at nothing no input is opened, and the one of a batch is empty.

    Runs in data workers, so it holds no weights of encoder or language model. What goes wrong with an input travels
    in the batch (``bad``: pairs of id and message) and is raised, or counted, in the main process.
    """

    task: Task
    text: TextContext
    intake: InputPipeline
    training: bool = True
    blank: bool = False
    features: FeatureSource | None = None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        opened: list[Any] = []
        index: list[list[int]] = []
        kept: list[Example] = []
        bad: list[tuple[str, str]] = []
        position: dict[Hashable, int] = {}
        for example in examples:
            try:
                index.append([self._place(each, opened, position) for each in example.inputs(self.intake.modality)])
                kept.append(example)
            except BadInput as error:
                bad.append((example.id, str(error)))
            except FeatureCacheError as error:  # a worker process would lose its type
                return {"bad": bad, "error": (type(error), str(error))}
        batch: dict[str, Any] = {"bad": bad, "names": [example.id for example in kept]}
        if kept:
            if self.features is None:
                batch |= self.intake.batch(opened)
            else:
                batch |= {name: torch.stack([each[name] for each in opened]) for name in opened[0]}
            several = max(len(row) for row in index) > 1
            batch["index"] = pad(index, -1) if several else torch.tensor([row[0] for row in index])
            try:
                batch.update(self.task.collate(kept, self.text, training=self.training))
                for row, example in zip(batch.get("ids", ()), kept, strict=False):
                    check_placeholders(row.tolist(), self.text, len(example.inputs(self.intake.modality)), example.id)
            except MmzooError as error:
                batch["error"] = (type(error), str(error))
        return batch

    def _place(self, source: Any, opened: list[Any], position: dict[Hashable, int]) -> int:
        """Where in ``opened`` the input is, after it was opened if it is new there."""
        key = "blank" if self.blank or self.intake.transform is None else input_key(source)
        if key not in position:
            opened.append(self._open(source, key))
            position[key] = len(opened) - 1
        return position[key]

    def _open(self, source: Any, key: Hashable) -> Any:
        if self.features is not None:
            return self.features.of(source, key)
        return self.intake.blank() if self.blank else self.intake.open(source)


def raise_bad(batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Take the bad inputs out of a batch, and raise an error that travelled in it."""
    if error := batch.pop("error", None):
        raise error[0](error[1])
    return batch.pop("bad", [])


def tensors(batch: dict[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a batch, on ``device``."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of ``size`` examples; the last may be shorter.

    Raises:
        BadRecipe: the size is no whole number from 1.
    """
    if not isinstance(size, int) or size < 1:
        raise BadRecipe(f"batch_size: must be a whole number from 1 (got {size!r})")
    group: list[Example] = []
    for example in examples:
        group.append(example)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def paired(given: Any, text: Any, *, modality: str = "image", sees: bool = True) -> tuple[list[tuple[Any, Any]], bool]:
    """Inputs of a modality and texts, one or many, to pairs; the second value tells whether a list was given. What does not
    ``see`` can do without inputs.

    One of either serves many of the other. A text is a string, None, or a conversation (a list of mappings). Several inputs of
    one text are a list in the list, or, for a single text that has so many placeholders, the list itself.

    Raises:
        DataError: no input, another type of text, or lists of different lengths.
    """
    if modality == "image" and isinstance(given, np.ndarray | Tensor) and given.ndim == 4:
        given = list(given)
    if given is None and sees:
        if modality == "image":
            raise DataError("an image is needed: a path, a file:// URL, a PIL image, an array, or a list of them")
        raise DataError(f"{modality} is needed, as {modality}=: a path, a file:// URL, bytes, an array, or a list of them")
    one_text = not isinstance(text, list | tuple) or _is_conversation(text)
    one_input = not isinstance(given, list | tuple)
    together = one_text and not one_input and not any(isinstance(each, list | tuple) for each in given)
    if together and _placeholders(text, placeholder(modality)) > 1:
        given, one_input = list(given), True
    inputs: list[Any] = [given] if one_input else list(given)
    texts: list[Any] = [text] if one_text else list(text)
    many = not (one_text and one_input)
    if one_input:
        inputs *= len(texts)
    elif one_text:
        texts *= len(inputs)
    if len(inputs) != len(texts):
        raise DataError(f"{len(inputs)} {plural(modality)} and {len(texts)} texts; give one of either, or as many of both")
    for item in texts:
        if not (item is None or isinstance(item, str) or _is_conversation(item)):
            raise DataError(f"a text must be a string, not {type(item).__name__}")
    return list(zip(inputs, texts, strict=True)), many


def _is_conversation(text: Any) -> bool:
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(turn, Mapping) for turn in text)


def _placeholders(text: Any, mark: str) -> int:
    turns = [str(turn.get("content")) for turn in text] if _is_conversation(text) else [text or ""]
    return sum(turn.count(mark) for turn in turns)


def fingerprint(examples: Iterable[Example]) -> str:
    """A digest of every text, target and input (its file's bytes; of one that is only in memory, its pixels or values), in order.

    Two sets with one fingerprint hold the same data, wherever their files lie.
    """
    digest = hashlib.sha256()
    known: dict[Hashable, bytes] = {}

    def contents(example: Example, modality: str) -> bytes:
        inputs = example.inputs(modality)
        key = input_key(inputs)
        if key not in known:
            known[key] = b"".join(content_digest(each) for each in inputs)
        return known[key]

    for example in examples:
        for text in (example.text, *example.targets):
            data = text.encode()
            digest.update(len(data).to_bytes(4, "big") + data)
        digest.update(b"|" + contents(example, "image"))
        for modality in example.modalities:
            if modality != "image":
                digest.update(f"|{modality}|".encode() + contents(example, modality))
    return digest.hexdigest()


def dataset_part(text: str | PartConfig | Dataset, sets: dict[str, Any]) -> str | PartConfig | Dataset:
    """A data set's name with options laid over it."""
    if not sets:
        return text
    if isinstance(text, Dataset):
        raise BadRecipe("options are given where a data set is named, not where an object is")
    part = PartConfig.of(text, "dataset")
    return part.with_options(**sets)
