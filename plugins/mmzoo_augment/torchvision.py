"""Use any class of `torchvision.transforms.v2` that changes a picture (https://github.com/pytorch/vision, BSD-3-Clause)."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from PIL import Image
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor
from torchvision.transforms import v2

from mmzoo.api import Augmentation, Options, did_you_mean, one_line

# Classes that change no single picture at random: they combine transforms, convert types, need boxes, frames or labels.
OTHER = {
    *("Transform", "Compose", "RandomApply", "RandomChoice", "RandomOrder", "Lambda", "Identity", "MixUp", "CutMix", "FiveCrop"),
    *("ToTensor", "ToImage", "PILToTensor", "ToPILImage", "ToPureTensor", "ToDtype", "ConvertImageDtype", "TenCrop", "RGB"),
    *("ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "SanitizeBoundingBoxes", "SanitizeKeyPoints"),
    *("SetClampingMode", "RandomIoUCrop", "UniformTemporalSubsample", "LinearTransformation"),
}
ON_TENSORS = {"GaussianNoise", "Normalize", "RandomErasing"}  # which take no image of PIL
ENUMS = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}
OWN = ("variant", "on_tensor", "probability")


class Torchvision(Augmentation):
    """Apply a transform of `torchvision.transforms.v2` to pictures, or to the encoder's input where it takes tensors only."""

    modality = "image"

    class Options(Options):
        model_config = ConfigDict(extra="allow", allow_inf_nan=False)

        variant: str = Field(description="the class, such as `GaussianBlur`; every other option is an argument of it")
        on_tensor: bool | None = Field(
            None, description="change the encoder's input, not the picture; empty for the classes that take tensors only"
        )
        probability: float = Field(1.0, ge=0, le=1, description="share of the pictures that are changed")

        @model_validator(mode="after")
        def _works(self) -> Any:
            _try(self)
            return self

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.transform, self.on_tensor = _make(options), _on_tensor(options)

    def opened(self, value: Image.Image) -> Image.Image:
        return value if self.on_tensor or self._left_alone() else self.transform(value).convert("RGB")

    def transformed(self, tensor: Tensor) -> Tensor:
        return self.transform(tensor) if self.on_tensor and not self._left_alone() else tensor

    def _left_alone(self) -> bool:
        """Return whether a picture stays as it is."""
        return self.options.probability < 1 and torch.rand(()).item() >= self.options.probability


@cache
def names() -> list[str]:
    """Return the names of the classes that change a picture."""
    classes = inspect.getmembers(v2, lambda value: inspect.isclass(value) and issubclass(value, v2.Transform))
    return [name for name, _ in classes if name not in OTHER]


def _on_tensor(options: Any) -> bool:
    return options.variant in ON_TENSORS if options.on_tensor is None else options.on_tensor


def _make(options: Any) -> Any:
    """Return the transform; raise `ValueError` for an unknown class or an option that it does not take."""
    name, given = options.variant, dict(options.model_extra)
    if name not in names():
        what = "changes no single picture" if name in OTHER else "is no class of torchvision.transforms.v2"
        advice = did_you_mean(name, names()) or f"there are {', '.join(names())}"
        raise ValueError(f"'{name}' {what}; {advice}")
    cls = getattr(v2, name)
    arguments = inspect.signature(cls).parameters
    if strange := [key for key in given if key not in arguments]:
        known = [key for key in arguments if key not in OWN]
        advice = did_you_mean(strange[0], known) or f"its options are {', '.join([*known, *OWN[1:]])}"
        raise ValueError(f"{name} has no option '{strange[0]}'; {advice}")
    missing = [key for key, one in arguments.items() if one.default is one.empty and key not in given]
    if missing := [key for key in missing if arguments[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]:
        raise ValueError(f"{name} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}")
    for key in ENUMS.keys() & given.keys():
        values = [each.value for each in ENUMS[key]]
        if given[key] not in values:
            raise ValueError(f"{key}: {given[key]!r} is none of {', '.join(values)}")
        given[key] = ENUMS[key](given[key])
    try:
        return cls(**given)
    except Exception as error:
        raise ValueError(f"{name} refuses its options: {one_line(error)}") from None


def _try(options: Any) -> None:
    """Check the options on a grey picture, or a tensor; random numbers of the program stay as they are."""
    transform, on_tensor = _make(options), _on_tensor(options)
    value: Any = torch.zeros(3, 224, 224) if on_tensor else Image.new("RGB", (320, 240), "grey")
    kind, what = (Tensor, "tensor") if on_tensor else (Image.Image, "picture")
    try:
        with torch.random.fork_rng(devices=[]):
            result = transform(value)
    except Exception as error:
        if "larger than" in str(error):  # a crop of more than this picture, but perhaps not of more than the user's
            return
        fix = "" if on_tensor else "; on_tensor: true changes the encoder's input"
        raise ValueError(f"{options.variant} cannot change a {what} with these options: {one_line(error)}{fix}") from None
    if not isinstance(result, kind) or (on_tensor and result.shape != value.shape):
        raise ValueError(f"{options.variant} does not make a {what} of a {what}{' of the same shape' * on_tensor}")
