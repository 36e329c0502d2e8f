"""Read a recipe from a YAML or JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmzoo.common import parsing
from mmzoo.errors import BadRecipe

MAX_RECIPE_BYTES = 8 << 20


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file that contains a mapping.

    Raises:
        BadRecipe: it cannot be read, is too large, is not valid, or is not a mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise BadRecipe(f"{path}: larger than {MAX_RECIPE_BYTES >> 20} MiB, which is too large for a recipe")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path}: cannot be read: {error}") from None
    try:
        data = parsing.parse(text, as_yaml=path.suffix != ".json")
    except ValueError as error:
        raise BadRecipe(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(data, dict):
        raise BadRecipe(f"{path}: a recipe is a mapping with encoder, fusion, language_model and task")
    return data
