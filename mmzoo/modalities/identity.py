"""Tell inputs apart: keys for grouping, and digests of their content."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmzoo.errors import BadImage
from mmzoo.modalities.image import open_image
from mmzoo.modalities.reader import unwrap_mapping


def input_key(source: Any) -> Hashable:
    """Equal for two examples that hold the same input or inputs, such as a picture: by path, else by content."""
    if isinstance(source, list | tuple):
        return tuple(input_key(each) for each in source)
    source = unwrap_mapping(source)
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
    source = unwrap_mapping(source)
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
