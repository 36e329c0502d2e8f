"""Define `DataOptions`: how the examples of the training data are chosen and changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
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
        description="random changes of the inputs of training, by modality, in order: each the name of an augmentation "
        "(`mmzoo list augmentation`), or `{use: NAME, ...}` with its options",
    )

    @field_validator("augment", mode="before")
    @classmethod
    def _augment(cls, value: Any) -> Any:
        """Read a single augmentation as a list of one."""
        if not isinstance(value, dict):
            raise ValueError("name the modality: {image: [flip, ...]}")
        lists = {key: own if isinstance(own, list) else [own] for key, own in value.items()}
        for one in (one for own in lists.values() for one in own):
            if not (isinstance(one, str) and one) and not (isinstance(one, dict) and "use" in one):
                raise ValueError("each augmentation is a name, or {use: NAME, ...} with its options")
        return lists

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            name, _, number = str(value).partition(":")
            warm = name == TEMPERATURE and re.fullmatch(r"\d+(\.\d+)?", number) and float(number) > 0
            if not warm and value not in (PROPORTIONAL, ROUND_ROBIN):
                raise ValueError("must be proportional, temperature:T with T above 0, round-robin, or numbers by name")
            return value
        value = dict(_flat(value))
        if wrong := [name for name, weight in value.items() if not isinstance(weight, int | float) or not math.isfinite(weight)]:
            raise ValueError(f"the weight of '{wrong[0]}' must be a number")
        if any(weight < 0 for weight in value.values()):
            raise ValueError("weights must not be negative")
        if not any(value.values()):
            raise ValueError("all weights are 0; at least one must be above it")
        return value


def _flat(weights: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield ``a.csv`` and 3 of ``{a: {csv: 3}}``, which ``--set data.weights.a.csv=3`` makes."""
    for name, own in weights.items():
        for inner, weight in _flat(own) if isinstance(own, dict) else [("", own)]:
            yield f"{name}.{inner}" if inner else str(name), weight
