"""What run.json holds: how a model was trained and measured. Cards are rendered from it, so its shape is checked on reading."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    """Later versions may record more; what is known must be of the known type."""

    model_config = ConfigDict(extra="allow", strict=True)


Name = Annotated[str, Field(max_length=1000)]


class Step(_Open):
    """A point of the loss curve."""

    step: float
    loss: float


Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Options = Annotated[dict[Name, Any], Field(max_length=1000)]


class Energy(_Open):
    """What a run used, as far as it could be read: ``measured`` says of what."""

    kwh: float
    measured: list[Name]


class Data(_Open):
    """A data set: its name, or the name of the file or folder if it is ``local``, which nobody else can find by it."""

    dataset: Name
    local: bool = False
    dataset_options: Options = {}


class Training(Data):
    """How it was trained."""

    license: Name | None = None
    split: Name
    examples: Count | None = None
    fingerprint: Name | None = None
    blank_images: bool = False
    seed: Count
    steps: Count
    seconds: float
    processes: Count
    device: Name
    precision: Name
    hardware: Name = ""
    energy: Energy | None = None
    skipped: Count = 0
    history: list[Step] = []
    versions: dict[Name, Name]


class Measured(_Open):
    """A score with its interval."""

    value: float
    low: float
    high: float


class Said(_Open):
    """What the model said of one example."""

    id: Name
    text: Name
    targets: Annotated[list[Name], Field(max_length=20)]
    prediction: Name


class Evaluated(Data):
    """How it was measured once: on the first ``limit`` examples if that is not None, with ``options`` to the prediction."""

    split: Name
    examples: Count
    limit: Count | None = None
    options: Options = {}
    fingerprint: Name
    scores: dict[Name, Measured]
    controls: dict[Name, dict[Name, Measured]] = {}
    seed: Count = 0
    seconds: float = 0.0
    device: Name = ""
    hardware: Name = ""
    energy: Energy | None = None
    samples: Annotated[list[Said], Field(max_length=20)] = []
    versions: dict[Name, Name] = {}


class Origin(_Open):
    """The checkpoint that a part started from."""

    checkpoint: Name
    recipe: Name
    use: Name
    sha256: Name
    license: Name | None = None


class Record(_Open):
    """The contents of run.json."""

    training: Training | None = None
    evaluations: list[Evaluated] = []
    weights: dict[Name, Origin] = {}
