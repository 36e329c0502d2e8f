"""Multiply by large frozen matrices on a CPU, in training, with oneDNN, which packs each matrix once.

torch multiplies float32 matrices by the BLAS that it was built with, often MKL, which on some processors is less than half as
fast as oneDNN (``python -m benchmarks clipcap`` measures the gain). A frozen matrix can be packed in advance, for both
passes, since only the gradient of the layer's input is wanted. The mathematics is the same; sums of floats may come in another
order.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from mmzoo_transformers.private_names import HAS_ONEDNN, multiply, pack_matrix, version_of

WORTH = 1 << 18  # elements of a matrix; for a smaller one the check costs more than it saves

# A matrix's version and address, and the matrix packed for the forward and the backward pass.
Packed = tuple[int, int, Tensor, Tensor]
_packed: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


class FrozenLinear(nn.Linear):
    """Replace a linear layer; ``shared[0]`` is true while the model is in training."""

    shared: list[bool]

    def forward(self, input: Tensor) -> Tensor:
        return product(self, input, self.weight) if serves(self, input) else super().forward(input)


class FrozenConv1D(Conv1D):
    """Replace GPT-2's linear layer, whose matrix is [in, out]."""

    shared: list[bool]

    def forward(self, x: Tensor) -> Tensor:
        return product(self, x, self.weight.t()) if serves(self, x) else super().forward(x)


def prepare(model: nn.Module, training: list[bool]) -> None:
    """Make `FrozenLinear` and `FrozenConv1D` of the large linear layers, in place; ``training[0]`` turns them on.

    Weights and their names stay as they are.
    """
    for module in model.modules() if HAS_ONEDNN else ():
        kind = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}.get(type(module))
        if kind is not None and module.weight.numel() >= WORTH:
            module.__class__ = kind
            module.shared = training  # type: ignore[assignment]


def serves(layer: Any, inputs: Tensor) -> bool:
    """Return whether the layer is frozen, in training, and in float32 on a CPU."""
    weight, bias = layer.weight, layer.bias
    return (
        layer.shared[0]
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and weight.dtype == inputs.dtype == torch.float32
        and weight.device.type == inputs.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(layer: nn.Module, inputs: Tensor, matrix: Tensor) -> Tensor:
    """Return ``inputs`` [..., in] times ``matrix`` [out, in], plus the layer's bias: [..., out]."""
    weight: Any = layer.weight
    packed = _packed.get(layer)
    if packed is None or packed[:2] != (version_of(weight), weight.data_ptr()):
        packed = _packed[layer] = (version_of(weight), weight.data_ptr(), pack_matrix(matrix), pack_matrix(matrix.t()))
    return _Product.apply(inputs, packed[2], packed[3], layer.bias)


class _Product(torch.autograd.Function):
    """Multiply by the matrix forward, and the gradient by its transpose backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return _multiply(inputs, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _multiply(gradient, ctx.transposed, None), None, None, None


def _multiply(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    return multiply(rows, packed, bias).unflatten(0, inputs.shape[:-1])
