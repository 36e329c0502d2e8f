"""Products with large frozen matrices on a CPU, in training: by oneDNN, with each matrix laid out for it once.

torch multiplies float32 matrices by the BLAS that it was built with, often MKL, which on some processors is less than half as
quick as oneDNN (``python -m benchmarks clipcap`` shows what it comes to). A frozen matrix can be laid out beforehand, for both
passes, since only the gradient of what goes in is wanted. The mathematics is the same; sums of floats may come in another order.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

WORTH = 1 << 18  # elements of a matrix; a smaller one is multiplied before it is looked for
# What inductor, torch's compiler, calls for a frozen linear layer.
OPS = getattr(torch.ops, "mkldnn", None)
HAS = torch.backends.mkldnn.is_available() and all(hasattr(OPS, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))

Laid = tuple[int, int, Tensor, Tensor]
_laid: WeakKeyDictionary[nn.Module, Laid] = WeakKeyDictionary()  # a matrix's version and place, and it laid out for both passes


class FrozenLinear(nn.Linear):
    """A linear layer; ``shared[0]`` says that the model is in training."""

    shared: list[bool]

    def forward(self, input: Tensor) -> Tensor:
        return product(self, input, self.weight) if serves(self, input) else super().forward(input)


class FrozenConv1D(Conv1D):
    """GPT-2's linear layer, whose matrix is [in, out]."""

    shared: list[bool]

    def forward(self, x: Tensor) -> Tensor:
        return product(self, x, self.weight.t()) if serves(self, x) else super().forward(x)


def prepare(model: nn.Module, training: list[bool]) -> None:
    """Make `FrozenLinear` and `FrozenConv1D` of the large linear layers; ``training[0]`` turns them on. No weight moves."""
    for module in model.modules() if HAS else ():
        kind = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}.get(type(module))
        if kind is not None and module.weight.numel() >= WORTH:
            module.__class__ = kind
            module.shared = training  # type: ignore[assignment]


def serves(layer: Any, given: Tensor) -> bool:
    """Whether the layer is frozen, in training, and in float32 on a CPU."""
    weight, bias = layer.weight, layer.bias
    return (
        layer.shared[0]
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and weight.dtype == given.dtype == torch.float32
        and weight.device.type == given.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(layer: nn.Module, given: Tensor, matrix: Tensor) -> Tensor:
    """``given`` [..., in] times ``matrix`` [out, in], plus the layer's bias."""
    weight: Any = layer.weight
    laid = _laid.get(layer)
    if laid is None or laid[:2] != (weight._version, weight.data_ptr()):
        packed = [OPS._reorder_linear_weight(each.detach().contiguous(), None) for each in (matrix, matrix.t())]
        laid = _laid[layer] = (weight._version, weight.data_ptr(), packed[0], packed[1])
    return _Product.apply(given, laid[2], laid[3], layer.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, forth: Tensor, back: Tensor, bias: Tensor | None) -> Tensor:
        ctx.back = back
        return _multiplied(given, forth, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _multiplied(gradient, ctx.back, None), None, None, None


def _multiplied(given: Tensor, laid: Tensor, bias: Tensor | None) -> Tensor:
    rows = given.reshape(-1, given.shape[-1]).contiguous()
    return OPS._linear_pointwise(rows, laid, bias, "none", [], "").unflatten(0, given.shape[:-1])
