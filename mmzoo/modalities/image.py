"""Open images and convert them to RGB."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmzoo.errors import BadImage
from mmzoo.modalities.metadata import load_file, load_pixels, upright
from mmzoo.modalities.reader import Reader, file_of, name_of

BLANK_CANVAS = (64, 64)
# The types of a transparent value by mode; of a palette also one opacity a colour.
_TRANSPARENT: dict[str, Any] = {"1": int, "L": int, "RGB": tuple, "P": (int, bytes)}
LONG = 16  # times its width is a picture's height, or the other way round, from which on it is shortened before a transform
LONGEST = 4096
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


@dataclass(frozen=True)
class BoundedTransform:
    """Transform images with an encoder's ``transform``, in bounded time and memory.

    Resizing the shorter side of an image of 60,000 x 1 pixels to 224 would make 13 million columns, of which a crop of the centre
    keeps 224. Images up to `LONG` times as long as wide are transformed as they are.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        short, long = sorted(image.size)
        return self.transform(image if long <= LONG * short else self._shorten(image, short, long))

    def _shorten(self, image: Image.Image, short: int, long: int) -> Image.Image:
        """Crop the centre if the transform keeps no more than that, else resize the longer side."""
        wide = image.width == long
        if self._keeps_centre(wide):
            start = (long - LONG * short) // 2
            end = long - start  # as much on both sides, so that the centre stays where it was
            return image.crop((start, 0, end, short) if wide else (0, start, short, end))
        long = min(long, LONGEST)
        short = max(short, long // LONG)  # or it would shrink to nothing where the longer side becomes the encoder's
        return image.resize((long, short) if wide else (short, long))

    def _keeps_centre(self, wide: bool) -> bool:
        """Return whether what is far from the centre of a long image changes nothing."""
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16 * LONG, 3), dtype=np.uint8)
        other = pixels.copy()
        other[:, : 4 * LONG] ^= 255
        other[:, -4 * LONG :] ^= 255
        first, second = (Image.fromarray(each if wide else each.transpose(1, 0, 2)) for each in (pixels, other))
        return torch.equal(self.transform(first), self.transform(second))


def open_image(source: Any) -> Image.Image:
    """Open an image as RGB. Transparent pixels become white, and EXIF rotation is applied.

    Pictures of more than 8 bits are scaled by their range: unsigned 16 bits from 0-65535, floats in 0-1 from 0-1, whole numbers
    in 0-255 not at all, and others, such as heights in metres, from their least to their greatest value. What is NaN becomes
    black, and a picture of a single such value grey. Metadata that cannot be read is ignored.

    Args:
        source: a path, a ``file://`` URL, bytes, a mapping with ``bytes`` or ``path`` (as `datasets` stores images), a PIL image,
            or an array or tensor of shape [height, width], [height, width, 1 | 3 | 4] or [3, height, width], with integers in
            0-255, unsigned integers of 16 bits, or floats in 0-1.

    Raises:
        BadImage: it is missing, truncated, or not an image.
    """
    if source is None:
        raise BadImage("there is no image")
    name = name_of(source)
    try:
        image = _open(source)
        return upright(_rgb(image), image)
    except FileNotFoundError:
        raise BadImage(f"image {name} does not exist") from None
    except UnidentifiedImageError:
        raise BadImage(f"image {name} is not a readable image file") from None
    except Exception as error:  # for a damaged file Pillow may raise almost anything
        raise BadImage(f"image {name} cannot be read: {error}") from None


def _open(source: Any) -> Image.Image:
    """Return an image of any mode with its pixels loaded."""
    if isinstance(source, Image.Image):
        return load_pixels(source)
    if (file := file_of(source)) is not None:
        return load_file(file)
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()  # numpy has no bfloat16
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
            raise ValueError("a float array must be finite and in [0, 1]; scale it by its range first")
        array = (array.astype(np.float64) * 255).round()
    elif array.dtype == bool:
        array = array * np.uint8(255)
    elif not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"an array of type {array.dtype} holds no numbers")
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2 and array.max() > 255:
        array = _to_8_bits(array, 0, 65535)
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(
            f"an array of type {array.dtype} must hold integers from 0 to 255; give pixels of 16 bits as uint16, and scale "
            "others to floats in [0, 1]"
        )
    return Image.fromarray(array.astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed(image):
        return _deep(image).convert("RGB")
    if image.mode == "La":  # which converts to nothing else
        image = image.convert("LA")
    transparent = image.info.get("transparency")
    if transparent is not None and not isinstance(transparent, _TRANSPARENT.get(image.mode, ())):
        image, transparent = image.copy(), None  # damaged, or a text of that name
        del image.info["transparency"]
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or transparent is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _is_signed(image: Image.Image) -> bool:
    """Return whether a picture of 8 bits is a TIFF file of signed numbers, which Pillow reads as unsigned ones."""
    with suppress(Exception):  # the file's tags may be damaged
        return image.mode == "L" and image.tag_v2.get(339) == (2,)  # type: ignore[attr-defined]
    return False


def _deep(image: Image.Image) -> Image.Image:
    """Return an image of integers or floats as one of 8 bits, with white where it is transparent."""
    pixels = np.asarray(image)
    bits, inverted, nodata = 0, False, None
    with suppress(Exception):  # the tags of a TIFF file; any may be damaged
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, inverted = tags[258][0], tags.get(262) == 0
        if bits == 8:
            pixels = pixels.view(np.int8)
        if bits == 32 and tags.get(339) == (1,):
            pixels = pixels.view(np.uint32)  # Pillow has only signed ones
        nodata = float(tags[42113])  # as GDAL writes it
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        low, high = 0.0, float(2**bits - 1 if 8 < bits < 16 else 65535)
    else:
        low, high = _range(pixels[np.isfinite(pixels) & (pixels != nodata)])
    grey = _to_8_bits(pixels, low, high)
    if inverted:
        grey = 255 - grey
    if nodata is not None:
        grey[pixels == nodata] = 0
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white."""
    if not values.size:
        raise ValueError("none of its pixels is a number")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        return 0.0, 1.0
    if low >= 0 and high <= 255 and (values == np.floor(values)).all():
        return 0.0, 255.0
    return (low, high) if low < high else (low - 1, high + 1)


def _to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values.astype(np.float64) - low) / (high - low)
    return (np.nan_to_num(scaled, nan=0, posinf=1, neginf=0).clip(0, 1) * 255).round().astype(np.uint8)
