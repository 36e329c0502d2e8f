"""Prepare sample predictions for trackers: a table of texts, and small pictures of the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmzoo.api import DataError, MultimodalModel, one_line

SIDE = 256  # pixels of a picture's longer side
MAX_TEXT = 500  # characters of a cell
MARGIN = 8
COLUMNS = ("id", "task", "text", "target", "prediction")


@dataclass
class Row:
    """Hold a sample prediction: its cells by `COLUMNS`, and the small picture of its input, if that has one."""

    cells: dict[str, str]
    picture: Image.Image | None


def rows_of(samples: Sequence[Mapping[str, Any]], model: MultimodalModel) -> list[Row]:
    """Return the rows of sample predictions, whose pictures are opened by the readers of the model's encoders.

    Args:
        samples: each with ``id``, ``task``, ``text``, ``targets``, ``prediction`` and ``inputs`` by modality.
    """
    readers = {pipeline.modality: pipeline.reader for pipeline in model.input_pipelines().values() if pipeline.transform}
    return [Row(_cells(sample), _picture(sample.get("inputs") or {}, readers)) for sample in samples]


def _cells(sample: Mapping[str, Any]) -> dict[str, str]:
    values = {**sample, "target": " | ".join(map(str, sample.get("targets") or ()))}
    return {name: one_line(str(values.get(name) or ""), MAX_TEXT) for name in COLUMNS}


def _picture(inputs: Mapping[str, Any], readers: Mapping[str, Any]) -> Image.Image | None:
    """Return the first input that is read as a picture, made small; None if there is none or it cannot be read."""
    for modality, reader in readers.items():
        source = inputs.get(modality)
        if isinstance(source, list | tuple):
            source = source[0] if source else None
        if source is None:
            continue
        try:
            opened = reader.read(source)
        except DataError:
            continue
        if isinstance(opened, Image.Image):
            small = opened.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            return small
    return None


def numbered_grid(rows: Sequence[Row]) -> Image.Image | None:
    """Return the pictures side by side, each with the number of its row above it; None if no row has one."""
    pictures = [(number, row.picture) for number, row in enumerate(rows, 1) if row.picture is not None]
    if not pictures:
        return None
    font: Any = ImageFont.load_default(size=20)
    wide = max(picture.width for _, picture in pictures) + 2 * MARGIN
    high = max(picture.height for _, picture in pictures) + 20 + 3 * MARGIN
    across = min(5, math.ceil(math.sqrt(len(pictures))))
    grid = Image.new("RGB", (across * wide, math.ceil(len(pictures) / across) * high), "white")
    for place, (number, picture) in enumerate(pictures):
        left, top = place % across * wide + MARGIN, place // across * high + MARGIN
        ImageDraw.Draw(grid).text((left, top), str(number), fill="black", font=font)
        grid.paste(picture, (left, top + 20 + MARGIN))
    return grid


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows, numbered, as a Markdown table."""
    lines = [["", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    lines += [[str(number), *map(_escape, row.cells.values())] for number, row in enumerate(rows, 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Return a text that Markdown shows as it is, in a cell of a table."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~$!" else c for c in text)
