"""Define `DataOptions`: how the examples of the training data are chosen and changed."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

PROPORTIONAL, ROUND_ROBIN, TEMPERATURE = "proportional", "round-robin", "temperature"


class DataOptions(BaseModel):
    """Define how the training data are mixed, drawn and augmented. Validation and evaluation read data as they are."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    weights: str | dict[str, float] = Field(
        PROPORTIONAL,
        description="how often each of several data sets is drawn from: `proportional` to its examples, `temperature:T` to their "
        "number to the power 1/T, `round-robin` in turn, or numbers by the name of the data set, or of the task that it is for",
    )
    balance: str | None = Field(
        None, description="the task whose classes are drawn equally often; its examples then are those that have one target of it"
    )
    shuffle_buffer: int = Field(
        0, ge=0, le=1 << 24, description="examples of a stream that are shuffled together; 0 for the stream's own order"
    )
    deduplicate: bool = Field(False, description="leave out training examples that are among the validation examples")
    augment: dict[str, list[str | dict[str, Any]]] = Field(
        default_factory=dict,
        description="random changes of the inputs, by modality, in order: each an augmentation and its options",
    )

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(value, str):
            name, _, number = value.partition(":")
            if name == TEMPERATURE and re.fullmatch(r"\d+(\.\d+)?", number) and float(number) > 0:
                return value
            if value not in (PROPORTIONAL, ROUND_ROBIN):
                raise ValueError("must be proportional, temperature:T with T above 0, round-robin, or numbers by name")
        elif any(weight < 0 for weight in value.values()):
            raise ValueError("weights must not be negative")
        elif not any(value.values()):
            raise ValueError("all weights are 0; at least one must be above it")
        return value
