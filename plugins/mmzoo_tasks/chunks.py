"""Compute the cross-entropy of tokens a few rows at a time, so that the logits of a whole batch, [tokens, vocab], are never in
memory.

Where the output layer is not trained, the gradient of each row's loss depends on that row only and can be computed with the
loss; only it is kept. (The idea of Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models,
https://arxiv.org/abs/2411.09009.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmzoo.api import LanguageModel

# Bytes of logits at a time: on a CPU so few that the allocator uses the same memory again.
BYTES = {"cpu": 24 << 20}
OTHERS = 256 << 20  # on other devices


def losses(logits: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Return the loss of each token, [tokens], with gradients for ``hidden`` only: nothing in ``logits`` is trained.

    Args:
        logits: [rows, dim] to [rows, vocab].
        hidden: [tokens, dim]. labels: [tokens], long.
    """
    rows = max(1, BYTES.get(hidden.device.type, OTHERS) // (4 * vocab_size))
    return _Losses.apply(hidden, labels, logits, rows)


def apply_to(language_model: LanguageModel) -> bool:
    """Return whether nothing after the blocks of a language model is trained, so that its logits need no gradients of weights."""
    if not torch.is_grad_enabled():
        return True
    blocks = {id(p) for block in language_model.blocks() for p in block.parameters()}
    return all(id(p) in blocks for p in language_model.parameters() if p.requires_grad)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor], rows: int) -> Tensor:
        losses, gradients = [], []
        for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part = part.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = F.cross_entropy(logits(part).float(), wanted, reduction="none")
            if ctx.needs_input_grad[0]:
                gradients.append(torch.autograd.grad(loss, part, torch.ones_like(loss))[0])
            losses.append(loss.detach())
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (own,) = ctx.saved_tensors
        return own * gradient.unsqueeze(1).to(own.dtype), None, None, None
