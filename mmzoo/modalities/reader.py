"""Define `Reader`, which opens the inputs of a modality.

An encoder states the name of its modality and its reader (`Encoder.modality`, `Encoder.reader`). The reader of images is in
`mmzoo.modalities.image`; a plugin that adds encoders of another modality also adds the reader.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from torch import Tensor

from mmzoo.errors import BadInput

NONE = "none"  # the modality of an encoder without input
# Names that no modality may have, because it becomes a keyword beside them.
TAKEN = {"id", "text", "targets", "inputs", "prompt", "task", "batch_size", "blank", "max_new_tokens", "stop", "chat", "options"}


class Reader(ABC):
    """Open the inputs of one modality. A reader can be pickled, because it runs in data workers, and has no weights.

    Class attributes:
        error: the error for an input that cannot be read, a subclass of `mmzoo.errors.BadInput`.
    """

    error: ClassVar[type[BadInput]] = BadInput

    @abstractmethod
    def read(self, source: Any) -> Any:
        """Open an input, check it, and return what the encoder's ``transform`` takes.

        Args:
            source: an input of an `Example`, never None: a path, a ``file://`` URL, bytes, or a mapping with ``bytes`` or
                ``path``, as `datasets` stores them (`file_of` finds the file of these four); or data in memory: an array, or a
                mapping with arrays.

        Raises:
            BadInput: it is missing, truncated or of another kind; the message names it with `name_of`.
        """

    @abstractmethod
    def blank(self, transform: Callable[[Any], Tensor]) -> Tensor:
        """Return the encoder's blank input, such as silence. The blanked control and training with blank inputs use it."""

    @abstractmethod
    def probes(self) -> Sequence[Any]:
        """Return a few artificial inputs of the type that `read` returns, always the same ones.

        A feature cache is keyed by the result of ``transform`` on them, so they must cover what ``transform`` depends on: several
        lengths or sizes, noise. If `read` accepts them too, the conformance kit tests encoders of a new modality with them.
        """


def file_of(source: Any) -> Path | BytesIO | None:
    """Return the path of a source, or a stream of its bytes; None for data in memory; raise `ValueError` for other URLs.

    Files are a path, a ``file://`` URL, bytes, or a mapping with ``bytes`` or ``path``.
    """
    source = unwrap_mapping(source)
    if isinstance(source, bytes):
        return BytesIO(source)
    if isinstance(source, str) and not source.strip():
        raise ValueError("its path is empty")  # pathlib takes it for the current folder
    if isinstance(source, str) and "://" in source:
        url = urlparse(source)
        if url.scheme != "file":
            raise ValueError("only file:// URLs are opened; download it first")
        source = url2pathname(url.path)
    return Path(source).expanduser() if isinstance(source, str | os.PathLike) else None


def is_missing(value: Any) -> bool:
    """Return whether a value of a table stands for none: None, NaN, NaT, pandas' NA, a blank text, or nothing but these in a
    list."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, list | tuple):
        return all(map(is_missing, value))
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float | np.generic):
        return bool(value != value)
    if isinstance(value, bytes):
        return not value
    return type(value).__name__ in ("NAType", "NaTType")  # of pandas, perhaps not installed


def unwrap_mapping(source: Any) -> Any:
    """Return the bytes or path of a mapping that represents a file; return anything else unchanged."""
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source) and "array" not in source:
        return source.get("bytes") or source.get("path") or source
    return source


def name_of(source: Any) -> str:
    """Return the name of a source for a message."""
    return repr(str(source))[:200] if isinstance(source, str | Path) else f"a {type(source).__name__}"


def is_modality(name: Any) -> bool:
    """Return whether a modality may have this name: lower case, and not a reserved keyword."""
    return isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name) is not None and name not in TAKEN


def plural(modality: str) -> str:
    """Return the plural of a modality for a message: images, audio."""
    return f"{modality}s" if modality in ("image", "video") else modality
