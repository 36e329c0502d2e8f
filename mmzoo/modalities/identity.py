"""Identify inputs: keys that group equal ones, and digests of their content."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmzoo.errors import BadImage
from mmzoo.modalities.image import open_image
from mmzoo.modalities.reader import unwrap_mapping

HASH_THREADS = 8


def input_key(source: Any) -> Hashable:
    """Return a key that is equal for equal inputs: the path of a file, else a digest of the content."""
    if isinstance(source, list | tuple):
        return tuple(input_key(each) for each in source)
    source = unwrap_mapping(source)
    if isinstance(source, str | Path):
        return str(source)
    # Not the bytes, which the key would keep in memory, and not id(), which a later object may have too.
    return content_digest(source)


def content_digest(source: Any) -> bytes:
    """Return the sha256 of an input: of a file's bytes, or of the pixels of an image or the values of an array in memory."""
    return hashlib.sha256(_content(source)).digest()


def content_digests(keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
    """Return the `content_digest` of inputs by their `input_key`, reading several files at a time."""
    keys = list(keys)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        digests = pool.map(lambda key: key if isinstance(key, bytes) else content_digest(key), keys)
        return dict(zip(keys, digests, strict=True))


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
    """Return the bytes of an input that is not an image."""
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.dtype != object:
        return f"{source.dtype.str}|{source.shape}|".encode() + np.ascontiguousarray(source).tobytes()
    try:
        return pickle.dumps(source)  # only to hash it; it is never unpickled
    except Exception:  # the object's own code may raise anything
        return b"unreadable"
