"""Multiply all sides with one another, so that every interaction of their channels has a weight.

Tensor fusion (Zadeh et al. 2017, https://arxiv.org/abs/1707.07250, section 4.2): a linear layer reads the outer product of all
sides, each with a constant 1 appended, so that it contains each side and each pair of sides too. Low-rank fusion (Liu et al.
2018, https://arxiv.org/abs/1806.00064, section 3.2): the weights of that layer are a sum of ``rank`` outer products of factors,
one a side, so the product itself is never computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from mmzoo.api import DoesNotFit, Features, FeatureSpec, LanguageSpec, Options
from mmzoo_fusions.joint import JointLate

LARGEST = 2**18  # products; the paper's three sides have 33 * 33 * 129


class TensorFusion(JointLate):
    """Apply a linear layer to ``[x_1; 1] (x) ... (x) [x_n; 1] (x) [l; 1]``, of projected features x and state l."""

    class Options(Options):
        width: int = Field(16, ge=1, le=511, description="channels that each side is projected to before the product")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        """Build the layers.

        Raises:
            DoesNotFit: the product has more than `LARGEST` numbers.
        """
        super().__init__(options, encoders, language_model, options.width)
        sides = len(encoders) + 1
        if (size := (options.width + 1) ** sides) > LARGEST:
            fits = max(width for width in range(512) if (width + 1) ** sides <= LARGEST)
            fix = f"set it to {fits} or less, or use" if fits else "use"
            raise DoesNotFit(
                f"fusion.width: {options.width}: the product of {sides} sides has {size} numbers, and at most {LARGEST} are "
                f"allowed; {fix} low-rank-fusion"
            )
        self.out = nn.Linear(size, language_model.dim)

    def late(self, features: Mapping[str, Features], hidden: Tensor) -> Tensor:
        product, *others = (pad(side, (0, 1), value=1.0) for side in self.sides(features, hidden))
        for side in others:
            product = (product[..., :, None] * side[..., None, :]).flatten(-2)
        return self.out(product)


class LowRankFusion(JointLate):
    """Sum ``rank`` products of linear functions of all sides: ``h = sum_r (A_r [x_1; 1]) * ... * (B_r [l; 1]) + b``.

    It equals the layer of `TensorFusion` whose weights are ``sum_r A_r (x) ... (x) B_r``, on unprojected sides.
    """

    class Options(Options):
        rank: int = Field(4, ge=1, le=256, description="products that are summed")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        super().__init__(options, encoders, language_model, options.rank * language_model.dim)
        self.bias = nn.Parameter(torch.zeros(language_model.dim))

    def late(self, features: Mapping[str, Features], hidden: Tensor) -> Tensor:
        # The bias of each linear layer is the weight of the constant 1.
        return reduce(torch.mul, self.sides(features, hidden)).unflatten(-1, (self.options.rank, -1)).sum(-2) + self.bias
