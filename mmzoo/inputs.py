"""What goes into an encoder: how an input is opened, blanked, batched, and told from others.

A modality is a name and a `Reader`, and an encoder says both (`mmzoo.interfaces.Encoder`). The reader of images is here; that of
another modality comes with the plugin that has its encoders. `mmzoo.interfaces.Example` holds an input of each.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmzoo.errors import BadImage, BadInput

NONE = "none"  # the modality of an encoder that looks at nothing
BLANK_CANVAS = (64, 64)
# Other modalities are keywords beside these.
TAKEN = {"id", "text", "targets", "others", "prompt", "batch_size", "blank", "max_new_tokens", "stop", "chat", "options"}
PROBES = ((64, 48), (48, 80), (224, 224), (300, 200))  # sizes of pictures that stand for a transform


class Reader(ABC):
    """Opens the inputs of one modality. It can be pickled, since it runs in data workers, and holds no weights.

    Class attributes:
        error: what is raised of an input that cannot be read, a subclass of `mmzoo.errors.BadInput`.
    """

    error: ClassVar[type[BadInput]] = BadInput

    @abstractmethod
    def read(self, source: Any) -> Any:
        """What the encoder's ``transform`` takes, checked.

        Args:
            source: what an `Example` holds: a path, a ``file://`` URL, bytes, a mapping with ``bytes`` or ``path``, as `datasets`
                stores them (`file_of` finds the file of these four), or something in memory: an array, or a mapping with
                arrays. Never None.

        Raises:
            BadInput: it is missing, truncated or nothing of the kind; the message names it by `name_of`.
        """

    @abstractmethod
    def blank(self, transform: Callable[[Any], Tensor]) -> Tensor:
        """The encoder's input for nothing at all, such as silence: what the blanked control and a blind training see."""

    @abstractmethod
    def probes(self) -> Sequence[Any]:
        """A few made-up inputs as `read` gives them, always the same. A feature cache is named by what ``transform`` makes of
        them, so they should bring out what it can do: several lengths or sizes, noise. If `read` takes them too, they are what
        the conformance kit tries an encoder of a new modality with."""


def file_of(source: Any) -> Path | BytesIO | None:
    """The file that a source stands for: a path, a ``file://`` URL, bytes, or a mapping with ``bytes`` or ``path``; None if it is
    something else in memory.

    Raises:
        ValueError: another kind of URL.
    """
    source = _of_mapping(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    if isinstance(source, str) and "://" in source:
        url = urlparse(source)
        if url.scheme != "file":
            raise ValueError("only file:// URLs are opened; download it first")
        source = url2pathname(url.path)
    return Path(source).expanduser() if isinstance(source, str | os.PathLike) else None


def _of_mapping(source: Any) -> Any:
    """The bytes or path of a mapping that stands for a file; anything else as it is."""
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source) and "array" not in source:
        return source.get("bytes") or source.get("path") or source
    return source


def name_of(source: Any) -> str:
    """A source in the words of a message."""
    return repr(str(source))[:200] if isinstance(source, str | Path) else f"a {type(source).__name__}"


def is_modality(name: Any) -> bool:
    """Whether a modality can have the name."""
    return isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name) is not None and name not in TAKEN


def plural(modality: str) -> str:
    """The inputs of a modality in the words of a message: images, audio."""
    return f"{modality}s" if modality in ("image", "video") else modality


@dataclass
class Intake:
    """What becomes of an encoder's inputs before it sees them: they are read, transformed and batched. Picklable.

    ``transform`` is None for an encoder that looks at nothing; ``varies`` as `mmzoo.interfaces.Encoder` has it.
    """

    modality: str
    reader: Reader
    transform: Callable[[Any], Tensor] | None
    varies: bool = False
    _blank: Tensor | None = field(default=None, repr=False)

    def open(self, source: Any) -> Tensor:
        """One input, opened and transformed.

        Raises:
            BadInput: there is none, or it cannot be read.
        """
        if self.transform is None:
            return torch.zeros(0)
        if source is None:
            raise self.reader.error(f"there is no {self.modality}")
        return self.transform(self.reader.read(source))

    def blank(self) -> Tensor:
        """The input for nothing at all."""
        if self.transform is None:
            return torch.zeros(0)
        if self._blank is None:
            self._blank = self.reader.blank(self.transform)
        return self._blank

    def batch(self, opened: Sequence[Tensor]) -> dict[str, Tensor]:
        """``inputs`` [inputs, ...], and if they vary ``input_lengths`` [inputs]: shorter ones have zeros at their end."""
        if not self.varies:
            return {"inputs": torch.stack(list(opened))}
        lengths = torch.tensor([len(each) for each in opened])
        return {"inputs": pad_sequence(list(opened), batch_first=True), "input_lengths": lengths}


# Telling inputs apart


def input_key(source: Any) -> Hashable:
    """Equal for two examples that hold the same input or inputs, such as a picture: by path, else by content."""
    if isinstance(source, list | tuple):
        return tuple(input_key(each) for each in source)
    source = _of_mapping(source)
    if isinstance(source, str | Path):
        return str(source)
    # Neither the bytes, which the key would keep alive, nor the identity, which an input that is made when it is asked for
    # leaves to the next one.
    return content_digest(source)


def content_digest(source: Any) -> bytes:
    """The sha256 of an input: of its file's bytes, of a picture's pixels or an array's values if it is only in memory."""
    return hashlib.sha256(_content(source)).digest()


def _content(source: Any) -> bytes:
    if source is None:
        return b""
    source = _of_mapping(source)
    if isinstance(source, bytes):
        return source
    if isinstance(source, Mapping):
        return b"".join(repr(key).encode() + hashlib.sha256(_values(source[key])).digest() for key in sorted(source))
    try:
        if isinstance(source, str | Path) and "://" not in str(source):
            return Path(source).expanduser().read_bytes()
        image = open_image(source)
        return repr(image.size).encode() + image.tobytes()
    except (OSError, BadImage):
        return b"unreadable" if isinstance(source, str | Path | Image.Image) else _values(source)


def _values(source: Any) -> bytes:
    """The values of what is no picture."""
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.dtype != object:
        return f"{source.dtype.str}|{source.shape}|".encode() + np.ascontiguousarray(source).tobytes()
    try:
        return pickle.dumps(source)  # written, never read
    except Exception:  # whatever the object's own code raises
        return b"unreadable"


# Images


class ImageReader(Reader):
    """Pictures, as `open_image` opens them; a blank one is zeros, which is the mean picture after normalisation."""

    error = BadImage

    def read(self, source: Any) -> Image.Image:
        return open_image(source)

    def blank(self, transform: Callable[[Any], Tensor]) -> Tensor:
        return torch.zeros_like(transform(Image.new("RGB", BLANK_CANVAS, "grey")))

    def probes(self) -> list[Image.Image]:
        random = np.random.default_rng(0)
        return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in PROBES]


def open_image(source: Any) -> Image.Image:
    """A picture as RGB: from a path, a ``file://`` URL, a PIL image, an array, a tensor, bytes, or a mapping with
    ``bytes`` or ``path`` (as `datasets` stores them). Transparent pixels become white; EXIF rotation is applied.

    Arrays are [height, width], [height, width, 1 | 3 | 4] or [3, height, width]; integers 0-255, floats 0-1.

    Raises:
        BadImage: it is missing, truncated, or no image.
    """
    if source is None:
        raise BadImage("there is no image")
    name = name_of(source)
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
    if (file := file_of(source)) is not None:
        return Image.open(file)
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
