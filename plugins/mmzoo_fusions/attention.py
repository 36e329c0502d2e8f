"""What the fusions' layers share: attention in heads under a mask, and finding the states before a block."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import DoesNotFit


def check_heads(heads: int, dim: int) -> None:
    """Refuse a number of heads that does not divide the channels."""
    if dim % heads:
        fits = [n for n in range(1, min(dim, 64) + 1) if dim % n == 0]
        raise DoesNotFit(f"fusion.heads: {heads} heads do not divide dim {dim}; these do: {fits}")


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, visible: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) in ``heads`` parts of the channels.

    Args:
        query: [batch, positions, width]. key, value: [batch, tokens, width].
        visible: [batch, positions or 1, tokens], what each position may attend to; None if all. One that may attend to
            nothing finds zeros.

    Returns:
        [batch, positions, width].
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    if visible is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    sees = visible.any(-1, keepdim=True)
    mask = (visible | ~sees).unsqueeze(1)  # a softmax over nothing is no number
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2) * sees


def before(block: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
    """Let ``change`` turn the states [batch, positions, dim] that go into ``block`` into others of that shape and type, or
    leave them where it returns None."""
    first = next(iter(inspect.signature(block.forward).parameters), "")

    def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden = args[0] if args else kwargs.get(first)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise DoesNotFit(
                f"deep fusion cannot attach to a {type(block).__name__}: its first argument is no [batch, positions, dim]; "
                "choose an early or late fusion, or another language model"
            )
        changed = change(hidden)
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, first: changed})

    block.register_forward_pre_hook(hook, with_kwargs=True)
