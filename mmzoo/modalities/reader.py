"""What a modality is: a name, and a `Reader` that opens its inputs.

An encoder names both (`Encoder.modality`, `Encoder.reader`). The reader of images is in `mmzoo.modalities.image`; the reader of
another modality comes with the plugin that brings its encoders.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse
from urllib.request import url2pathname

from torch import Tensor

from mmzoo.errors import BadInput

NONE = "none"  # the modality of an encoder that looks at nothing
# Other modalities are keywords beside these.
TAKEN = {"id", "text", "targets", "others", "prompt", "batch_size", "blank", "max_new_tokens", "stop", "chat", "options"}


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
    source = unwrap_mapping(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    if isinstance(source, str) and "://" in source:
        url = urlparse(source)
        if url.scheme != "file":
            raise ValueError("only file:// URLs are opened; download it first")
        source = url2pathname(url.path)
    return Path(source).expanduser() if isinstance(source, str | os.PathLike) else None


def unwrap_mapping(source: Any) -> Any:
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
