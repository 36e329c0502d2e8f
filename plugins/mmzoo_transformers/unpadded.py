"""Train without padding: the texts of a batch become one row, so that no layer computes a padded position.

Linear layers, norms and activations get only the real positions, [1, real positions, dim]; only attention puts them back into
their rows, where it runs as before. (Unpadding: Portes et al. 2023, MosaicBERT, https://arxiv.org/abs/2312.17482, section 2.1.)
The mathematics is the same; sums of floats may come in another order, so models run this way in training only.
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

from mmzoo_transformers import private_names

NAME = "mmzoo_unpadded"
WORTH = 0.95  # of a batch's positions; with hardly any padding, moving rows about costs more than it saves


@dataclass(frozen=True)
class RealPositions:
    """Hold where the real positions of a batch are: ``index`` [real] into the ``batch * width`` padded ones, and ``inverse``
    [batch * width], the real position at each padded one (the first real one where there is none)."""

    index: Tensor
    inverse: Tensor
    batch: int
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> RealPositions:
        """Return the real positions of a mask [batch, width]."""
        index = mask.flatten().nonzero().squeeze(1)
        inverse = index.new_zeros(mask.numel()).index_copy_(0, index, torch.arange(len(index), device=index.device))
        return cls(index, inverse, *mask.shape)

    def pad(self, states: Tensor) -> Tensor:
        """Return ``states`` [real, ...] as [batch, width, ...]; what is at padding must not be read."""
        return _Pad.apply(states, self.index, self.inverse).unflatten(0, (self.batch, self.width))

    def unpad(self, states: Tensor) -> Tensor:
        """Return ``states`` [batch, width, ...] as [real, ...]."""
        return states.flatten(0, 1).index_select(0, self.index)


class _Pad(torch.autograd.Function):
    """Pad with one copy forward and one backward: as padding is not read, it needs no zeros and has no gradient."""

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
    """Run transformers' own attention, on rows that are padded for it; without unpadded rows the call is passed on unchanged."""
    rows: RealPositions | None = options.pop("mmzoo_rows", None)
    if (marked := _marked.get()) is not None:
        marked.append(rows is not None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    # [1, heads, real, head_dim] to [batch, heads, width, head_dim]. Padding is on the right, so a causal mask hides it.
    query, key, value = (rows.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value))
    attended, weights = sdpa_attention_forward(module, query, key, value, None, **{**options, "is_causal": True})
    return rows.unpad(attended).unsqueeze(0), weights


_unpadding: ContextVar[bool] = ContextVar("unpadding", default=False)
_marked: ContextVar[list[bool] | None] = ContextVar("marked", default=None)  # of a call that asks whether all had rows


def attention_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """Return the library's own mask; None where rows are unpadded, since it would have as many entries as all positions
    squared."""
    return None if _unpadding.get() else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, **options)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)


def serves(model: PreTrainedModel) -> bool:
    """Return whether a causal model can run without padding: all its layers must attend, to everything before, through
    transformers' interface."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        private_names.attention_implementation(config) in ("sdpa", NAME)
        and private_names.takes_attention_functions(model)
        and layer_types == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "is_encoder_decoder", False)
        and not private_names.is_stateful(model)
    )


def keeps_apart(base: Any, embeddings: Tensor, mask: Tensor) -> bool:
    """Return whether texts in one row have the states that they have in rows of their own: a family may not pass the rows on to
    its attention, or may count positions in another way."""
    config = base.config.get_text_config()
    marked: list[bool] = []
    implementation, before = private_names.attention_implementation(config), _marked.set(marked)
    try:
        padded = base(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()].float()
        marked.clear()
        own = _states(base, embeddings, RealPositions.of(mask))[mask.bool()].float()
    except Exception:  # a class may take no further keywords
        return False
    finally:
        _marked.reset(before)
        private_names.set_attention_implementation(config, implementation)
    return bool(marked) and all(marked) and bool((own - padded).abs().max() <= 1e-3 * padded.abs().max())


def states(base: Any, embeddings: Tensor, mask: Tensor) -> Tensor | None:
    """Return the last hidden states [batch, positions, dim] of ``embeddings`` under a ``mask`` whose padding is on the right.

    States at padding are undefined. None if the batch has too little padding for a gain.
    """
    rows = RealPositions.of(mask)
    return None if len(rows.index) > WORTH * mask.numel() else _states(base, embeddings, rows)


def _states(base: Any, embeddings: Tensor, rows: RealPositions) -> Tensor:
    positions = torch.arange(rows.width, device=embeddings.device).expand(rows.batch, -1)
    private_names.set_attention_implementation(base.config.get_text_config(), NAME)
    before = _unpadding.set(True)
    try:
        out = base(
            inputs_embeds=rows.unpad(embeddings).unsqueeze(0),
            position_ids=rows.unpad(positions).unsqueeze(0),
            use_cache=False,
            mmzoo_rows=rows,
        )
    finally:
        _unpadding.reset(before)
    return rows.pad(out.last_hidden_state[0])


class FusedGELU(NewGELUActivation):
    """Compute GPT-2's activation, in training by torch's own kernel, which keeps one tensor for the backward pass in place of
    five. The results differ by rounding."""

    def __init__(self, training: list[bool]) -> None:
        super().__init__()
        self.shared = training

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate="tanh") if self.shared[0] else super().forward(input)


def fuse_activations(model: nn.Module, training: list[bool]) -> None:
    """Replace each `NewGELUActivation` by a `FusedGELU`; ``training[0]`` turns them on."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, FusedGELU(training))
