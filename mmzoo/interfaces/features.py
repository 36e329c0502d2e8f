"""Define `Features`, the output of an encoder, and `FeatureSpec`, its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureSpec:
    """Describe the output of an encoder, as known from its configuration.

    Args:
        dim: size of a token.
        pooled_dim: size of the pooled vector.
        tokens: number of tokens without any class token; 0 if there are only pooled features, None if it depends on the input.
        modality: the modality of the inputs.
    """

    dim: int
    pooled_dim: int
    tokens: int | None
    modality: str = "image"


@dataclass
class Features:
    """Hold the output of an encoder.

    An encoder sets the first three. The model sets the others if examples have several images: ``tokens`` then has the tokens of
    all images of an example in order, and ``pooled`` is their mean.

    Args:
        tokens: [batch, tokens, dim].
        pooled: [batch, pooled_dim].
        mask: [batch, tokens], 1 where a token is real; None if all are.
        each: [batch, images, pooled_dim], the pooled vector of each image.
        present: [batch, images], true where the example has an image.
        at: [batch, images], the text position of each image's placeholder, -1 for before the text. None if no text has
            placeholders.
    """

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    each: Tensor | None = None
    present: Tensor | None = None
    at: Tensor | None = None

    @property
    def images(self) -> int:
        """Return the largest number of images of an example."""
        return 1 if self.each is None else self.each.shape[1]

    def token_mask(self) -> Tensor:
        """Return ``mask``, or [batch, tokens] of ones if it is None."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.long, device=self.tokens.device)

    def by_image(self) -> Features:
        """Return features with a row per image: tokens [batch * images, tokens, dim], pooled [batch * images, pooled_dim]."""
        if self.each is None:
            return Features(self.tokens, self.pooled, self.mask)
        rows, count = self.tokens.shape[0] * self.images, self.tokens.shape[1] // self.images
        tokens, mask = self.tokens.reshape(rows, count, self.tokens.shape[2]), self.token_mask().reshape(rows, count)
        return Features(tokens, self.each.flatten(0, 1), mask)

    def take(self, index: Tensor) -> Features:
        """Return the rows ``index``, so that examples that share an image share its features.

        Args:
            index: [batch] for one image per example, or [batch, images] with -1 where an example has fewer images.
        """
        if index.ndim == 1:
            return Features(self.tokens[index], self.pooled[index], None if self.mask is None else self.mask[index])
        present = index >= 0
        index = index.clamp(min=0)
        each = self.pooled[index] * present[..., None]
        mask = self.token_mask()[index] * present[..., None]
        pooled = each.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
        return Features(self.tokens[index].flatten(1, 2), pooled, mask.flatten(1), each, present)

    def fill_missing(self, vector: Tensor) -> Features:
        """Return features whose ``pooled`` is ``vector`` [pooled_dim] in each row that has no input."""
        if self.present is None:
            return self
        missing = ~self.present.any(1, keepdim=True)
        return replace(self, pooled=torch.where(missing, vector.to(self.pooled.dtype), self.pooled))

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """Return features with changed values: the tokens and the pooled vectors, but not what is real and where."""
        each = None if self.each is None else change(self.each)
        return replace(self, tokens=change(self.tokens), pooled=change(self.pooled), each=each)

    def rows(self, index: Tensor | None) -> Features:
        """Return the rows ``index`` [rows] of every tensor; all of them if that is None."""
        if index is None:
            return self
        values = (self.tokens, self.pooled, self.mask, self.each, self.present, self.at)
        return Features(*(None if value is None else value[index] for value in values))  # type: ignore[arg-type]

    def repeat(self, times: int) -> Features:
        """Return each row ``times`` times in a row, in the order that beam search uses."""
        if times == 1:
            return self
        rows = (self.tokens, self.pooled, self.mask, self.each, self.present, self.at)
        return Features(*(None if value is None else value.repeat_interleave(times, 0) for value in rows))  # type: ignore[arg-type]
