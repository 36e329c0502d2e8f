"""Define what encoders produce: `Features`, and `FeatureSpec`, their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class FeatureSpec:
    """What an encoder gives, known from its configuration.

    ``tokens`` is the number of tokens without any class token; 0 if there are only pooled features,
    None if it depends on the input.
    """

    dim: int
    pooled_dim: int
    tokens: int | None
    modality: str = "image"


@dataclass
class Features:
    """What an encoder computed: ``tokens`` [batch, tokens, dim], ``pooled`` [batch, pooled_dim], and ``mask``
    [batch, tokens] (1 where a token is real), None if all are.

    Where an example has several images, ``tokens`` holds theirs one after another, ``pooled`` is the mean over them, and
    the model adds ``each`` [batch, images, pooled_dim], ``present`` [batch, images] (true where there is one) and, if the texts
    have placeholders, ``at`` [batch, images]: the text position that each stands at, -1 for before the text.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    each: Tensor | None = None
    present: Tensor | None = None
    at: Tensor | None = None

    @property
    def images(self) -> int:
        """Images an example has at most."""
        return 1 if self.each is None else self.each.shape[1]

    def token_mask(self) -> Tensor:
        """[batch, tokens] of ones where none was given."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.long, device=self.tokens.device)

    def by_image(self) -> Features:
        """One row an image: ``tokens`` [batch * images, tokens an image, dim], ``pooled`` [batch * images, pooled_dim]."""
        if self.each is None:
            return Features(self.tokens, self.pooled, self.mask)
        rows, count = self.tokens.shape[0] * self.images, self.tokens.shape[1] // self.images
        return Features(
            self.tokens.reshape(rows, count, self.tokens.shape[2]),
            self.each.flatten(0, 1),
            self.token_mask().reshape(rows, count),
        )

    def take(self, index: Tensor) -> Features:
        """The rows ``index`` [batch], as examples that share an image share its features, or [batch, images] with -1 where
        an example has fewer."""
        if index.ndim == 1:
            return Features(self.tokens[index], self.pooled[index], None if self.mask is None else self.mask[index])
        present = index >= 0
        index = index.clamp(min=0)
        each = self.pooled[index] * present[..., None]
        mask = self.token_mask()[index] * present[..., None]
        pooled = each.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        return Features(self.tokens[index].flatten(1, 2), pooled, mask.flatten(1), each, present)

    def repeat(self, times: int) -> Features:
        """Each row ``times`` times in place, as beam search orders its rows."""
        if times == 1:
            return self
        rows = (self.tokens, self.pooled, self.mask, self.each, self.present, self.at)
        return Features(*(None if value is None else value.repeat_interleave(times, 0) for value in rows))  # type: ignore[arg-type]
