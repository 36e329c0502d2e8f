"""Examples, the data sets that hold them, and batches. A data set gives `Example` objects; a `Collator` makes
batches of them, in which each distinct image stands once."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel
from torch import Tensor

from mmzoo.errors import BadImage, BadRecipe, DataError, FeatureCacheError, MmzooError, UnknownName
from mmzoo.interfaces import PLACEHOLDER, Example, Options, Task, TextContext
from mmzoo.plugins import host
from mmzoo.recipe import Part
from mmzoo.registry import split_use
from mmzoo.resolve import resolve
from mmzoo.text import check_placeholders, pad


class Dataset(ABC):
    """A source of examples. ``Options`` is its schema; a subclass is registered as an entry of kind ``dataset``."""

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
            DataError: it is empty or lacks a column; `BadImage` comes only when an image is opened.
        """


def open_dataset(spec: str | Part | Dataset) -> Dataset:
    """A data set by name (``easy-vqa``), by path (a folder, .jsonl, .csv or .parquet file), or by ``org/name`` id.

    Raises:
        UnknownName: nothing has that name.
        BadRecipe: wrong options.
    """
    if isinstance(spec, Dataset):
        return spec
    part = spec if isinstance(spec, Part) else Part.of(spec, "dataset")
    name, _, _ = split_use(part.use)
    known = {entry.name for entry in host().registry.entries("dataset")}
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
        DataError: no such split, or no example in it.
    """
    splits = dataset.splits()
    if split not in splits:
        raise DataError(f"there is no split '{split}'; there are: {', '.join(splits) or 'none'}")
    examples = dataset.load(split)
    if isinstance(examples, Sequence) and not len(examples):
        raise DataError(f"split '{split}' is empty; training and evaluation need at least one example")
    return examples


# Images


def open_image(source: Any) -> Image.Image:
    """A picture as RGB: from a path, a ``file://`` URL, a PIL image, an array, a tensor, bytes, or a mapping with
    ``bytes`` or ``path`` (as `datasets` stores them). Transparent pixels become white; EXIF rotation is applied.

    Arrays are [height, width], [height, width, 1 | 3 | 4] or [3, height, width]; integers 0-255, floats 0-1.

    Raises:
        BadImage: it is missing, truncated, or no image.
    """
    if source is None:
        raise BadImage("there is no image")
    name = repr(str(source))[:200] if isinstance(source, str | Path) else f"a {type(source).__name__}"
    try:
        image = _open(source)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise BadImage(f"image {name} does not exist") from None
    except UnidentifiedImageError:
        raise BadImage(f"image {name} is not a picture that can be read") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise BadImage(f"image {name} cannot be read: {error}") from None


def _open(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, dict) and ("bytes" in source or "path" in source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    if isinstance(source, str) and "://" in source:
        url = urlparse(source)
        if url.scheme != "file":
            raise ValueError("only file:// URLs are opened; download it first")
        source = url2pathname(url.path)
    if isinstance(source, str | os.PathLike):
        return Image.open(Path(source).expanduser())
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError("an image is a path, a file:// URL, a PIL image or an array")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is not [height, width] or [height, width, 3]")
    if not array.size:
        raise ValueError(f"an array of shape {array.shape} holds no pixel")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError("a float array must be finite and in [0, 1]")
        array = (array * 255).round()
    elif array.dtype == bool:
        array = array * np.uint8(255)
    elif not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise ValueError(f"an array of type {array.dtype} must hold integers from 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 257).convert("L")
    return image.convert("RGB")


def image_key(source: Any) -> Hashable:
    """Equal for two examples that hold the same picture or pictures: by path, else by content."""
    if isinstance(source, list | tuple):
        return tuple(image_key(each) for each in source)
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str | Path):
        return str(source)
    # Neither the bytes, which the key would keep alive, nor the identity, which a picture that is made when it is
    # asked for leaves to the next one.
    return content_digest(source)


def content_digest(source: Any) -> bytes:
    """The sha256 of a picture: of its file's bytes, or of its pixels if it is only in memory."""
    return hashlib.sha256(_content(source)).digest()


# Batches

BLANK_CANVAS = (64, 64)


class FeatureSource(Protocol):
    """Features that were computed beforehand. Picklable."""

    def of(self, image: Any, key: Hashable) -> dict[str, Tensor]:
        """``feature_pooled`` [pooled_dim], and where they are kept ``feature_tokens`` [tokens, dim] and ``feature_mask``
        [tokens], of an image whose `image_key` is ``key``.

        Raises:
            BadImage: it cannot be read. FeatureCacheError: its features are not there, or are damaged.
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
    """Examples to a batch: ``inputs`` [images, ...] with each distinct picture once, ``index`` from example to picture, and
    what the task adds. ``index`` is [batch], or [batch, images] with -1 for none where an example has several images.
    With ``features``, what it gives of each picture stands in the place of ``inputs``.

    Without a ``transform`` no image is opened, and the one input of a batch is empty.

    Runs in data workers, so it holds no weights of encoder or language model. What goes wrong with an image travels
    in the batch (``bad``: pairs of id and message) and is raised, or counted, in the main process.
    """

    task: Task
    text: TextContext
    transform: Any
    training: bool = True
    blank: bool = False
    features: FeatureSource | None = None
    _blank_input: Tensor | None = field(default=None, repr=False)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        pictures: list[dict[str, Tensor]] = []
        index: list[list[int]] = []
        kept: list[Example] = []
        bad: list[tuple[str, str]] = []
        position: dict[Hashable, int] = {}
        for example in examples:
            try:
                index.append([self._place(image, pictures, position) for image in example.images])
                kept.append(example)
            except BadImage as error:
                bad.append((example.id, str(error)))
            except FeatureCacheError as error:  # a worker process would lose its type
                return {"bad": bad, "error": (type(error), str(error))}
        batch: dict[str, Any] = {"bad": bad, "names": [example.id for example in kept]}
        if kept:
            batch |= {name: torch.stack([picture[name] for picture in pictures]) for name in pictures[0]}
            several = max(len(row) for row in index) > 1
            batch["index"] = pad(index, -1) if several else torch.tensor([row[0] for row in index])
            try:
                batch.update(self.task.collate(kept, self.text, training=self.training))
                for row, example in zip(batch.get("ids", ()), kept, strict=False):
                    check_placeholders(row.tolist(), len(example.images), example.id)
            except MmzooError as error:
                batch["error"] = (type(error), str(error))
        return batch

    def _place(self, image: Any, pictures: list[dict[str, Tensor]], position: dict[Hashable, int]) -> int:
        """Where in ``pictures`` the image is, after it was opened if it is new there."""
        key = "blank" if self.blank or self.transform is None else image_key(image)
        if key not in position:
            pictures.append(self._picture(image, key))
            position[key] = len(pictures) - 1
        return position[key]

    def _picture(self, image: Any, key: Hashable) -> dict[str, Tensor]:
        if self.features is not None:
            return self.features.of(image, key)
        if self.transform is None:
            return {"inputs": torch.zeros(0)}
        return {"inputs": self.blank_input() if self.blank else self.transform(open_image(image))}

    def blank_input(self) -> Tensor:
        """The encoder's input for no image at all: zeros, which is the mean picture after normalisation."""
        if self._blank_input is None:
            self._blank_input = torch.zeros_like(self.transform(Image.new("RGB", BLANK_CANVAS, "grey")))
        return self._blank_input


def raise_bad(batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Take the bad images out of a batch, and raise an error that travelled in it."""
    if error := batch.pop("error", None):
        raise error[0](error[1])
    return batch.pop("bad", [])


def tensors(batch: dict[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a batch, on ``device``."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of ``size`` examples; the last may be shorter."""
    group: list[Example] = []
    for example in examples:
        group.append(example)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def paired(image: Any, text: Any, *, sees: bool = True) -> tuple[list[tuple[Any, Any]], bool]:
    """Images and texts, one or many, to pairs; the second value tells whether a list was given. What does not ``see`` can do
    without images.

    One of either serves many of the other. A text is a string, None, or a conversation (a list of mappings). Several images of
    one text are a list in the list, or, for a single text that has so many placeholders, the list itself.

    Raises:
        DataError: no image, another type of text, or lists of different lengths.
    """
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        image = list(image)
    if image is None and sees:
        raise DataError("an image is needed: a path, a file:// URL, a PIL image, an array, or a list of them")
    one_text = not isinstance(text, list | tuple) or _is_conversation(text)
    one_image = not isinstance(image, list | tuple)
    if one_text and not one_image and _placeholders(text) > 1 and not any(isinstance(each, list | tuple) for each in image):
        image, one_image = list(image), True
    images: list[Any] = [image] if one_image else list(image)
    texts: list[Any] = [text] if one_text else list(text)
    many = not (one_text and one_image)
    if one_image:
        images *= len(texts)
    elif one_text:
        texts *= len(images)
    if len(images) != len(texts):
        raise DataError(f"{len(images)} images and {len(texts)} texts; give one of either, or as many of both")
    for item in texts:
        if not (item is None or isinstance(item, str) or _is_conversation(item)):
            raise DataError(f"a text must be a string, not {type(item).__name__}")
    return list(zip(images, texts, strict=True)), many


def _is_conversation(text: Any) -> bool:
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(turn, Mapping) for turn in text)


def _placeholders(text: Any) -> int:
    turns = [str(turn.get("content")) for turn in text] if _is_conversation(text) else [text or ""]
    return sum(turn.count(PLACEHOLDER) for turn in turns)


def fingerprint(examples: Iterable[Example]) -> str:
    """A digest of every text, target and picture (its bytes; of an image that is only in memory, its pixels), in order.

    Two sets with one fingerprint hold the same data, wherever their files lie.
    """
    digest = hashlib.sha256()
    pictures: dict[Hashable, bytes] = {}
    for example in examples:
        key = image_key(example.image)
        if key not in pictures:
            pictures[key] = b"".join(content_digest(image) for image in example.images)
        for text in (example.text, *example.targets):
            data = text.encode()
            digest.update(len(data).to_bytes(4, "big") + data)
        digest.update(b"|" + pictures[key])
    return digest.hexdigest()


def _content(source: Any) -> bytes:
    if source is None:
        return b""
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source
    try:
        if isinstance(source, str | Path) and "://" not in str(source):
            return Path(source).expanduser().read_bytes()
        image = open_image(source)
        return repr(image.size).encode() + image.tobytes()
    except (OSError, BadImage):
        return b"unreadable"


def dataset_part(text: str | Part | Dataset, sets: dict[str, Any]) -> str | Part | Dataset:
    """A data set's name with options laid over it."""
    if not sets:
        return text
    if isinstance(text, Dataset):
        raise BadRecipe("options are given where a data set is named, not where an object is")
    part = Part.of(text, "dataset")
    return part.with_options(**sets)
