"""Define the schema of run.json: how a model was trained and evaluated.

It is validated when a checkpoint is read, because cards are rendered from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mmzoo.modalities.reader import plural

Name = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
OptionValues = Annotated[dict[Name, Any], Field(max_length=1000)]


class OpenRecord(BaseModel):
    """Allow unknown keys, since later versions may record more; known keys must have the known type."""

    model_config = ConfigDict(extra="allow", strict=True)


class LossRecord(OpenRecord):
    """Hold one point of the loss curve."""

    step: float
    loss: float
    terms: dict[Name, float] = {}


class EnergyRecord(OpenRecord):
    """Hold the energy that a run used, in kWh, and the devices that it was ``measured`` on."""

    kwh: float
    measured: list[Name]


class DataRecord(OpenRecord):
    """Name a data set. If it is ``local``, the name is that of the author's own file or folder, and others cannot find it."""

    dataset: Name
    local: bool = False
    dataset_options: OptionValues = {}


class SkippedRecord(OpenRecord):
    """Name an example that was skipped, and why."""

    id: Name
    error: Name


class BestRecord(OpenRecord):
    """Name the step whose weights the model has, and its score."""

    step: Count
    score: float


class ValidatedRecord(OpenRecord):
    """Hold the scores of one validation; one that is not a number is None."""

    step: Count
    scores: dict[Name, float | None]


class ValidationRecord(DataRecord):
    """Describe the validations of a training run: their data, the metric that chose the best step, and every score.

    A ``share`` is that of the training examples that was held out.
    """

    split: Name
    share: float | None = None
    examples: Count
    fingerprint: Name
    metric: Name
    best: BestRecord | None = None
    stopped_early: bool = False
    history: list[ValidatedRecord] = []


class TrainingRecord(DataRecord):
    """Describe a training run: its data, options, duration in seconds, hardware and loss curve."""

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
    energy: EnergyRecord | None = None
    skipped: Count = 0
    outside_labels: dict[Name, Count] = {}
    skipped_examples: Annotated[list[SkippedRecord], Field(max_length=100)] = []  # the first of them
    history: list[LossRecord] = []
    validation: ValidationRecord | None = None
    versions: dict[Name, Name]


class ScoreRecord(OpenRecord):
    """Hold a score and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


class SampleRecord(OpenRecord):
    """Hold one example, and what the model predicted for it."""

    id: Name
    text: Name
    targets: Annotated[list[Name], Field(max_length=20)]
    prediction: Name


class EvaluationRecord(DataRecord):
    """Describe one evaluation: on the first ``limit`` examples, or on all if it is None, with ``options`` for the prediction.

    Where the data set was named for a ``task``, this one alone was measured.
    """

    split: Name
    task: Name | None = None  # the only one that the data set was for
    examples: Count
    skipped: Count = 0  # beside these
    skipped_examples: Annotated[list[SkippedRecord], Field(max_length=100)] = []
    limit: Count | None = None
    options: OptionValues = {}
    fingerprint: Name
    scores: dict[Name, ScoreRecord]
    controls: dict[Name, dict[Name, ScoreRecord]] = {}
    seed: Count = 0
    seconds: float = 0.0
    processes: Count = 1
    device: Name = ""
    hardware: Name = ""
    energy: EnergyRecord | None = None
    notes: dict[Name, Name] = {}
    outside_labels: dict[Name, Count] = {}
    samples: Annotated[list[SampleRecord], Field(max_length=20)] = []
    versions: dict[Name, Name] = {}


class WarmStartRecord(OpenRecord):
    """Name the checkpoint that a part started from."""

    checkpoint: Name
    recipe: Name
    use: Name
    sha256: Name
    license: Name | None = None


class RunRecord(OpenRecord):
    """Hold the contents of run.json."""

    training: TrainingRecord | None = None
    evaluations: list[EvaluationRecord] = []
    weights: dict[Name, WarmStartRecord] = {}


MAX_SKIPPED = 100  # skipped examples that a record names


def skipped_record(skipped: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return the first examples that were skipped, from pairs of id and error, as a record has them."""
    return [{"id": name[:1000], "error": error[:1000]} for name, error in islice(skipped, MAX_SKIPPED)]


def control_title(control: str, modalities: Sequence[str]) -> str:
    """Return the name of a control as tables write it: ``images shuffled``; ``shuffled:audio`` is of one modality."""
    what, _, modality = control.partition(":")
    return f"{plural(modality) if modality else ' and '.join(map(plural, modalities))} {what}"
