"""Read the header of a safetensors file: the names, types and shapes of its tensors, without loading any of them.

The safetensors library (https://github.com/huggingface/safetensors) validates it: tensors must fill the file without overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mmzoo.common.sanitize import one_line, short_repr
from mmzoo.errors import CheckpointError

MAX_HEADER = 16 << 20  # bytes; the library allows 100 MB, which take 20 s and 1.5 GB of memory to parse
MAX_RANK = 16
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Hold the type and shape of a tensor in a file; ``dtype`` is safetensors' own name, such as ``"F32"``."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: str | Path) -> dict[str, StoredTensor]:
    """Return the type and shape of each tensor of a safetensors file, by name. No tensor is loaded.

    A `CheckpointError` is raised for a long or invalid header, and for a type or a number of dimensions that no model has.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if MAX_HEADER < length < Path(path).stat().st_size:
            raise ValueError(f"its header is {length} bytes long; {MAX_HEADER} are allowed")
        with safe_open(path, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (it cannot be iterated)
            return {name: _checked(name, piece.get_dtype(), piece.get_shape()) for name, piece in slices.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a valid safetensors file: {one_line(error)}") from None


def _checked(name: str, dtype: str, shape: list[int]) -> StoredTensor:
    if dtype not in DTYPES:
        raise ValueError(f"tensor {short_repr(name)} is of type {dtype}; allowed are {', '.join(DTYPES)}")
    if len(shape) > MAX_RANK:
        raise ValueError(f"tensor {short_repr(name)} has {len(shape)} dimensions; {MAX_RANK} are allowed")
    return StoredTensor(dtype, tuple(shape))
