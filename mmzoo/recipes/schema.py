"""Define `Recipe` and `PartConfig`: the choices that make a model, as validated data. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmzoo.common.sanitize import one_line
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import BadRecipe, DoesNotFit
from mmzoo.interfaces.kinds import GROUPS, MAX_PARTS, kind_of
from mmzoo.recipes.data_options import DataOptions
from mmzoo.recipes.shape import ALL, PART_NAME, lengthen, shorten
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

    def with_options(self, **options: Any) -> Self:
        return self.of({**self.model_dump(exclude_none=True), **options}, "options")

    @classmethod
    def of(cls, data: Any, origin: str) -> Self:
        """Validate a name or a mapping; a `BadRecipe` names the key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadRecipe(explain(error, origin)) from None


class TaskConfig(PartConfig):
    """Describe a chosen task: beside the keys of every part, its weight in the loss and where its targets are."""

    weight: float = Field(1.0, ge=0, description="factor on the task's loss")
    target: str | None = Field(
        None, min_length=1, description="key of its targets in the data, such as a column; empty for the task's own name"
    )


OPTIONS: dict[str, type[BaseModel]] = {"training": TrainingOptions, "data": DataOptions}
PartName = Annotated[str, Field(pattern=f"^{PART_NAME}$")]


class Recipe(BaseModel):
    """Define the parts of a model, and how it is trained.

    There may be several encoders, fusions and tasks, each by name. The short forms ``encoder``, ``fusion`` and ``task`` are read
    into the long ones; a fusion in the short form serves every encoder, under the name ``all`` until the model is built.
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=200)
    summary: str = ""
    source: str = Field("", description="the paper or code that it follows")
    encoders: dict[PartName, PartConfig] = Field(
        min_length=1, max_length=MAX_PARTS, description="by name; `encoder: X` is one, named by its modality"
    )
    fusions: dict[PartName, PartConfig] = Field(
        min_length=1, max_length=MAX_PARTS, description="by the encoder that each reads; `fusion: X` serves every encoder"
    )
    language_model: PartConfig
    tasks: dict[PartName, TaskConfig] = Field(
        min_length=1, max_length=MAX_PARTS, description="by name; `task: X` is one, named by its entry"
    )
    pretrained: bool = Field(True, description="load pretrained weights if the entry has them")
    training: TrainingOptions = Field(default_factory=lambda: TrainingOptions())
    data: DataOptions = Field(default_factory=lambda: DataOptions())

    @model_validator(mode="before")
    @classmethod
    def _long(cls, data: Any) -> Any:
        return lengthen(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _fusion_of_each(self) -> Recipe:
        encoders, fusions = list(self.encoders), list(self.fusions)
        if ALL in encoders:
            raise ValueError(f"encoders.{ALL}: no encoder may have this name")
        if fusions == [ALL]:
            return self
        if strange := [name for name in fusions if name not in encoders]:
            raise ValueError(f"fusions.{strange[0]}: there is no encoder of that name; the encoders are {', '.join(encoders)}")
        if without := [name for name in encoders if name not in fusions]:
            raise ValueError(f"fusions: encoder '{without[0]}' has none; add fusions.{without[0]}, or name one fusion for all")
        return self

    def parts(self) -> dict[str, PartConfig]:
        """Return every part by its key: ``encoders.image``, ``fusions.image``, ``language_model``, ``tasks.caption``."""
        return {
            **{f"encoders.{name}": part for name, part in self.encoders.items()},
            **{f"fusions.{name}": part for name, part in self.fusions.items()},
            "language_model": self.language_model,
            **{f"tasks.{name}": part for name, part in self.tasks.items()},
        }

    @property
    def encoder(self) -> PartConfig:
        """Return the only encoder; raise `DoesNotFit` if there are several."""
        return self.parts()[self.key("encoder")]

    @property
    def fusion(self) -> PartConfig:
        """Return the only fusion; raise `DoesNotFit` if there are several."""
        return self.parts()[self.key("fusion")]

    @property
    def task(self) -> TaskConfig:
        """Return the only task; raise `DoesNotFit` if there are several."""
        return self.tasks[self.key("task").partition(".")[2]]

    def key(self, part: str) -> str:
        """Return the key of a part; the kind ``encoder`` stands for the only encoder.

        Raises:
            DoesNotFit: there are several of the kind.
        """
        if part not in GROUPS:
            return part
        several = getattr(self, GROUPS[part])
        if len(several) > 1:
            raise DoesNotFit(f"this model has several {GROUPS[part]}: {', '.join(several)}; name one, as {GROUPS[part]}.NAME")
        return f"{GROUPS[part]}.{next(iter(several))}"

    def label(self, key: str) -> str:
        """Return a part's key as messages write it: ``encoder`` if there is only one."""
        kind = kind_of(key)
        return kind if kind in GROUPS and len(getattr(self, GROUPS[kind])) == 1 else key

    def with_part(self, part: str, **options: Any) -> Recipe:
        """Return a copy with options of a part changed; ``part`` as `key` takes it."""
        key = self.key(part)
        return self.replace_part(key, self.parts()[key].with_options(**options))

    def replace_part(self, key: str, config: PartConfig) -> Recipe:
        """Return a copy with another part."""
        group, _, name = key.partition(".")
        return self.model_copy(update={group: {**getattr(self, group), name: config} if name else config})

    def pinned(self, lock: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """Return a copy with the revisions that a checkpoint's ``lock`` names for backbones from a hub."""
        recipe = self
        for key, facts in lock.items():
            if facts.get("source") == "hub" and facts.get("commit") and key in recipe.parts():
                recipe = recipe.with_part(key, revision=facts["commit"])
        return recipe

    def to_dict(self, *, short: bool = False) -> dict[str, Any]:
        """Return plain data from which `Recipe.of` restores an equal recipe; ``short`` writes a single part as people do."""
        data = self.model_dump(mode="json", exclude_none=True)
        for task in data["tasks"].values():
            if task["weight"] == 1:
                del task["weight"]
        for group in ("training", "data"):
            data[group] = getattr(self, group).model_dump(mode="json", exclude_defaults=True)
        if not data["data"]:
            del data["data"]
        return shorten(data) if short else data

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Validate plain data; a `BadRecipe` lists each key that is missing, unknown or of a wrong type."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise BadRecipe(explain(error, origin, known=_known(data), short=[kind for kind in GROUPS if kind in data])) from None


def _known(data: Mapping[str, Any]) -> list[str]:
    """Return the keys of a recipe, in the long or the short form that ``data`` has."""
    return [next((k for k, group in GROUPS.items() if group == f and f not in data), f) for f in Recipe.model_fields]


def explain(
    error: ValidationError, origin: str, *, prefix: str = "", known: list[str] | None = None, short: Sequence[str] = ()
) -> str:
    """Return a message for a pydantic error about ``origin``, with one line for each key.

    Args:
        prefix: put before each key, for example ``encoder``.
        known: the valid keys, for suggestions.
        short: the kinds of parts that were written in the short form, as the message writes them.
    """
    lines = []
    for problem in error.errors(include_url=False):
        steps = [step for step in problem["loc"] if step != "[key]"]
        kind = next((kind for kind in short if steps[:1] == [GROUPS[kind]]), None)
        key = ".".join(map(str, [*filter(None, [prefix]), *([kind, *steps[2:]] if kind else steps)]))
        if problem["type"] == "extra_forbidden":
            names = list(OPTIONS[steps[0]].model_fields) if steps[0] in OPTIONS and not prefix else known or []
            advice = did_you_mean(str(problem["loc"][-1]), names, 1) or (f"the options are {', '.join(names)}" if names else "")
            text = f"unknown option; {advice}" if advice else "unknown option"
        elif problem["type"] == "missing":
            text = "is missing"
        elif not steps:
            lines.append(f"  {problem['msg'].removeprefix('Value error, ')}")
            continue
        else:
            text = f"{problem['msg'].removeprefix('Value error, ')} (got {one_line(repr(problem.get('input')), 80)})"
        lines.append(f"  {one_line(key, 200) or '(the whole)'}: {text}")
    return f"{origin}: {len(lines)} key{'s' if len(lines) > 1 else ''} wrong\n" + "\n".join(lines)
