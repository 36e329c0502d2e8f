"""Register the augmentations."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl

_TORCHVISION = "torchvision, BSD-3-Clause, https://docs.pytorch.org/vision/stable/transforms.html"
_AUDIOMENTATIONS = "as in https://github.com/iver56/audiomentations"


def _picture(name: str, target: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of an augmentation of images; ``tiny`` has the options that it is tested with."""
    return Entry("augmentation", name, f"mmzoo_augment.{target}", summary, "image", "Apache-2.0", source, tiny=tiny)


def _sound(name: str, target: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of an augmentation of audio."""
    return Entry("augmentation", name, f"mmzoo_augment.sound:{target}", summary, "audio", "Apache-2.0", source, tiny=tiny)


# fmt: off
_AUGMENTATIONS = (
    _picture("v2", "torchvision:Torchvision", _TORCHVISION,
             "any class of torchvision.transforms.v2 that changes one picture: `v2:GaussianBlur`, with its own options",
             variant="ColorJitter", brightness=0.5),
    _picture("flip", "pictures:Flip", _TORCHVISION, "mirror pictures left to right, or upside down"),
    _picture("crop", "pictures:Crop", f"Szegedy et al. 2014, https://arxiv.org/abs/1409.4842; {_TORCHVISION}",
             "cut out a random part of a picture and resize it to the picture's size"),
    _picture("color", "pictures:Color", f"Howard 2013, https://arxiv.org/abs/1312.5402; {_TORCHVISION}",
             "change brightness, contrast, saturation and hue"),
    _picture("rotate", "pictures:Rotate", _TORCHVISION, "turn pictures by a random angle"),
    _picture("erase", "pictures:Erase", f"Zhong et al. 2017, https://arxiv.org/abs/1708.04896; {_TORCHVISION}",
             "erase a random rectangle of what the encoder gets"),
    _picture("trivial-augment", "pictures:TrivialAugment",
             f"Müller and Hutter 2021, https://arxiv.org/abs/2103.10158; {_TORCHVISION}",
             "one random change of random strength, out of 14, for each picture"),
    _picture("rand-augment", "pictures:RandAugment", f"Cubuk et al. 2019, https://arxiv.org/abs/1909.13719; {_TORCHVISION}",
             "some random changes of a set strength, out of 14, for each picture"),
    _sound("gain", "Gain", _AUDIOMENTATIONS, "make clips louder or softer"),
    _sound("noise", "Noise", _AUDIOMENTATIONS,
           "add white noise at a random signal-to-noise ratio"),
    _sound("shift", "Shift", _AUDIOMENTATIONS, "move clips forward or back in time"),
    _sound("spec-augment", "SpecAugment", "Park et al. 2019, https://arxiv.org/abs/1904.08779",
           "silence random stretches of time and bands of frequency", time_share=1.0, time_width=30),
)
# fmt: on


@hookimpl
def mmzoo_augmentations() -> list[Entry]:
    return list(_AUGMENTATIONS)
