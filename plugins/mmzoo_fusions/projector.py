"""Project every visual token to an input token of the language model.

LLaVA (Liu et al. 2023, https://arxiv.org/abs/2304.08485) with one linear layer, LLaVA-1.5 (https://arxiv.org/abs/2310.03744)
with Linear, GELU, Linear. nanoVLM (Wiedmann et al. 2025, https://github.com/huggingface/nanoVLM) and SmolVLM
(https://arxiv.org/abs/2504.05299) with pixel shuffle before one linear layer without bias. Checked against transformers'
`LlavaMultiModalProjector` and `Idefics3Connector`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import DoesNotFit, Features, FeatureSpec, FusedInput, Fusion, LanguageSpec, Options, insert_features


class Projector(Fusion):
    """Turn token features [batch, tokens, dim] into as many input tokens, or into ``pixel_shuffle ** 2`` times fewer."""

    needs_tokens = True

    class Options(Options):
        layers: Literal["linear", "mlp"] = Field("mlp", description="one linear layer, or Linear-GELU-Linear")
        bias: bool = Field(True, description="whether the layers have biases; nanoVLM's has none")
        pixel_shuffle: Literal[1, 2, 4] = Field(
            1, description="join squares of this side to one token with all their channels (nanoVLM); 1 for none"
        )
        tiles: int = Field(
            1, ge=1, le=8, description="also encode tiles x tiles pieces of the image, each like the whole; 1 for none"
        )

    def __init__(self, options: Any, encoder: FeatureSpec, language_model: LanguageSpec) -> None:
        """Build the layers.

        Raises:
            DoesNotFit: with pixel shuffle, if the tokens are not a square grid that it divides.
        """
        super().__init__(options, encoder, language_model)
        check_shuffle(encoder.tokens, options.pixel_shuffle)
        self._tokens = encoder.tokens
        dim, wide = language_model.dim, encoder.dim * options.pixel_shuffle**2
        first = nn.Linear(wide, dim, bias=options.bias)
        mlp = options.layers == "mlp"
        self.model = nn.Sequential(first, nn.GELU(), nn.Linear(dim, dim, bias=options.bias)) if mlp else first

    @property
    def added_tokens(self) -> int | None:
        if self._tokens is None:
            return None
        return self._pictures * self._tokens // self.options.pixel_shuffle**2

    @property
    def tiles(self) -> int:
        return self.options.tiles

    @property
    def _pictures(self) -> int:
        """Return the number of pictures that the encoder reads: the whole and its pieces."""
        return 1 + self.tiles**2 if self.tiles > 1 else 1

    def early(self, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
        images = features.by_image()
        tokens, real, side = images.tokens, images.token_mask(), self.options.pixel_shuffle
        if side > 1:
            tokens = pixel_shuffle(tokens.unflatten(1, (self._pictures, -1)).flatten(0, 1), side)
            tokens = tokens.unflatten(0, (-1, self._pictures)).flatten(1, 2)
            squares = real.unflatten(1, (self._pictures, -1)).flatten(0, 1)[..., None]
            real = pixel_shuffle(squares, side).amax(-1).unflatten(0, (-1, self._pictures)).flatten(1, 2)
        return insert_features(self.model(tokens), real, features, embeddings, mask)


def pixel_shuffle(tokens: Tensor, side: int) -> Tensor:
    """Turn a square grid of tokens [batch, rows * rows, dim], row by row, into [batch, (rows / side) ** 2, side ** 2 * dim].

    This is space to depth (the inverse of Shi et al. 2016, https://arxiv.org/abs/1609.05158), with channels ordered by row,
    column, dim.
    """
    rows = math.isqrt(tokens.shape[1])
    grid = tokens.unflatten(1, (rows // side, side, rows // side, side))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def check_shuffle(tokens: int | None, side: int) -> None:
    """Refuse a number of tokens that is not a square, or whose root ``side`` does not divide.

    Raises:
        DoesNotFit: naming what fits.
    """
    if side == 1:
        return
    name = f"fusion.pixel_shuffle: {side}"
    if tokens is None:
        raise DoesNotFit(f"{name}: the encoder's number of tokens depends on the image; set it to 1, or choose another encoder")
    rows = math.isqrt(tokens)
    if rows**2 != tokens:
        extra = tokens - rows**2
        raise DoesNotFit(
            f"{name}: the encoder's {tokens} tokens are no square grid; "
            + (f"{extra} may not be patches: set encoder.keep_class_token to false" if extra <= 8 else "choose another encoder")
            + ", or set pixel_shuffle to 1"
        )
    if rows % side:
        fits = [n for n in (1, 2, 4) if rows % n == 0]
        raise DoesNotFit(
            f"{name}: does not divide the encoder's grid of {rows} x {rows} tokens; set it to {' or '.join(map(str, fits))}, or "
            "choose another image size or patch size"
        )
