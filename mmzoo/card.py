from __future__ import annotations
from typing import Any
from mmzoo.recipe import Recipe
from mmzoo.summary import Summary
def render(recipe: Recipe, summary: Summary, run: dict[str, Any]) -> str:
    return f"# {recipe.name}\n"
