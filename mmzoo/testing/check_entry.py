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
    found = subject.target
    base = KINDS[subject.entry.kind].base_class()
    if base is not None:
        said = f"{subject.entry.target} is {found!r}, no subclass of mmzoo.api.{base.__name__}"
        expect(isinstance(found, type) and issubclass(found, base), said)
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        expect(not missing, f"{found.__name__} does not have {', '.join(missing)}")
    elif subject.entry.kind == "recipe":
        expect(isinstance(found, Mapping), f"{subject.entry.target} is {found!r}, no mapping")
    else:
        expect(callable(found), f"{subject.entry.target} is {found!r}, no function")
        expect(not inspect.iscoroutinefunction(found), f"{subject.entry.target} is async, and nothing would wait for it")


@check(*WITH_CLASS)
def options(subject: Subject) -> None:
    """Require that a class has a pydantic ``Options`` that refuses unknown keys and describes every field. No field may have the
    name of a key that every part of a recipe has, because its value would never reach the class. The entry's ``tiny`` must be
    valid options, and options must be equal after a round trip through JSON.
    """
    schema: Any = getattr(subject.target, "Options", None)
    expect(isinstance(schema, type) and issubclass(schema, BaseModel), f"Options is {schema!r}, no pydantic model")
    bare = [name for name, info in schema.model_fields.items() if not info.description]
    expect(not bare, f"options without a description: {', '.join(bare)}")
    hidden = sorted(set(schema.model_fields) & set(PartConfig.model_fields))
    expect(not hidden, f"options that a recipe's part keeps to itself: {', '.join(hidden)}")
    given = subject.tiny
    try:
        chosen = schema.model_validate(given)
    except ValidationError as error:
        raise AssertionError(f"tiny {given} are no options of it: {error}") from None
    said = json.loads(chosen.model_dump_json())
    expect(schema.model_validate(said) == chosen, f"{chosen!r} comes back from JSON as {schema.model_validate(said)!r}")
    schema.model_json_schema()
    try:
        schema.model_validate({**given, "no_such_option": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown option is taken without a word; derive Options from mmzoo.api.Options")
