"""Compute what a task asks for: a lazy forward pass of its text with the features of a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmzoo.interfaces import CAUSAL, Features, Fusion, FusionCall, ModelPass, Outputs, Part, repeat_rows, running
from mmzoo.models.precision import cast, dtype_of
from mmzoo.models.sequence import drop_none, fuse_input, positions_before, text_states


class once(property):
    """Compute a property when it is first asked for.

    `functools.cached_property` of Python 3.11 has one lock for all instances, so threads would wait for each other.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        kept = instance._once
        if self.fget not in kept:
            kept[self.fget] = super().__get__(instance, owner)
        return kept[self.fget]


class read(once):
    """Likewise; each task reads it in the floating-point type of its own weights."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return cast(super().__get__(instance, owner), instance._dtype)


class States(NamedTuple):
    """Hold the hidden states [batch, positions, dim] of a fused text and their mask, where its tokens are, and what the fusions
    read."""

    hidden: Tensor
    mask: Tensor
    text: slice | Tensor
    calls: dict[Fusion, FusionCall]


class LazyOutputs:
    """Implement `mmzoo.interfaces.outputs.Outputs`.

    Args:
        model: the `MultimodalModel`.
        features: by encoder, one row for each example of the task's batch.
        batch: the tensors of the task: ``ids`` and ``mask`` [batch, text], for a seq2seq model perhaps ``decoder_ids``.
    """

    def __init__(self, model: Any, features: Mapping[str, Features], batch: Mapping[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.language_model = model.language_model
        self.features = self._features = features
        self._dtype: torch.dtype | None = None
        self._once: dict[Any, Any] = {}

    def read_by(self, task: Part) -> LazyOutputs:
        """Return the same outputs, computed once, in the floating-point type of a task's weights."""
        own = copy.copy(self)
        own._dtype = dtype_of(task)
        own.features = cast(self._features, own._dtype)
        return own

    @once
    def text(self) -> Any:
        return self.model.text_context()

    @once
    def mask(self) -> Tensor:
        if "decoder_ids" in self.batch:
            return torch.ones_like(self.batch["decoder_ids"])
        return self._text_mask

    @property
    def _text_mask(self) -> Tensor:
        return self.batch["mask"] * (self.batch["ids"] >= 0)

    @once
    def states(self) -> States:
        return self._states(self._features, self.batch.get("decoder_ids"))

    def _states(self, features: Mapping[str, Features], decoder_ids: Tensor | None = None) -> States:
        fused, calls = fuse_input(self.model, features, self.batch["ids"], self.batch["mask"])
        more = drop_none(decoder_ids=decoder_ids, memory=fused.memory)
        with running(ModelPass(calls)):
            hidden = self.language_model(fused.embeddings, fused.mask, **more)
        if decoder_ids is not None:
            return States(hidden, torch.ones_like(decoder_ids), slice(0, decoder_ids.shape[1]), calls)
        return States(hidden, fused.mask, fused.text, calls)

    @read
    def hidden(self) -> Tensor:
        return text_states(self.states.hidden, self.states.text)

    @read
    def pooled(self) -> Tensor:
        if self.language_model.architecture == CAUSAL:  # an input may come after the last word
            vector = self.language_model.pool(self.states.hidden, self.states.mask)
        else:
            vector = self.language_model.pool(text_states(self.states.hidden, self.states.text), self.mask)
        return fuse_late(self.model, self.states.calls, vector.unsqueeze(1)).squeeze(1)

    @read
    def text_only(self) -> Tensor:
        states = self._states({})
        return self.language_model.pool(text_states(states.hidden, states.text), self._text_mask)

    @once
    def _fused(self) -> Tensor:
        fused = fuse_late(self.model, self.states.calls, self.states.hidden)
        return cast(fused, self.states.hidden.dtype)  # for the output layer

    def predicting(self, rows: Tensor, columns: Tensor) -> Tensor:
        # A causal state predicts the next token; a decoder's states are shifted already.
        causal = self.language_model.architecture == CAUSAL
        return self._fused[rows, positions_before(self.states.text, rows, columns) if causal else columns]

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.language_model.logits(self.predicting(rows, columns))

    def write(self, **options: Any) -> Tensor:
        return self.model.generate_ids(self._features, self.batch["ids"], self.batch["mask"], **options)

    def with_text(self, batch: Mapping[str, Tensor]) -> Outputs:
        other = LazyOutputs(self.model, self._features, batch)
        other.features, other._dtype = self.features, self._dtype
        return other


def fuse_late(model: Any, calls: Mapping[Fusion, FusionCall], hidden: Tensor) -> Tensor:
    """Return states [rows, positions, dim] through the late fusions, in the order of the encoders."""
    with running(ModelPass(calls)):
        for fusion, _ in model.fused_encoders():
            if fusion.is_late and fusion in calls:
                own = cast(hidden, dtype_of(fusion))
                hidden = fusion.late(repeat_rows(calls[fusion].given, len(hidden)), own)
    return hidden
