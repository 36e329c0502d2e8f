"""Define `Recipe` and `PartConfig`: the choices that make a model, as validated data. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmzoo.common.sanitize import one_line
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import BadRecipe
from mmzoo.interfaces.kinds import PARTS
from mmzoo.recipes.training_options import TrainingOptions

_POLICY = re.compile(r"frozen|full|last:[1-9]\d{0,5}|lora:[1-9]\d{0,5}")


class PartConfig(BaseModel):
    """Describe one chosen entry: its name, how it is trained, and its options (every other key).

    A plain string means ``{use: string}``. Options are checked against the entry's own ``Options``.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    use: str = Field(description="`name[:variant][@revision]` of the entry", min_length=1, max_length=500)
    train: str | None = Field(
        None,
        description="what is trained: `frozen`, `full`, `last:N` (the last N blocks) or `lora:r` (adapters of rank r); "
        "empty for the entry's default",
    )
    learning_rate: float | None = Field(None, gt=0, description="learning rate of this part; empty for `training.learning_rate`")
    pretrained: bool | None = Field(None, description="load pretrained weights; empty for the recipe's `pretrained`")
    weights: str | None = Field(
        None,
        min_length=1,
        description="a checkpoint folder of mmzoo; the part starts with the weights of the part of this kind in it, and with its "
        "options unless they are set here",
    )
    license: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,99}$",
        description="SPDX id of its licence, if the entry does not state it: for your own variant or your own data",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("train")
    @classmethod
    def _policy(cls, value: str | None) -> str | None:
        if value is not None and not _POLICY.fullmatch(value):
            raise ValueError("must be frozen, full, last:N or lora:r (N and r from 1)")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PartConfig:
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained: true exclude each other; remove one")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Return the entry's own options."""
        return dict(self.model_extra or {})

    def with_options(self, **options: Any) -> PartConfig:
        return PartConfig.of({**self.model_dump(exclude_none=True), **options}, "options")

    @classmethod
    def of(cls, data: Any, origin: str) -> PartConfig:
        """Validate a name or a mapping; a `BadRecipe` names the key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadRecipe(explain(error, origin)) from None


class Recipe(BaseModel):
    """Define the four parts of a model, and how it is trained."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=200)
    summary: str = ""
    source: str = Field("", description="the paper or code that it follows")
    encoder: PartConfig
    fusion: PartConfig
    language_model: PartConfig
    task: PartConfig
    pretrained: bool = Field(True, description="load pretrained weights if the entry has them")
    training: TrainingOptions = Field(default_factory=lambda: TrainingOptions())

    def parts(self) -> dict[str, PartConfig]:
        return {kind: getattr(self, kind) for kind in PARTS}

    def with_part(self, kind: str, **options: Any) -> Recipe:
        return self.model_copy(update={kind: getattr(self, kind).with_options(**options)})

    def pinned(self, lock: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """Return a copy with the revisions that a checkpoint's ``lock`` names for backbones from a hub."""
        recipe = self
        for kind, facts in lock.items():
            if facts.get("source") == "hub" and facts.get("commit"):
                recipe = recipe.with_part(kind, revision=facts["commit"])
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `Recipe.of` restores an equal recipe."""
        data = self.model_dump(mode="json", exclude_none=True)
        data["training"] = self.training.model_dump(mode="json", exclude_defaults=True)
        return data

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Validate plain data; a `BadRecipe` lists each key that is missing, unknown or of a wrong type."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise BadRecipe(explain(error, origin, known=list(cls.model_fields))) from None


def explain(error: ValidationError, origin: str, *, prefix: str = "", known: list[str] | None = None) -> str:
    """Return a message for a pydantic error about ``origin``, with one line for each key.

    ``prefix`` is put before each key, for example ``encoder``; ``known`` has the valid keys, for suggestions.
    """
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, [*filter(None, [prefix]), *problem["loc"]]))
        if problem["type"] == "extra_forbidden":
            names = list(TrainingOptions.model_fields) if key.startswith("training.") else known or []
            advice = did_you_mean(str(problem["loc"][-1]), names, 1) or (f"the options are {', '.join(names)}" if names else "")
            text = f"unknown option; {advice}" if advice else "unknown option"
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            text = f"{problem['msg'].removeprefix('Value error, ')} (got {one_line(repr(problem.get('input')), 80)})"
        lines.append(f"  {key or '(the whole)'}: {text}")
    return f"{origin}: {len(lines)} key{'s' if len(lines) > 1 else ''} wrong\n" + "\n".join(lines)
