"""Let each part compute in the floating-point type of its own weights, such as a language model in bfloat16 beside fusions and
tasks in float32.

What passes from one part to another takes the type of the part that reads it. Under autocast nothing is converted: that has a
type for each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmzoo.interfaces import Features


def dtype_of(part: nn.Module) -> torch.dtype | None:
    """Return the floating-point type of a part's first weight; None for a part without weights."""
    return next((p.dtype for p in part.parameters() if p.is_floating_point()), None)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Return a tensor, `Features`, or a mapping of them in a floating-point type; as it is for None or under autocast."""
    if dtype is None or value is None:
        return value
    if isinstance(value, Mapping):
        return {name: cast(each, dtype) for name, each in value.items()}
    if isinstance(value, Features):
        return value.map(lambda tensor: cast(tensor, dtype))
    if value.dtype == dtype or not value.is_floating_point() or _autocast(value):
        return value
    return value.to(dtype)


def _autocast(tensor: Tensor) -> bool:
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def hook_in_type_of(part: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook of a module that calls ``hook`` with its tensors in the type of ``part``, and returns new ones in the type of
    the module."""

    def call(module: nn.Module, *given: Any) -> Any:
        own, dtype = dtype_of(module), dtype_of(part)
        if own is None or dtype is None or own == dtype:
            return hook(module, *given)
        originals: dict[int, Tensor] = {}

        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            converted = cast(value, dtype)
            originals[id(converted)] = value
            return converted

        converted = tree_map(convert, given)
        result = hook(module, *converted)
        # What the hook passes on unchanged is as it was; ``converted`` is alive until here, so that identities are unique.
        return tree_map(lambda v: originals.get(id(v), cast(v, own)) if isinstance(v, Tensor) else v, result)

    return call
