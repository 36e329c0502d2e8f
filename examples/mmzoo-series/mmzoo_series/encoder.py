"""Encode series in patches, as PatchTST does (Nie et al. 2023, https://arxiv.org/abs/2211.14730), without its transformer."""

import torch
from pydantic import Field
from torch import nn

from mmzoo.api import Encoder, Features, FeatureSpec, Options
from mmzoo_series.reader import SeriesReader


def standardise(series):
    """Return a series [steps] as a tensor with mean 0 and, if it changes, standard deviation 1."""
    values = torch.tensor(series)
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-6)


class PatchSeries(Encoder):
    """Turn series [batch, steps] into a token for each patch, [batch, tokens, dim]; pooled is the mean of the tokens."""

    modality = "series"
    reader = SeriesReader()
    variable_length = True

    class Options(Options):
        patch: int = Field(8, ge=1, le=1024, description="steps to a token")
        dim: int = Field(64, ge=1, le=4096, description="channels of a token")

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.layers = nn.Sequential(nn.Linear(options.patch, options.dim), nn.GELU(), nn.Linear(options.dim, options.dim))
        self.spec = FeatureSpec(dim=options.dim, pooled_dim=options.dim, tokens=None, modality=self.modality)
        self.transform = standardise

    def forward(self, inputs, lengths):
        """Return features of ``inputs`` [batch, steps], which are zero after the ``lengths`` [batch]."""
        patch = self.options.patch
        pieces = nn.functional.pad(inputs, (0, -inputs.shape[1] % patch)).unflatten(1, (-1, patch))
        count = (lengths[:, None] + patch - 1) // patch
        mask = torch.arange(pieces.shape[1], device=inputs.device) < count
        tokens = self.layers(pieces) * mask[..., None]
        return Features(tokens, tokens.sum(1) / count, mask.long())
