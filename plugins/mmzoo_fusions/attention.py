"""Provide multi-head attention under a mask, and hooks on the states before a block, to the other modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import DoesNotFit


def check_heads(heads: int, dim: int) -> None:
    """Refuse a number of heads that does not divide the channels.

    Raises:
        DoesNotFit: naming the numbers that do.
    """
    if dim % heads:
        fits = [n for n in range(1, min(dim, 64) + 1) if dim % n == 0]
        raise DoesNotFit(f"fusion.heads: {heads} heads do not divide dim {dim}; these do: {fits}")


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, visible: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) with ``heads`` heads.

    Args:
        query: [batch, positions, width]. key, value: [batch, tokens, width].
        visible: [batch, positions or 1, tokens], what each position may attend to; None if all. A position that may attend to
            no token gets zeros.

    Returns:
        [batch, positions, width].
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    if visible is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    has_tokens = visible.any(-1, keepdim=True)
    mask = (visible | ~has_tokens).unsqueeze(1)  # a softmax over no tokens is NaN
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2) * has_tokens


def before(block: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
    """Replace the input states [batch, positions, dim] of ``block`` by ``change(states)``, of that shape and type; None keeps
    them.

    Raises:
        DoesNotFit: when the block runs, if its first argument is not such a tensor.
    """
    first = next(iter(inspect.signature(block.forward).parameters), "")

    def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden = args[0] if args else kwargs.get(first)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise DoesNotFit(
                f"deep fusion cannot attach to a {type(block).__name__}: its first argument is not [batch, positions, dim]; "
                "choose an early or late fusion, or another language model"
            )
        changed = change(hidden)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, first: changed})

    block.register_forward_pre_hook(hook, with_kwargs=True)
