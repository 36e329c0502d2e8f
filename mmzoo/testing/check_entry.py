"""Check a plugin as a whole, and each entry as data, whatever its kind: its metadata, its target and its options."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mmzoo.interfaces.kinds import KINDS
from mmzoo.modalities.reader import NONE
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.manager import IN_USE, plugin_manager
from mmzoo.testing import probe
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import InstalledPlugin, Subject

WITH_CLASS = [kind.name for kind in KINDS.values() if kind.base]
WITH_MODALITY = ("encoder", "language_model", "dataset", "augmentation")
MAX_SUMMARY = 120
MAX_SECONDS, TRIES = 0.05, 5  # of an import


@check()
def loads(plugin: InstalledPlugin) -> None:
    """Require that every entry point in the group ``mmzoo`` is a module that imports, marks known hooks with ``mmzoo.hookimpl``,
    and returns entries whose names no other plugin uses.
    """
    plugins = [one for one in plugin_manager().plugins if one.dist == plugin.distribution]
    for one in plugins:
        expect(one.state == IN_USE, one.failure.error if one.failure else f"the plugin is not in use: {one.name}, {one.reason}")
    registered = plugin.entries or any(plugin_manager().manager.has_plugin(one.full_name) for one in plugins)
    expect(registered, "the plugin has no entry and no hook")


@check()
def listing(plugin: InstalledPlugin) -> None:
    """Require that listing is quick: in a fresh process, the module of an entry point must import in under 50 ms (the best of
    several tries) and must import neither torch nor another large library. The modules of commands must not import one either,
    so that ``--help`` is quick.
    """
    commands = _modules(entry.target for entry in plugin.entries if entry.kind == "command")
    best: dict[str, float] = {}
    for _ in range(TRIES):
        report = probe.run([*_modules(point.value for point in plugin.points), *commands], [])
        expect(report["error"] is None, f"the import fails: {report['error']}")
        expect(not report["heavy"], f"the import loads {', '.join(report['heavy'])}; import it in the entry's own module")
        for name, seconds in report["seconds"].items():
            best[name] = min(seconds, best.get(name, seconds))
        slow = {name: seconds for name, seconds in best.items() if seconds >= MAX_SECONDS and name not in commands}
        if not slow:
            return
    times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in slow.items())
    expect(False, f"the import takes {times} at best")


@check()
def side_effects(plugin: InstalledPlugin) -> None:
    """Require that importing a plugin and the modules of its entries opens no connection, looks up no host, and writes, creates
    or removes no file outside the cache (``mmzoo.api.cache_folder()``). The module of an entry point must not change
    the process: environment, working directory, ``sys.path``, standard streams, recursion limit, locale, signals, random seed
    and threads.
    """
    targets = _modules(entry.target for entry in plugin.entries)
    report = probe.run(_modules(point.value for point in plugin.points), targets)
    expect(not report["events"], f"the import does: {'; '.join(report['events'])}")
    expect(not report["changed"], f"the import changes {', '.join(report['changed'])}")
    expect(report["error"] is None, f"the import fails: {report['error']}")


def _modules(targets: Iterable[str]) -> list[str]:
    return sorted({target.partition(":")[0] for target in targets})


@check(*KINDS)
def metadata(subject: Subject) -> None:
    """Require that an entry has a name, a target, a summary of one line with at most 120 characters, a licence (an SPDX id, or
    ``varies``) and a source. A language model, a data set, an augmentation, and an encoder with input also need a modality.
    """
    entry, summary = subject.entry, subject.entry.summary
    expect(not entry.problems(), "; ".join(entry.problems()))  # so the summary is one line
    expect(len(summary) <= MAX_SUMMARY, f"the summary has {len(summary)} characters: {summary!r}")
    expect(entry.license and entry.license != "unknown", f"license is {entry.license!r}")
    expect(entry.source.strip(), "source is empty")
    if entry.kind in WITH_MODALITY and not (entry.kind == "encoder" and subject.target.modality == NONE):
        expect(entry.modality, "modality is empty")


@check(*KINDS)
def target(subject: Subject) -> None:
    """Require that an entry's target imports and has the type that its kind needs (`mmzoo.registry.hookspecs`): a subclass of the
    kind's base class, a mapping for a recipe, a function for a command.
    """
    cls, base = subject.target, KINDS[subject.kind].base_class()
    what = f"{subject.entry.target} is"
    if base is not None:
        expect(isinstance(cls, type) and issubclass(cls, base), f"{what} {cls!r}, not a subclass of mmzoo.api.{base.__name__}")
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        expect(not missing, f"{cls.__name__} does not have {', '.join(missing)}")
    elif subject.kind == "recipe":
        expect(isinstance(cls, Mapping), f"{what} {cls!r}, not a mapping")
    else:
        expect(callable(cls), f"{what} {cls!r}, not a function")
        expect(not inspect.iscoroutinefunction(cls), f"{what} async, and nothing awaits it")


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
    with contextlib.suppress(ValidationError):
        schema.model_validate({**tiny, "no_such_option": 1})
        raise AssertionError("an unknown option is accepted; derive Options from mmzoo.api.Options")
