"""Training without padding: the texts of a batch as one row, so that no layer computes a padded position.

Linear layers, norms and activations see the real positions alone, [1, real positions, dim]; only attention puts them back in
their rows, where it runs as before. (Unpadding: Portes et al. 2023, MosaicBERT, https://arxiv.org/abs/2312.17482, section 2.1.)
The mathematics is the same; sums of floats may come in another order, so models are used this way in training only.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "mmzoo_unpadded"
WORTH = 0.95  # of a batch's positions; with hardly any padding, moving rows about costs more than it saves


@dataclass(frozen=True)
class Rows:
    """Where the real positions of a batch stand: ``index`` [real] into ``batch * width`` padded ones, and ``inverse``
    [batch * width], the real position that stands at each padded one, the first wherever none does."""

    index: Tensor
    inverse: Tensor
    batch: int
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> Rows:
        """Those of a mask [batch, width]."""
        index = mask.flatten().nonzero().squeeze(1)
        inverse = index.new_zeros(mask.numel()).index_copy_(0, index, torch.arange(len(index), device=index.device))
        return cls(index, inverse, *mask.shape)

    def pad(self, states: Tensor) -> Tensor:
        """[real, ...] to [batch, width, ...]; at padding stands what nobody may read."""
        return _Pad.apply(states, self.index, self.inverse).unflatten(0, (self.batch, self.width))

    def unpad(self, states: Tensor) -> Tensor:
        """[batch, width, ...] to [real, ...]."""
        return states.flatten(0, 1).index_select(0, self.index)


class _Pad(torch.autograd.Function):
    """One copy forward and one backward: since padding is not read, it needs no zeros and has no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return states.index_select(0, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """transformers' own attention, on rows that are padded for it; as it is where nothing is unpadded."""
    rows: Rows | None = options.pop("mmzoo_rows", None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    # [1, heads, real, head_dim] to [batch, heads, width, head_dim]. Padding stands on the right, so a causal mask hides it.
    query, key, value = (rows.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value))
    found, weights = sdpa_attention_forward(module, query, key, value, None, **{**options, "is_causal": True})
    return rows.unpad(found).unsqueeze(0), weights


_unpadding: ContextVar[bool] = ContextVar("unpadding", default=False)


def attention_mask(*given: Any, **options: Any) -> Tensor | None:
    """The library's own mask; none where rows are unpadded: it would be as large as all positions squared."""
    return None if _unpadding.get() else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*given, **options)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)


def serves(model: PreTrainedModel) -> bool:
    """Whether a causal model can be run so: all its layers attend, to everything before, through transformers' interface."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation in ("sdpa", NAME)
        and bool(model._supports_attention_backend)
        and kinds == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "is_encoder_decoder", False)
        and not model._is_stateful
    )


def states(model: Any, embeddings: Tensor, mask: Tensor) -> Tensor | None:
    """The last hidden states [batch, positions, dim] of ``embeddings`` under a ``mask`` whose padding stands on the right, where
    they mean nothing; None if the batch has too little of it."""
    rows = Rows.of(mask)
    if len(rows.index) > WORTH * mask.numel():
        return None
    places = torch.arange(rows.width, device=mask.device).expand(rows.batch, -1)
    model.config.get_text_config()._attn_implementation = NAME
    before = _unpadding.set(True)
    try:
        out = model.base_model(
            inputs_embeds=rows.unpad(embeddings).unsqueeze(0),
            position_ids=rows.unpad(places).unsqueeze(0),
            use_cache=False,
            mmzoo_rows=rows,
        )
    finally:
        _unpadding.reset(before)
    return rows.pad(out.last_hidden_state[0])


class FusedGELU(NewGELUActivation):
    """GPT-2's activation; in training, torch's own kernel for it, which keeps one tensor for the backward pass in place of
    five. They differ by rounding."""

    def __init__(self, training: list[bool]) -> None:
        super().__init__()
        self.shared = training

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate="tanh") if self.shared[0] else super().forward(input)


def fuse_activations(model: nn.Module, training: list[bool]) -> None:
    """Put `FusedGELU` in the place of each `NewGELUActivation`; ``training[0]`` turns them on."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, FusedGELU(training))
