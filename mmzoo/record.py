"""What run.json holds: how a model was trained and measured. Cards are rendered from it, so its shape is checked on reading."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    """Later versions may record more; what is known must be of the known type."""

    model_config = ConfigDict(extra="allow", strict=True)


Name = Annotated[str, Field(max_length=1000)]


class Step(_Open):
    """A point of the loss curve."""

    step: float
    loss: float


class Training(_Open):
    """How it was trained."""

    dataset: Name
    split: Name
    examples: int | None = None
    fingerprint: Name | None = None
    blank_images: bool = False
    seed: int
    steps: int
    seconds: float
    processes: int
    device: Name
    precision: Name
    skipped: int = 0
    history: list[Step] = []
    versions: dict[Name, Name]


class Measured(_Open):
    """A score with its interval."""

    value: float
    low: float
    high: float


class Evaluated(_Open):
    """How it was measured once."""

    dataset: Name
    split: Name
    examples: int
    fingerprint: Name
    scores: dict[Name, Measured]
    controls: dict[Name, dict[Name, Measured]] = {}
    seed: int = 0
    seconds: float = 0.0
    versions: dict[Name, Name] = {}


class Origin(_Open):
    """The checkpoint that a part started from."""

    checkpoint: Name
    recipe: Name
    use: Name
    sha256: Name


class Record(_Open):
    """The contents of run.json."""

    training: Training | None = None
    evaluations: list[Evaluated] = []
    weights: dict[Name, Origin] = {}
