"""Open images and convert them to RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmzoo.errors import BadImage
from mmzoo.modalities.reader import Reader, file_of, name_of

BLANK_CANVAS = (64, 64)
PROBES = ((64, 48), (48, 80), (224, 224), (300, 200))  # sizes of the images that identify a transform


class ImageReader(Reader):
    """Read images with `open_image`. A blank image is all zeros, which is the mean image after normalisation."""

    error = BadImage

    def read(self, source: Any) -> Image.Image:
        return open_image(source)

    def blank(self, transform: Callable[[Any], Tensor]) -> Tensor:
        return torch.zeros_like(transform(Image.new("RGB", BLANK_CANVAS, "grey")))

    def probes(self) -> list[Image.Image]:
        random = np.random.default_rng(0)
        return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in PROBES]


def open_image(source: Any) -> Image.Image:
    """Open an image as RGB. Transparent pixels become white, and EXIF rotation is applied.

    Args:
        source: a path, a ``file://`` URL, bytes, a mapping with ``bytes`` or ``path`` (as `datasets` stores images), a PIL image,
            or an array or tensor of shape [height, width], [height, width, 1 | 3 | 4] or [3, height, width], with integers in
            0-255 or floats in 0-1.

    Raises:
        BadImage: it is missing, truncated, or not an image.
    """
    if source is None:
        raise BadImage("there is no image")
    name = name_of(source)
    try:
        image = _open(source)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise BadImage(f"image {name} does not exist") from None
    except UnidentifiedImageError:
        raise BadImage(f"image {name} is not a readable image file") from None
    except Exception as error:  # for a damaged file Pillow may raise almost anything
        raise BadImage(f"image {name} cannot be read: {error}") from None


def _open(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if (file := file_of(source)) is not None:
        return Image.open(file)
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError("an image is a path, a file:// URL, a PIL image or an array")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is not [height, width] or [height, width, 3]")
    if not array.size:
        raise ValueError(f"an array of shape {array.shape} has no pixels")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError("a float array must be finite and in [0, 1]")
        array = (array * 255).round()
    elif array.dtype == bool:
        array = array * np.uint8(255)
    elif not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise ValueError(f"an array of type {array.dtype} must hold integers from 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 257).convert("L")
    return image.convert("RGB")
