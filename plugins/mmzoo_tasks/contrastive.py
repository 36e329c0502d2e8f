"""Align inputs and texts: unit vectors of a pair are similar, those of other pairs are not.

Losses: CLIP's (Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.3) and SigLIP's (Zhai et al. 2023,
https://arxiv.org/abs/2303.15343, algorithm 1).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mmzoo.api import (
    IGNORE,
    NONE,
    BadRecipe,
    DataError,
    Example,
    FeatureSpec,
    LanguageSpec,
    Options,
    Outputs,
    Prediction,
    Task,
    TextContext,
    input_key,
)
from mmzoo_tasks.pooled import refuse, text_batch

MAX_SCALE = math.log(100)
# Of each loss: the logarithm of the first scale, and the bias.
START = {"infonce": (math.log(1 / 0.07), 0.0), "sigmoid": (math.log(10), -10.0)}


class Contrastive(Task):
    """Compare the pooled features of an encoder with the language model's own vector of the text, both through a linear layer
    without bias.

    The text is a target: in training another one in each epoch, else the first; without targets a prediction takes the example's
    text. The negatives of a pair are the other pairs of the batch, of all processes. An example without the input is no pair, and
    left out of the loss.
    """

    gathers = True
    needs_input = True
    metrics = ("recall-at-1", "recall-at-10", "text-recall-at-1", "text-recall-at-10")

    class Options(Options):
        dim: int = Field(512, ge=1, le=1 << 16, description="of the vectors that are compared")
        encoder: str | None = Field(None, description="the encoder whose inputs are compared; the first if empty")
        loss: Literal["infonce", "sigmoid"] = Field("infonce", description="infonce as in CLIP, sigmoid as in SigLIP")
        repeats: Literal["ignore", "negative"] = Field(
            "ignore", description="pairs of a batch with the same text or the same input: left out as negatives, or counted"
        )

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
        super().__init__(options, language_model, encoders)
        known = [name for name, spec in encoders.items() if spec.modality != NONE]
        self.encoder = options.encoder or next(iter(known or encoders))
        if self.encoder not in (known or encoders):
            raise BadRecipe(f"task.encoder: no encoder '{self.encoder}' has an input; these have: {', '.join(known)}")
        self.modality = encoders[self.encoder].modality
        self.shape = f"{options.dim} channels"
        self.input = nn.Linear(encoders[self.encoder].pooled_dim, options.dim, bias=False)
        self.text = nn.Linear(language_model.dim, options.dim, bias=False)
        scale, bias = START[options.loss]
        self.scale = nn.Parameter(torch.tensor(scale))
        if options.loss == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(bias))

    def references(self, example: Example) -> list[str]:
        if not (texts := [target for target in example.targets if target.strip()]):
            raise DataError(f"example {example.id} has no text to compare with: it has no target, or only empty ones")
        return texts

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` [batch, text], and in training ``labels`` [batch], the identity of each text (-100 without
        an input), and ``sources`` [batch], that of each input."""
        given = [training or any(map(str.strip, example.targets)) for example in examples]
        texts = [e.drawn(self.references(e)) if has_target else e.text for e, has_target in zip(examples, given, strict=True)]
        # No input is put into the text, which begins as a text alone does.
        batch = text_batch(texts, examples, replace(text, added=dict.fromkeys(text.added, 0)))
        if training:
            inputs = [example.of(self.modality) for example in examples]
            labels = [_identity(text) if each else IGNORE for text, each in zip(texts, inputs, strict=True)]
            batch |= {"labels": torch.tensor(labels), "sources": torch.tensor([_identity(input_key(each)) for each in inputs])}
        return batch

    def vectors(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Return the unit vectors of inputs and of texts, both [batch, dim], float32."""
        inputs, texts = self.input(outputs.features[self.encoder].pooled), self.text(outputs.text_only)
        return F.normalize(inputs.float(), dim=-1), F.normalize(texts.float(), dim=-1)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the sum over this process's pairs and their number. The pairs of all processes are their negatives, with
        gradients, so that processes together have the loss and gradients of one that has all pairs: each must call this."""
        inputs, texts = self.vectors(outputs)
        present, labels = outputs.features[self.encoder].present, batch["labels"]
        if present is not None:  # training may treat an input as missing
            labels = labels.masked_fill(~present.any(1), IGNORE)
        own = torch.stack([labels, batch["sources"]], 1)
        both, start = _gather(torch.cat([inputs, texts], 1))
        keys, _ = _gather(own)
        all_inputs, all_texts = both.chunk(2, 1)
        pairs = torch.arange(start, start + len(inputs), device=inputs.device)
        paired = pairs[:, None] == torch.arange(len(keys), device=inputs.device)
        left_out = (keys[:, 0] == IGNORE).expand(len(inputs), -1)
        if self.options.repeats == "ignore":
            left_out = left_out | (own[:, None] == keys).any(-1)
        left_out = left_out & ~paired  # [own pairs, all pairs]
        valid = own[:, 0] != IGNORE
        # Half precision is too coarse for scaled similarities.
        with torch.autocast("cpu" if inputs.is_meta else inputs.device.type, enabled=False):
            if self.options.loss == "infonce":
                with torch.no_grad():
                    self.scale.clamp_(max=MAX_SCALE)
                logits = (inputs @ all_texts.T, texts @ all_inputs.T)
                masked = [(self.scale.exp() * each).masked_fill(left_out, -math.inf) for each in logits]
                losses = sum(F.cross_entropy(each, pairs, reduction="none") for each in masked) / 2
            else:
                logits = self.scale.exp() * (inputs @ all_texts.T) + self.bias
                each = -F.logsigmoid(torch.where(paired, logits, -logits))
                losses = each.masked_fill(left_out, 0).sum(1)
        return {self.options.loss: (losses.masked_fill(~valid, 0).sum(), valid.sum())}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], **options: Any) -> list[Prediction]:
        """Return ``score``, the cosine of input and text, and ``vectors`` of both."""
        refuse(options)
        inputs, texts = self.vectors(outputs)
        return [
            Prediction(score=score, vectors={self.encoder: tuple(one), "text": tuple(other)})
            for score, one, other in zip((inputs * texts).sum(1).tolist(), inputs.tolist(), texts.tolist(), strict=True)
        ]


def _identity(key: Hashable) -> int:
    """Return a number that is the same for equal keys in every process; never negative."""
    return int.from_bytes(hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).digest()[:7], "big")


class _Sum(torch.autograd.Function):
    """Sum a tensor over all processes; the gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.apply(gradient)


def _gather(own: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, [all rows, ...], with gradients for each, and the place of the first own one. Processes
    may have different numbers of rows."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return own, 0
    counts = torch.zeros(distributed.get_world_size(), dtype=torch.long, device=own.device)
    rank = distributed.get_rank()
    counts[rank] = len(own)
    distributed.all_reduce(counts)
    before, after = int(counts[:rank].sum()), int(counts[rank + 1 :].sum())
    padded = torch.cat([own.new_zeros(before, *own.shape[1:]), own, own.new_zeros(after, *own.shape[1:])])
    return _Sum.apply(padded), before
