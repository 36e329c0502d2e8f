"""Give a training the callbacks of the trackers that ``training.report_to`` names."""

from __future__ import annotations

from typing import Any

from mmzoo.api import hookimpl


@hookimpl
def mmzoo_train_callbacks(recipe: Any) -> list[Any]:
    if not recipe.training.report_to:
        return []
    from mmzoo_trackers.trackers import make_trackers

    return make_trackers(recipe)
