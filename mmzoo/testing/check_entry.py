"""Check an entry as data, whatever its kind: its metadata, its target and its options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mmzoo.interfaces.kinds import KINDS
from mmzoo.modalities.reader import NONE
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import Subject

WITH_CLASS = [kind.name for kind in KINDS.values() if kind.base]
WITH_MODALITY = ("encoder", "language_model", "dataset")
MAX_SUMMARY = 120


@check(*KINDS)
def metadata(subject: Subject) -> None:
    """Require that an entry has a name, a target, a summary of one line with at most 120 characters, a licence (an SPDX id, or
    ``varies``) and a source. A language model, a data set, and an encoder with input also need a modality.
    """
    entry = subject.entry
    expect(not entry.problems(), "; ".join(entry.problems()))
    summary = entry.summary
    expect(len(summary) <= MAX_SUMMARY and "\n" not in summary, f"the summary has {len(summary)} characters: {summary!r}")
    expect(entry.license and entry.license != "unknown", f"license is {entry.license!r}")
    expect(entry.source.strip(), "source is empty")
    if entry.kind in WITH_MODALITY and not (entry.kind == "encoder" and subject.target.modality == NONE):
        expect(entry.modality, "modality is empty")


@check(*KINDS)
def target(subject: Subject) -> None:
    """Require that an entry's target imports and has the type that its kind needs (`mmzoo.registry.hookspecs`): a subclass of the
    kind's base class, a mapping for a recipe, a function for a command.
    """
    cls = subject.target
    base = KINDS[subject.entry.kind].base_class()
    if base is not None:
        problem = f"{subject.entry.target} is {cls!r}, not a subclass of mmzoo.api.{base.__name__}"
        expect(isinstance(cls, type) and issubclass(cls, base), problem)
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        expect(not missing, f"{cls.__name__} does not have {', '.join(missing)}")
    elif subject.entry.kind == "recipe":
        expect(isinstance(cls, Mapping), f"{subject.entry.target} is {cls!r}, not a mapping")
    else:
        expect(callable(cls), f"{subject.entry.target} is {cls!r}, not a function")
        expect(not inspect.iscoroutinefunction(cls), f"{subject.entry.target} is async, and nothing awaits it")


@check(*WITH_CLASS)
def options(subject: Subject) -> None:
    """Require that a class has a pydantic ``Options`` that refuses unknown keys and describes every field. No field may have the
    name of a key that every part of a recipe has, because its value would never reach the class. The entry's ``tiny`` must be
    valid options, and options must be equal after a round trip through JSON.
    """
    schema: Any = getattr(subject.target, "Options", None)
    expect(isinstance(schema, type) and issubclass(schema, BaseModel), f"Options is {schema!r}, not a pydantic model")
    bare = [name for name, info in schema.model_fields.items() if not info.description]
    expect(not bare, f"options without a description: {', '.join(bare)}")
    hidden = sorted(set(schema.model_fields) & set(PartConfig.model_fields))
    expect(not hidden, f"options that are keys of every part of a recipe: {', '.join(hidden)}")
    tiny = subject.tiny
    try:
        chosen = schema.model_validate(tiny)
    except ValidationError as error:
        raise AssertionError(f"tiny {tiny} are not valid options: {error}") from None
    restored = json.loads(chosen.model_dump_json())
    expect(schema.model_validate(restored) == chosen, f"{chosen!r} becomes, through JSON, {schema.model_validate(restored)!r}")
    schema.model_json_schema()
    try:
        schema.model_validate({**tiny, "no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown option is accepted; derive Options from mmzoo.api.Options")
