"""Define an encoder without an input, so that a language model is trained on text alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmzoo.api import NONE, Encoder, Features, FeatureSpec


class NoEncoder(Encoder):
    """Return no tokens, and one pooled channel of zeros for each input [batch, 0]; it has no parameters."""

    modality = NONE

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.spec = FeatureSpec(dim=1, pooled_dim=1, tokens=0, modality=NONE)
        self.transform = None

    def forward(self, inputs: Tensor) -> Features:
        return Features(inputs.new_zeros(len(inputs), 0, 1), inputs.new_zeros(len(inputs), 1))
