"""Pool products of all sides with a small number of weights.

MFB (Yu et al. 2017, https://arxiv.org/abs/1708.01471, section 3): ``z = sum_k (U x * V y)``, then the signed square root and
scaling to length 1. MUTAN (Ben-younes et al. 2017, https://arxiv.org/abs/1705.06676, section 3): a Tucker decomposition whose
core has a limited rank: ``z = sum_r (M_r tanh(U x)) * (N_r tanh(V y))``. Both are for two sides; here the product is over all.
The linear layers have biases, as in the authors' code. A linear layer turns z into a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmzoo.api import Features, FeatureSpec, LanguageSpec, Options
from mmzoo_fusions.joint import JointLate

EPSILON = 1e-12  # the slope of the square root is infinite at 0


class BilinearFusion(JointLate):
    """Multiply projections of all sides to ``width * rank`` channels, and sum each ``rank`` of them."""

    class Options(Options):
        form: Literal["mfb", "mutan"] = Field("mfb", description="MFB's power and L2 normalisation, or MUTAN's tanh layers")
        width: int = Field(256, ge=1, le=8192, description="channels of the pooled product")
        rank: int = Field(5, ge=1, le=256, description="products that are summed to a channel: MFB's k, MUTAN's R")

    def __init__(self, options: Any, encoders: Mapping[str, FeatureSpec], language_model: LanguageSpec) -> None:
        wide, self._mutan = options.width * options.rank, options.form == "mutan"
        super().__init__(options, encoders, language_model, options.width if self._mutan else wide)
        count = len(encoders) + 1 if self._mutan else 0
        self.factors = nn.ModuleList(nn.Linear(options.width, wide) for _ in range(count))
        self.out = nn.Linear(options.width, language_model.dim)

    def late(self, features: Mapping[str, Features], hidden: Tensor) -> Tensor:
        sides = self.sides(features, hidden)
        if self._mutan:
            sides = [factor(torch.tanh(side)) for factor, side in zip(self.factors, sides, strict=True)]
        pooled = reduce(torch.mul, sides).unflatten(-1, (-1, self.options.rank)).sum(-1)
        if not self._mutan:
            pooled = F.normalize(pooled.sign() * (pooled.abs() + EPSILON).sqrt(), dim=-1)
        return self.out(pooled)
