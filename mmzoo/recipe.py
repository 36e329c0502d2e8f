"""Recipes: the choices that make a model, as validated data. Imports no torch."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmzoo.common import parsing
from mmzoo.errors import BadRecipe

PARTS = ("encoder", "fusion", "language_model", "task")
MAX_RECIPE_BYTES = 8 << 20

_POLICY = re.compile(r"frozen|full|last:[1-9]\d{0,5}|lora:[1-9]\d{0,5}")


class Part(BaseModel):
    """One chosen entry: its name, how it is trained, and its options (every other key).

    A plain string stands for ``{use: string}``. Options are checked against the entry's own ``Options``.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    use: str = Field(description="`name[:variant][@revision]` of the entry", min_length=1, max_length=500)
    train: str | None = Field(
        None,
        description="what is trained: `frozen`, `full`, `last:N` (the last N blocks) or `lora:r` (adapters of rank r); "
        "empty for the entry's own default",
    )
    learning_rate: float | None = Field(None, gt=0, description="its own learning rate; empty for `train.learning_rate`")
    pretrained: bool | None = Field(None, description="load pretrained weights; empty for the recipe's `pretrained`")
    weights: str | None = Field(
        None,
        min_length=1,
        description="a checkpoint folder of mmzoo, whose part of this kind it starts from: its weights, and its options where "
        "they are not set here",
    )
    license: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,99}$",
        description="SPDX id of its licence, where the entry cannot know it: of a variant of your own, or of your own data",
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
    def _one_source(self) -> Part:
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained: true exclude each other; leave one out")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The entry's own options."""
        return dict(self.model_extra or {})

    def with_options(self, **options: Any) -> Part:
        return Part.of({**self.model_dump(exclude_none=True), **options}, "options")

    @classmethod
    def of(cls, data: Any, origin: str) -> Part:
        """Validate a name or a mapping.

        Raises:
            BadRecipe: naming the key.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadRecipe(explain(error, origin)) from None


class TrainOptions(BaseModel):
    """How a recipe is trained. Times are in optimizer steps unless they say epochs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of parts that name none")
    batch_size: int = Field(32, ge=1, le=1 << 20, description="examples a step and process")
    epochs: float = Field(1.0, gt=0, le=1e9, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, le=1 << 40, description="stop after so many steps; overrides `epochs`")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay; not on biases and norms")
    warmup: float = Field(0.03, ge=0, description="linear warm-up: a share of all steps below 1, else steps")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="learning rate after the warm-up"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0 for no clipping")
    accumulate: int = Field(1, ge=1, description="batches a step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast type; `auto` is bf16 on a GPU that has it, else fp32"
    )
    gradient_checkpointing: bool = Field(False, description="trade compute for memory in the language model")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of initialisation, shuffling and dropout")
    workers: int | None = Field(None, ge=0, le=256, description="data loading processes; empty for 0 on a CPU, else up to 8")
    save_every: int = Field(0, ge=0, description="steps between checkpoints to resume from; 0 for once an epoch")
    log_every: int = Field(20, ge=1, description="steps between entries of the loss curve")
    keep_images_together: bool = Field(
        False,
        description="shuffle images, not examples: the examples of one image come in one batch, where it is encoded once",
    )
    cache_features: bool | None = Field(
        None,
        description="encode each distinct image once, before the first epoch, and keep its features on disk; empty for doing so "
        "where it pays: the encoder is frozen, and the run would encode an image more than once",
    )
    blank_images: bool = Field(False, description="replace each image by a blank one: trains a blind control")


class Recipe(BaseModel):
    """The four choices that make a model, and how it is trained.

    Raises:
        BadRecipe: from `Recipe.read` and `mmzoo.build`, naming the key at fault.
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=200)
    summary: str = ""
    source: str = Field("", description="the paper or code that it follows")
    encoder: Part
    fusion: Part
    language_model: Part
    task: Part
    pretrained: bool = Field(True, description="load pretrained weights where an entry has them")
    train: TrainOptions = Field(default_factory=lambda: TrainOptions())

    def parts(self) -> dict[str, Part]:
        return {kind: getattr(self, kind) for kind in PARTS}

    def with_part(self, kind: str, **options: Any) -> Recipe:
        return self.model_copy(update={kind: getattr(self, kind).with_options(**options)})

    def pinned(self, lock: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """With the revision that a checkpoint's ``lock`` names for each backbone from a hub."""
        recipe = self
        for kind, facts in lock.items():
            if facts.get("source") == "hub" and facts.get("commit"):
                recipe = recipe.with_part(kind, revision=facts["commit"])
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """As plain data that `Recipe.of` reads back to an equal recipe."""
        data = self.model_dump(mode="json", exclude_none=True)
        data["train"] = self.train.model_dump(mode="json", exclude_defaults=True)
        return data

    @classmethod
    def of(cls, data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Validate plain data; errors name the key.

        Raises:
            BadRecipe: listing each key that is missing, unknown or of a wrong type.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise BadRecipe(explain(error, origin, known=list(cls.model_fields))) from None

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a YAML or JSON file."""
        return cls.of(read_mapping(path), origin=str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise BadRecipe(f"{path}: larger than {MAX_RECIPE_BYTES >> 20} MiB; that is no recipe")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path}: cannot be read: {error}") from None
    try:
        data = parsing.parse(text, as_yaml=path.suffix != ".json")
    except ValueError as error:
        raise BadRecipe(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(data, dict):
        raise BadRecipe(f"{path}: a recipe is a mapping with encoder, fusion, language_model and task")
    return data


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, key by key; a part that is named anew loses the old part's options."""
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, str) and key in PARTS:
            old = {"use": old}
        same_part = not (isinstance(value, Mapping) and "use" in value and value["use"] != (old or {}).get("use"))
        if isinstance(value, Mapping) and isinstance(old, Mapping) and (key not in PARTS or same_part):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def assignments(pairs: list[str], flag: str = "--set") -> dict[str, Any]:
    """``["train.epochs=3", "fusion.length=20"]`` as nested data; values are read as YAML.

    Raises:
        BadRecipe: a pair without ``=`` or with a value that is not YAML.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            example = "train.learning_rate=1e-3" if flag == "--set" else "text_column=question"
            raise BadRecipe(f"{flag} {pair}: write KEY=VALUE, e.g. {flag} {example}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadRecipe(f"{flag} {key}: {text!r} is not a YAML value: {error}") from None
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
            with contextlib.suppress(ValueError):
                value = float(value)
        at = nested
        *path, last = key.split(".")
        for step in path:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                raise BadRecipe(f"{flag} {key}: '{step}' was already given a value")
        at[last] = value
    return nested


def explain(error: ValidationError, origin: str, *, prefix: str = "", known: list[str] | None = None) -> str:
    """A pydantic error in this package's words: one line a key."""
    import difflib

    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join([*([prefix] if prefix else []), *(str(step) for step in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            names = list(TrainOptions.model_fields) if key.startswith("train.") else known or []
            near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
            text = "unknown option" + (f"; did you mean '{near[0]}'?" if near else "")
            if not near and names:
                text += f"; the options are {', '.join(names)}"
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            shown = repr(problem.get("input"))
            text = f"{problem['msg'].removeprefix('Value error, ')} (got {shown if len(shown) < 80 else shown[:77] + '...'})"
        lines.append(f"  {key or '(the whole)'}: {text}")
    return f"{origin}: {len(lines)} key{'s' if len(lines) > 1 else ''} wrong\n" + "\n".join(lines)
