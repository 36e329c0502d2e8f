"""Checks of the parts of a model: encoders, fusions, language models and tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mmzoo.recipe import PARTS
from mmzoo.testing.contract import Subject, check
from mmzoo.testing.small import round_trip, tiny_parts


@check(*PARTS)
def save_and_load(subject: Subject) -> None:
    """A model with the part trains two steps with finite losses; saved and loaded it says the same, to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        round_trip(tiny_parts(subject.entry), Path(folder) / "model")
