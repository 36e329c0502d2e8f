"""Define a small convolutional encoder: stages of strided convolution, group norm and ReLU.

Strides instead of pooling (Springenberg et al. 2015, https://arxiv.org/abs/1412.6806) keep the largest maps out of memory,
which makes a step five times faster on a CPU.

Group norm (Wu and He 2018, https://arxiv.org/abs/1803.08494) makes each example's features independent of the batch, so that
training on two processes equals training on one with twice the batch.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import v2

from mmzoo.api import Encoder, Features, FeatureSpec, Options


class CNN(Encoder):
    """Turn pictures [batch, 3, size, size] into (size / 2^stages)^2 tokens; pooled are their mean and maximum."""

    class Options(Options):
        image_size: int = Field(64, ge=8, le=1024, description="side of the square that pictures are resized to, pixels")
        channels: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
            [32, 64, 128], min_length=1, max_length=8, description="channels of each stage"
        )

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        stages: list[nn.Module] = []
        width_in, side = 3, options.image_size
        for width_out in options.channels:
            side = -(-side // 2)
            # A group of a single value would be normalised to zero: the features would not depend on the picture.
            groups = 8 if width_out % 8 == 0 and (side > 1 or width_out > 8) else 1
            stages.append(
                nn.Sequential(
                    nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False), nn.GroupNorm(groups, width_out), nn.ReLU()
                )
            )
            width_in = width_out
        self.stages = nn.ModuleList(stages)
        self.spec = FeatureSpec(dim=width_in, pooled_dim=2 * width_in, tokens=side * side)
        size = [options.image_size, options.image_size]
        self.transform = v2.Compose(
            [
                v2.Resize(size, antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def blocks(self) -> nn.ModuleList:
        return self.stages

    def forward(self, inputs: Tensor) -> Features:
        maps = inputs
        for stage in self.stages:
            maps = stage(maps)
        tokens = maps.flatten(2).transpose(1, 2)
        return Features(tokens, torch.cat([tokens.mean(1), tokens.amax(1)], dim=1))
