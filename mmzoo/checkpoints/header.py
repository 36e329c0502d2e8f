"""The header of a safetensors file, read and checked before a byte of it is allocated or handed to a library.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, one block of data).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmzoo.common import parsing
from mmzoo.errors import CheckpointError

MAX_HEADER = 16 << 20
MAX_RANK = 16
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Stored:
    """What a file says of a tensor; ``dtype`` in the format's own names."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: str | Path) -> dict[str, Stored]:
    """The tensors of a file: no two overlap, none is out of range, and together they fill the file.

    Raises:
        CheckpointError: naming the file, and what is wrong with its header.
    """
    path = Path(path)
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > total - 8:
                raise ValueError(f"its header says it is {length} bytes long, in a file of {total}")
            if length > MAX_HEADER:
                raise ValueError(f"its header is {length} bytes long; {MAX_HEADER} are allowed")
            header = parsing.parse(file.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        return _checked(header, total - 8 - length)
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(f"{path}: is no valid safetensors file: {error}") from None


def _checked(header: dict[str, Any], size: int) -> dict[str, Stored]:
    header.pop("__metadata__", None)
    found: dict[str, Stored] = {}
    spans = []
    for name, facts in header.items():
        if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
        dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BYTES:
            raise ValueError(f"tensor {name!r} is of type {dtype!r}; there are {', '.join(BYTES)}")
        if not _counts(shape) or len(shape) > MAX_RANK:
            raise ValueError(f"tensor {name!r} has no valid shape")
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
            raise ValueError(f"tensor {name!r} lies at {offsets}, out of the {size} bytes of data")
        if (needed := math.prod(shape) * BYTES[dtype]) != offsets[1] - offsets[0]:
            raise ValueError(f"tensor {name!r} is {dtype} {shape}, {needed} bytes, and has {offsets[1] - offsets[0]}")
        spans.append((*offsets, name))
        found[name] = Stored(dtype, tuple(shape))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(f"tensor {name!r} {'overlaps another' if start < end else 'comes after a hole'} at byte {start}")
        end = stop
    if end != size:
        raise ValueError(f"{size - end} bytes after its last tensor belong to none")
    return found


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
