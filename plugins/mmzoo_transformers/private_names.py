"""Collect the private names of torch and transformers that this plugin uses; its other files must use none.

They were seen in torch 2.14.1 and transformers 5.24. `missing_names` lists those that a newer version has no more, and
tests/plugins/test_unpadded.py fails with that list. Only the two optimisations (`mmzoo_transformers.unpadded` and
`mmzoo_transformers.frozen`) can do without: they are then not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel

DispatchMode: Any = TorchDispatchMode  # sees each operation of torch
# What torch's compiler, inductor, calls for a frozen linear layer.
_ONEDNN: Any = getattr(torch.ops, "mkldnn", None)
_OPERATIONS = ("_linear_pointwise", "_reorder_linear_weight")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(hasattr(_ONEDNN, name) for name in _OPERATIONS)


def missing_names() -> list[str]:
    """Return the names of this file that the installed torch and transformers do not have; empty if they have all."""
    names: list[tuple[Any, str]] = [
        (PreTrainedConfig, "_attn_implementation"),
        (PreTrainedModel, "_supports_attention_backend"),
        (PreTrainedModel, "_is_stateful"),
        (Tensor, "_version"),
        (nn.Module(), "_modules"),
    ]
    if torch.backends.mkldnn.is_available():
        names += [(_ONEDNN, name) for name in _OPERATIONS]
    return [f"{getattr(owner, '__name__', owner)}.{name}" for owner, name in names if not hasattr(owner, name)]


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """Return the name of a configuration's attention function in `ALL_ATTENTION_FUNCTIONS`, such as ``"sdpa"``."""
    return getattr(config, "_attn_implementation", None)


def set_attention_implementation(config: PreTrainedConfig, name: str | None) -> None:
    """Choose a registered attention function, without the checks of the library's own setter, which runs for each batch."""
    config._attn_implementation = name


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """Return whether all attention of a model goes through `ALL_ATTENTION_FUNCTIONS`."""
    return bool(getattr(model, "_supports_attention_backend", False))


def is_stateful(model: PreTrainedModel) -> bool:
    """Return whether a model has a recurrent state, which sees positions in their order."""
    return bool(getattr(model, "_is_stateful", True))


def shallow_copy(module: Any, children: dict[str, nn.Module]) -> Any:
    """Return a copy of a module that shares its weights and its children, except those given by name."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_modules"] = {**module._modules, **children}
    return copied


def argument_names(operation: Any) -> list[str]:
    """Return the names of the arguments of an operation that a `DispatchMode` sees."""
    return [argument.name for argument in operation._schema.arguments]


def version_of(weight: Tensor) -> int:
    """Return how often a tensor was changed in place."""
    return weight._version


def pack_matrix(matrix: Tensor) -> Tensor:
    """Return a float32 matrix [out, in] on the CPU in the layout that `multiply` reads."""
    return _ONEDNN._reorder_linear_weight(matrix.detach().contiguous(), None)


def multiply(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product [rows, out] of ``rows`` [rows, in] and the matrix that was packed, plus ``bias`` [out]."""
    return _ONEDNN._linear_pointwise(rows, packed, bias, "none", [], "")
