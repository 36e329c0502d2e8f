"""Discovery: entry points in the group ``mmzoo`` to a filled registry, with every failure isolated and remembered.

pluggy's own ``load_setuptools_entrypoints`` dies on one bad plugin, silently skips a second package that uses the
same entry-point name, and accepts misspelt hooks; so the loading loop is here and pluggy does the rest.
"""

from __future__ import annotations

import functools
import importlib.metadata
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pluggy

from mmzoo import hookspecs
from mmzoo.errors import PluginBroken
from mmzoo.registry import Entry, Registry

GROUP = "mmzoo"
ENTRY_HOOKS = {
    "mmzoo_encoders": "encoder",
    "mmzoo_fusions": "fusion",
    "mmzoo_language_models": "language_model",
    "mmzoo_tasks": "task",
    "mmzoo_datasets": "dataset",
    "mmzoo_metrics": "metric",
    "mmzoo_recipes": "recipe",
    "mmzoo_formats": "format",
    "mmzoo_commands": "command",
}


@dataclass(frozen=True)
class Failure:
    """A plugin that is not in use, and why."""

    plugin: str
    version: str
    error: str
    trace: str


@dataclass
class Host:
    """The loaded plugins: the registry that they filled, pluggy's manager for lifecycle hooks, and the failures."""

    registry: Registry = field(default_factory=Registry)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hookspecs.PROJECT))
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    def load(self, points: Iterable[importlib.metadata.EntryPoint]) -> None:
        """Load entry points in a fixed order; one that fails is remembered and leaves nothing behind."""
        # This distribution first, so that a stranger's duplicate is the stranger's failure.
        for point in sorted(points, key=lambda p: (_dist(p) != hookspecs.PROJECT, _dist(p), p.name, p.value)):
            self.load_one(point)

    def load_one(self, point: Any) -> None:
        dist = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else ""
        label = f"{dist}:{point.name}" if dist == hookspecs.PROJECT else dist
        name = f"{dist}:{point.name}"
        try:
            module = point.load()
            self.manager.register(module, name=name)
            # A scratch manager sees this plugin alone: a misspelt hook is its failure and nobody else's.
            alone = pluggy.PluginManager(hookspecs.PROJECT)
            alone.add_hookspecs(hookspecs)
            alone.register(module, name=name)
            alone.check_pending()
            self.registry.add_all(_entries(alone, name), plugin=dist, version=version)
        except (Exception, SystemExit) as error:  # whatever a stranger's plugin raises
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            text = f"{type(error).__name__}: {error}" if not isinstance(error, PluginBroken) else str(error)
            self.failures.append(Failure(label, version, text, traceback.format_exc()))

    def failure_hint(self) -> str:
        """One line for each plugin that failed, for the end of an error message."""
        return "\n".join(f"note: plugin '{f.plugin}' failed to load: {f.error.splitlines()[0]}" for f in self.failures)

    def get(self, kind: str, name: str) -> Entry:
        return self.registry.get(kind, name, hint=self.failure_hint())


def _dist(point: Any) -> str:
    return point.dist.name if point.dist else ""


def _entries(manager: pluggy.PluginManager, name: str) -> list[Entry]:
    found: list[Entry] = []
    for hook, kind in ENTRY_HOOKS.items():
        for entries in getattr(manager.hook, hook)():
            for entry in entries:
                if isinstance(entry, Entry) and entry.kind != kind:
                    raise PluginBroken(f"hook {hook} of '{name}' returned an entry of kind {entry.kind!r}")
                found.append(entry)
    return found


@functools.cache
def host() -> Host:
    """The process's plugins, loaded once."""
    loaded = Host()
    loaded.load(importlib.metadata.entry_points(group=GROUP))
    return loaded


def point(name: str, module: Any, *, dist: str, version: str = "0") -> Any:
    """A stand-in for an entry point that holds its module already, for tests of plugins that are not installed."""
    return SimpleNamespace(name=name, value=name, dist=SimpleNamespace(name=dist, version=version), load=lambda: module)
