"""Read the pixels of image files whose metadata is damaged, and the orientation that metadata gives."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

# How Pillow widens the pixels of PNG files, but not their transparent value.
_WIDENED = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
    "RGB;16B": lambda value: tuple(v >> 8 for v in value),
}
_ORIENTATION = 0x0112


def load_file(file: Path | BytesIO) -> Image.Image:
    """Open an image file and load its pixels. Metadata that cannot be read is ignored.

    Raises:
        Exception: what Pillow raises for a file whose pixels cannot be read.
    """
    try:
        return load_pixels(Image.open(file))
    except FileNotFoundError:
        raise
    except Exception:  # for damaged metadata Pillow may raise almost anything, too
        data = file.getvalue() if isinstance(file, BytesIO) else file.read_bytes()
        for kept in ((b"tRNS", b"eXIf", 0xE1, 0xEE), (b"eXIf", 0xE1), ()):
            with suppress(Exception):
                return load_pixels(Image.open(BytesIO(_without_metadata(data, kept))))
        raise


def load_pixels(image: Image.Image) -> Image.Image:
    """Load the pixels of an image, and return it. Metadata after them that cannot be read is ignored."""
    tile, load_end = getattr(image, "tile", None), getattr(image, "load_end", None)
    if tile and load_end is not None:
        if (widen := _WIDENED.get(str(tile[0][3]))) is not None:
            with suppress(Exception):  # there is none, or a text of that name
                image.info["transparency"] = widen(image.info["transparency"])
        # It reads what follows the pixels, and has no other way to be told that it may fail.
        image.load_end = lambda: _tried(load_end)  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.__dict__.pop("load_end", None)
    return image


def _tried(function: Any) -> None:
    with suppress(Exception):
        function()


def upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Return ``image`` turned as the metadata of ``source`` says, or unchanged where that cannot be read."""
    with suppress(Exception):
        source.getexif()  # after an error the second call returns what could be read
    with suppress(Exception):
        orientation = source.getexif()[_ORIENTATION]
        image = image.copy()
        image.info.clear()  # which is written back when it is turned, and fails for some that can be read
        image.getexif()[_ORIENTATION] = orientation
        return ImageOps.exif_transpose(image)
    return image


def _without_metadata(data: bytes, kept: Collection[Any]) -> bytes:
    """Return a PNG or JPEG file without metadata but ``kept``: types of PNG chunks with the right checksum, JPEG markers.

    Raises:
        ValueError: the file is of another format.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[:8] + b"".join(_chunks(data, kept))
    if data.startswith(b"\xff\xd8"):
        return data[:2] + b"".join(_segments(data, kept))
    raise ValueError("neither a PNG nor a JPEG file")


def _chunks(data: bytes, kept: Collection[Any]) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, checksum = data[at + 4 : at + 8], data[end - 4 : end]
        # The first letter of a chunk that is needed for the pixels is a capital.
        if kind[:1].isupper() or (kind in kept and zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") == checksum):
            yield data[at:end]
        at = end


def _segments(data: bytes, kept: Collection[Any]) -> Iterator[bytes]:
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # the start of the pixels
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        marker = data[at + 1]
        if marker in kept or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # not of applications, and not a comment
            yield data[at:end]
        at = end
    yield data[at:]
