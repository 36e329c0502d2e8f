"""Change pictures with `torchvision.transforms.v2` (https://github.com/pytorch/vision, BSD-3-Clause).

The defaults are mild, and keep hues, so that most texts stay true of the changed picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any

from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import v2

from mmzoo.api import Augmentation, Options

BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=0, le=255)]
GREY = 128


class PictureAugmentation(Augmentation, ABC):
    """Apply a transform of torchvision to each picture."""

    modality = "image"

    @abstractmethod
    def transform(self, image: Image.Image) -> Any:
        """Return the transform for a picture."""

    def opened(self, value: Image.Image) -> Image.Image:
        return self.transform(value)(value)


class Flip(PictureAugmentation):
    """Mirror pictures. Texts that say left or right become wrong; set ``horizontal`` to 0 for such data."""

    class Options(Options):
        horizontal: Share = Field(0.5, description="probability of exchanging left and right; 0 where texts name sides")
        vertical: Share = Field(0.0, description="probability of exchanging top and bottom")

    def transform(self, image: Image.Image) -> Any:
        return v2.Compose([v2.RandomHorizontalFlip(self.options.horizontal), v2.RandomVerticalFlip(self.options.vertical)])


class Crop(PictureAugmentation):
    """Cut out a random part of each picture and resize it to the size that the picture had."""

    class Options(Options):
        scale: tuple[Share, Share] = Field((0.5, 1.0), description="least and greatest share of the picture's area that is kept")
        ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="least and greatest ratio of width to height of that part")

        @model_validator(mode="after")
        def _ordered(self) -> Any:
            for name in ("scale", "ratio"):
                low, high = getattr(self, name)
                if not 0 < low <= high:
                    raise ValueError(f"{name}: two numbers above 0, the smaller one first, not {[low, high]}")
            return self

    def transform(self, image: Image.Image) -> Any:
        size = (image.height, image.width)
        return v2.RandomResizedCrop(size, self.options.scale, self.options.ratio, interpolation=BICUBIC)


class Color(PictureAugmentation):
    """Change brightness, contrast, saturation and hue, in a random order."""

    class Options(Options):
        brightness: Share = Field(0.2, description="the factor is at most this far from 1")
        contrast: Share = Field(0.2, description="the factor is at most this far from 1")
        saturation: Share = Field(0.2, description="the factor is at most this far from 1")
        hue: float = Field(0.0, ge=0, le=0.5, description="greatest turn, of 1; leave 0 where texts name colours")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.jitter = v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue)

    def transform(self, image: Image.Image) -> Any:
        return self.jitter


class Rotate(PictureAugmentation):
    """Turn pictures around their centre."""

    class Options(Options):
        degrees: float = Field(15.0, ge=0, le=180, description="greatest angle, in both directions")
        fill: Level = Field(GREY, description="grey level of the corners that come into view, 0 to 255")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.rotation = v2.RandomRotation(options.degrees, interpolation=BILINEAR, fill=options.fill)

    def transform(self, image: Image.Image) -> Any:
        return self.rotation


class Erase(Augmentation):
    """Set a random rectangle of the encoder's input to a value: 0 is the mean colour where the input is normalised.

    Where a picture is cut into tiles, the same rectangle of each tile is erased.
    """

    modality = "image"

    class Options(Options):
        probability: Share = Field(0.25, description="share of the pictures that are changed")
        scale: tuple[Share, Share] = Field((0.02, 0.33), description="least and greatest share of the area that is erased")
        value: float = Field(0.0, description="what is written there")

        @model_validator(mode="after")
        def _ordered(self) -> Any:
            if not 0 < self.scale[0] <= self.scale[1]:
                raise ValueError(f"scale: two numbers above 0, the smaller one first, not {list(self.scale)}")
            return self

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.erasing = v2.RandomErasing(options.probability, options.scale, value=options.value)

    def transformed(self, tensor: Tensor) -> Tensor:
        return self.erasing(tensor)


class TrivialAugment(PictureAugmentation):
    """Apply one random change of random strength to each picture. Some change colours, or turn the picture."""

    class Options(Options):
        fill: Level = Field(GREY, description="grey level of what comes into view, 0 to 255")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.change = v2.TrivialAugmentWide(interpolation=BILINEAR, fill=options.fill)

    def transform(self, image: Image.Image) -> Any:
        return self.change


class RandAugment(TrivialAugment):
    """Apply some random changes of the same strength to each picture. Some change colours, or turn the picture."""

    class Options(Options):
        operations: int = Field(2, ge=1, le=14, description="changes of each picture")
        magnitude: int = Field(9, ge=0, le=30, description="their strength")
        fill: Level = Field(GREY, description="grey level of what comes into view, 0 to 255")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.change = v2.RandAugment(options.operations, options.magnitude, interpolation=BILINEAR, fill=options.fill)
