"""Load the installed plugins into a registry, with every failure isolated and remembered.

pluggy's own ``load_setuptools_entrypoints`` fails for all plugins if one fails, silently skips a second distribution with the
same entry-point name, and accepts misspelt hooks. So plugins are loaded here, and pluggy only calls their lifecycle hooks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from mmzoo.common.sanitize import describe_error, one_line, sanitize
from mmzoo.errors import DuplicateName, MissingPlugin, MmzooError, PluginBroken, PluginRefused, PluginTimeout, UnknownName
from mmzoo.registry import api_version, discovery, hookspecs, isolation, loading, settings
from mmzoo.registry.discovery import PluginEntryPoint
from mmzoo.registry.entries import Entry, Registry
from mmzoo.registry.loading import ContainedHooks, warn
from mmzoo.registry.settings import PluginSelection, normalise_name

IN_USE, FAILED, DISABLED, LEFT_OUT = "in use", "failed", "disabled", "left out"
MAX_NAMES = 5  # in one message


@dataclass(frozen=True)
class Failure:
    """Hold why a plugin is not in use: the error, its traceback, and the command that fixes it."""

    plugin: str
    error: str
    trace: str
    fix: str = ""

    @property
    def line(self) -> str:
        """Return the error on one line."""
        return one_line(self.error)


@dataclass
class Plugin:
    """Represent an installed plugin, which is one entry point: its distribution, its state and its entries.

    ``disabled_as`` is the name in the list of disabled plugins; ``has_siblings``: its distribution has other entry points.
    """

    point: PluginEntryPoint
    dist: str
    entry_point: str
    version: str
    state: str = IN_USE
    api: str = ""
    entries: list[Entry] = field(default_factory=list)
    failure: Failure | None = None
    notes: list[str] = field(default_factory=list)
    has_siblings: bool = False
    disabled_as: str = ""

    @property
    def name(self) -> str:
        """Return the name for `mmzoo plugin disable`: the distribution's, or `full_name` if that has several plugins."""
        return self.full_name if self.is_own or self.has_siblings else self.dist

    @property
    def is_own(self) -> bool:
        """Return whether it is part of mmzoo itself."""
        return normalise_name(self.dist) == hookspecs.PROJECT

    @property
    def full_name(self) -> str:
        """Return ``distribution:entry_point``."""
        return f"{self.dist}:{self.entry_point}"

    @property
    def names(self) -> frozenset[str]:
        """Return the normalised names that select it: its distribution's and its full name."""
        distribution = normalise_name(self.dist)
        return frozenset({distribution, f"{distribution}:{self.entry_point}"})

    @property
    def reason(self) -> str:
        """Return why it is not in use and how to change that, as a clause that follows its name."""
        if self.state == DISABLED:
            return f"which is disabled: mmzoo plugin enable {self.disabled_as}"
        if self.state == LEFT_OUT:
            return f"which {settings.ONLY} leaves out: add {self.name} to it"
        return f"which is installed but failed to load: {self.failure.line if self.failure else ''} (`mmzoo doctor` says more)"


@dataclass
class PluginManager:
    """Hold the plugins of a process: ``registry`` has their entries, ``manager`` (of pluggy) their lifecycle hooks."""

    registry: Registry = field(default_factory=Registry)
    manager: pluggy.PluginManager = field(default_factory=loading.create_hook_manager)
    plugins: list[Plugin] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._collecting = loading.create_hook_manager()  # has a plugin only while its hooks are read
        self._seconds = isolation.read_timeout()
        self._changed: dict[str, str | None] = {}  # the former values of variables that plugins changed while they were loaded

    @property
    def failures(self) -> list[Failure]:
        """Return the failure of each plugin that failed to load."""
        return [plugin.failure for plugin in self.plugins if plugin.failure is not None]

    def load(self, points: Iterable[PluginEntryPoint], selection: PluginSelection | None = None) -> None:
        """Load the selected entry points (None: all) in a fixed order; one that fails is remembered and registers nothing.

        Raises:
            UnknownName: the selection names a plugin that is not installed.
        """
        # mmzoo's own plugins come first, so that a name which another plugin also uses is that plugin's failure.
        plugins = _describe_plugins(points)
        plugins.sort(key=lambda plugin: (not plugin.is_own, plugin.dist, plugin.entry_point, plugin.point.value))
        _apply_selection(plugins, selection or PluginSelection())
        self.plugins += plugins
        before = dict(os.environ)
        for plugin in plugins:
            if plugin.state == IN_USE:
                self._load(plugin)
        self._changed = {name: before.get(name) for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}

    def _load(self, plugin: Plugin) -> None:
        """Collect what a plugin brings, with a time limit, and register all of it or nothing."""
        outcome = isolation.run_limited(lambda: self._collect(plugin), self._seconds)
        plugin.notes, error, trace = outcome.notes, outcome.error, outcome.trace
        if error is None:
            hooks, entries = outcome.value
            try:
                plugin.entries = self.registry.add_all(entries, plugin=plugin.dist, version=plugin.version)
            except BaseException as refused:  # an entry may be of a class of the plugin, whose attributes raise
                error, trace = refused, traceback.format_exc()
            else:
                if hooks:
                    self.manager.register(ContainedHooks(plugin.name, hooks), name=plugin.full_name)
        if error is not None:
            plugin.state, plugin.failure = FAILED, _describe_failure(plugin, error, trace)

    def environment(self) -> dict[str, str]:
        """Return the environment without what plugins changed while they were loaded, so that a check sees a plugin change it."""
        return {name: value for name, value in {**os.environ, **self._changed}.items() if value is not None}

    def _collect(self, plugin: Plugin) -> tuple[dict[str, Any], list[Entry]]:
        """Import a plugin and return its lifecycle hooks and entries; nothing is registered yet."""
        if not plugin.is_own:
            plugin.point.distribution.check_requirements(discovery.read_own_version())
        module = plugin.point.load()
        plugin.api = api_version.read_api_version(module)
        api_version.check_api_version(plugin.api, plugin.dist)
        return loading.collect(module, self._collecting, plugin.full_name)

    def get(self, kind: str, name: str) -> Entry:
        """Return the entry of that kind and name; raise an `UnknownName` with similar names and `hint` if there is none."""
        return self.registry.get(kind, name, hint=lambda: self.hint(name, kind))

    def hint(self, name: str, kind: str | None = None) -> str:
        """Return which plugins may have an unknown name, and why they are not in use, to be shown below the error message."""
        lines = [f"note: plugin '{failure.plugin}' failed to load: {failure.line}" for failure in self.failures[:MAX_NAMES]]
        if len(self.failures) > MAX_NAMES:
            lines.append(f"note: {len(self.failures) - MAX_NAMES} other plugins failed to load (`mmzoo doctor`)")
        unused = [plugin for plugin in self.plugins if plugin.state in (DISABLED, LEFT_OUT)]
        for plugin in unused:
            if plugin.is_own:  # safe to import
                with contextlib.suppress(Exception):
                    wanted = [entry for entry in self._collect(plugin)[1] if entry.name == name and kind in (None, entry.kind)]
                    lines += [f"{entry.label} comes with the plugin '{plugin.name}', {plugin.reason}" for entry in wanted]
            elif plugin.state == DISABLED:
                lines.append(f"note: it may come with the plugin '{plugin.name}', {plugin.reason}")
        if left_out := [plugin.name for plugin in unused if plugin.state == LEFT_OUT and not plugin.is_own]:
            lines.append(f"note: {settings.ONLY} leaves out {_join_names(left_out)}")
        return "\n".join(lines)

    def check_needed(self, needed: Mapping[str, str]) -> None:
        """Check that the plugins which a checkpoint was saved with are in use; warn of those that are older than recorded.

        ``needed`` has the version of each distribution. `mmzoo.checkpoints.folder` reports those that are not installed.

        Raises:
            MissingPlugin: one is installed, but failed to load, is disabled or is left out.
        """
        for distribution, version in needed.items():
            matching = [plugin for plugin in self.plugins if normalise_name(plugin.dist) == normalise_name(distribution)]
            if in_use := [plugin for plugin in matching if plugin.state == IN_USE]:
                installed = in_use[0].version
                if _is_older(installed, version):
                    fix = f"pip install --upgrade '{distribution}>={version}'"
                    warn(f"the checkpoint was saved with {distribution} {version}, and {installed} is installed: {fix}")
            elif matching:
                plugin = next((plugin for plugin in matching if plugin.state == FAILED), matching[0])
                raise MissingPlugin(f"this checkpoint needs the plugin '{distribution}' {version}, {plugin.reason}")


def _describe_plugins(points: Iterable[PluginEntryPoint]) -> list[Plugin]:
    """Return the plugins of entry points without loading them; their state is not set."""
    plugins = [Plugin(point, point.distribution.name, point.name, point.distribution.version) for point in points]
    counts = Counter(plugin.dist for plugin in plugins)
    for plugin in plugins:
        plugin.has_siblings = counts[plugin.dist] > 1
    return plugins


def _apply_selection(plugins: Sequence[Plugin], selection: PluginSelection) -> None:
    """Set the state of plugins before they are loaded: in use, disabled or left out.

    A plugin that ``selection.only`` names is in use even if it is disabled. mmzoo's own plugins are left out only if it names
    some of them. It must name installed plugins.
    """
    only = selection.only
    if only and (unknown := sorted(only - {name for plugin in plugins for name in plugin.names})):
        message = settings.describe_unknown_plugin(unknown[0], {plugin.name for plugin in plugins})
        raise UnknownName(f"{settings.ONLY}: {message}")
    names_own = only is not None and any(plugin.is_own and plugin.names & only for plugin in plugins)
    for plugin in plugins:
        plugin.disabled_as = min(plugin.names & selection.disabled, default="")
        if only is None or not plugin.names & only:
            left_out = only is not None and (names_own or not plugin.is_own)
            plugin.state = LEFT_OUT if left_out else DISABLED if plugin.disabled_as else IN_USE


def _describe_failure(plugin: Plugin, error: BaseException, trace: str) -> Failure:
    """Return the failure of a plugin, with the command that most likely fixes it."""
    message = str(error) if isinstance(error, MmzooError) else describe_error(error)
    message += f" to load ({isolation.TIMEOUT} sets the limit)" if isinstance(error, PluginTimeout) else ""
    if isinstance(error, PluginRefused):
        fix = error.fix
    elif plugin.is_own:
        fix = "pip install --force-reinstall mmzoo"
    elif isinstance(error, DuplicateName):
        fix = f"mmzoo plugin disable {plugin.name}"
    else:
        fix = f"pip install --upgrade {plugin.dist}"
    return Failure(plugin.name, sanitize(message), sanitize(trace), fix)


def _is_older(installed: str, recorded: str) -> bool:
    """Return whether a version is older than another; False if one cannot be compared."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(installed) < Version(recorded)
    except InvalidVersion:
        return False


def _join_names(names: Sequence[str]) -> str:
    """Return at most `MAX_NAMES` names, and how many more there are."""
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


_current: PluginManager | None = None
_lock = threading.Lock()


def plugin_manager() -> PluginManager:
    """Return the plugins of the process, which are loaded at the first call.

    Raises:
        UnknownName, SettingsError: the selection of plugins names one that is not installed, or cannot be read.
    """
    global _current
    if _current is None:
        if isolation.in_worker():
            raise PluginBroken("plugins are still being loaded: a hook cannot use mmzoo's entries, the module of an entry can")
        with _lock:
            if _current is None:
                loaded = PluginManager()
                loaded.load(discovery.find_entry_points(), settings.read_selection())
                _current = loaded
                if names := [failure.plugin for failure in loaded.failures]:
                    one = f"plugin '{names[0]}' is not in use: {loaded.failures[0].line} (`mmzoo doctor` says more)"
                    several = f"{len(names)} plugins are not in use: {_join_names(names)} (`mmzoo doctor` says why)"
                    warn(several if len(names) > 1 else one)
    return _current


def reset() -> None:
    """Forget the loaded plugins, so that `plugin_manager` loads them again; for tests that install some."""
    global _current
    _current = None


def list_installed_plugins() -> list[Plugin]:
    """Return all installed plugins without importing them; their state is not set."""
    return _describe_plugins(discovery.find_entry_points())
