"""Discovery: entry points in the group ``mmzoo`` to a filled registry, with every failure isolated and remembered.

pluggy's own ``load_setuptools_entrypoints`` dies on one bad plugin, silently skips a second package that uses the
same entry-point name, and accepts misspelt hooks; so the loading loop is here and pluggy does the rest.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pluggy

from mmzoo.common.sanitize import describe_error, sanitize
from mmzoo.errors import DuplicateName, MissingPlugin, MmzooError, PluginBroken, UnknownName
from mmzoo.registry import api_version, discovery, hookspecs, isolation, loading, settings
from mmzoo.registry.entries import Entry, Registry
from mmzoo.registry.lifecycle import Shield, warn

IN_USE, FAILED, DISABLED, LEFT_OUT = "in use", "failed", "disabled", "left out"
MAX_LINE = 300
MAX_HINTS = 5


@dataclass(frozen=True)
class Failure:
    """A plugin that is not in use, why, and the command that mends it."""

    plugin: str
    version: str
    error: str
    trace: str
    fix: str = ""

    @property
    def line(self) -> str:
        """The error on one line."""
        first = (self.error.splitlines() or [""])[0]
        return first if len(first) <= MAX_LINE else first[:MAX_LINE] + "..."


@dataclass
class Plugin:
    """One entry point: the distribution that it is of, what became of it, and what it brought.

    ``name`` is what `mmzoo plugin disable` and ``MMZOO_PLUGINS`` call it: the distribution; of our own, and of others that have
    ``several`` entry points, ``distribution:entry_point``."""

    dist: str
    entry_point: str
    version: str
    state: str = IN_USE
    api: str = ""
    entries: list[Entry] = field(default_factory=list)
    failure: Failure | None = None
    notes: list[str] = field(default_factory=list)
    several: bool = False
    disabled: str = ""  # the name that it is disabled by

    @property
    def name(self) -> str:
        return self.full_name if self.own or self.several else self.dist

    @property
    def own(self) -> bool:
        """Whether it came with mmzoo."""
        return settings.normal(self.dist) == hookspecs.PROJECT

    @property
    def full_name(self) -> str:
        return f"{self.dist}:{self.entry_point}"

    @property
    def names(self) -> frozenset[str]:
        """What it is called, in full and by its distribution."""
        dist = settings.normal(self.dist)
        return frozenset({dist, f"{dist}:{self.entry_point}"})

    @property
    def why(self) -> str:
        """Why it is not in use and what to do about it, as the end of a sentence that names it."""
        if self.state == DISABLED:
            return f"which is disabled: mmzoo plugin enable {self.disabled}"
        if self.state == LEFT_OUT:
            return f"which {settings.ONLY} leaves out: add {self.name} to it"
        said = self.failure.line if self.failure else ""
        return f"which is installed but failed to load: {said} (`mmzoo doctor` says more)"


@dataclass
class PluginManager:
    """The plugins: the registry that they filled, pluggy's manager for lifecycle hooks, and what became of each."""

    registry: Registry = field(default_factory=Registry)
    manager: pluggy.PluginManager = field(default_factory=loading.hook_manager)
    plugins: list[Plugin] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scratch: pluggy.PluginManager | None = None
        self._skipped: dict[str, Any] = {}
        self._seconds = isolation.timeout()

    @property
    def failures(self) -> list[Failure]:
        return [plugin.failure for plugin in self.plugins if plugin.failure is not None]

    def load(self, points: Iterable[Any], choice: settings.Choice = settings.Choice()) -> None:  # noqa: B008 - it is frozen
        """Load entry points in a fixed order; one that fails is remembered and leaves nothing behind.

        Raises:
            UnknownName: ``choice.only`` names a plugin that is not installed.
        """
        found = _described(points)
        # This distribution first, so that a stranger's duplicate is the stranger's failure.
        found.sort(key=lambda pair: (not pair[1].own, pair[1].dist, pair[1].entry_point, pair[0].value))
        chosen = _chosen([plugin for _, plugin in found], choice)
        wanted = []
        for point, plugin in found:
            plugin.state = chosen(plugin)
            plugin.disabled = min(plugin.names & choice.disabled, default="")
            self.plugins.append(plugin)
            if plugin.state == IN_USE:
                wanted.append((point, plugin))
            else:
                self._skipped[plugin.full_name] = point
        self._load(wanted)

    def load_one(self, point: Any) -> Plugin:
        """Load one entry point, whatever has been chosen."""
        plugin = _describe(point)
        self.plugins.append(plugin)
        self._load([(point, plugin)])
        return plugin

    def unload(self, plugin: Plugin) -> None:
        """Forget a plugin: its entries and its lifecycle hooks."""
        self.registry.remove(plugin.entries)
        if self.manager.has_plugin(plugin.full_name):
            self.manager.unregister(name=plugin.full_name)
        self.plugins.remove(plugin)

    def _load(self, wanted: Sequence[tuple[Any, Plugin]]) -> None:
        calls = [(partial(self._collect, *pair), str(pair[0].value).partition(":")[0].partition(".")[0]) for pair in wanted]
        for (_, plugin), outcome in zip(wanted, isolation.run_each(calls, self._seconds), strict=True):
            plugin.notes, error, trace = outcome.notes, outcome.error, outcome.trace
            if error is None:
                hooks, entries = outcome.value
                try:
                    plugin.entries = self.registry.add_all(entries, plugin=plugin.dist, version=plugin.version)
                except BaseException as refused:  # an entry may be of a class of the plugin's
                    error, trace = refused, traceback.format_exc()
                else:
                    if hooks:
                        self.manager.register(Shield(plugin.name, hooks), name=plugin.full_name)
            if error is not None:
                plugin.state, plugin.failure = FAILED, _failure(plugin, error, trace)

    def _collect(self, point: Any, plugin: Plugin) -> tuple[dict[str, Any], list[Entry]]:
        """Import a plugin and ask for what it brings: its lifecycle hooks and its entries. Nothing of the host changes."""
        # Whoever fails or outstays the limit keeps the scratch manager.
        scratch, self._scratch = self._scratch or loading.hook_manager(), None
        if not plugin.own and (no := discovery.describe_point(point).refusal(discovery.own_version())):
            raise Refused(*no)
        module = point.load()
        plugin.api = api_version.stated_version(module)
        if no := api_version.refusal(plugin.api, plugin.dist):
            raise Refused(*no)
        found = loading.collect(module, scratch, plugin.full_name)
        self._scratch = scratch
        return found

    def get(self, kind: str, name: str) -> Entry:
        return self.registry.get(kind, name, hint=lambda: self.hint(name, kind))

    def hint(self, name: str, kind: str | None = None) -> str:
        """What stands below the message that a name is unknown: which plugins might have it, and why they are not in use."""
        lines = [f"note: plugin '{f.plugin}' failed to load: {f.line}" for f in self.failures[:MAX_HINTS]]
        if len(self.failures) > MAX_HINTS:
            lines.append(f"note: {len(self.failures) - MAX_HINTS} other plugins failed to load (`mmzoo doctor`)")
        left = []
        for plugin in self.plugins:
            if plugin.state not in (DISABLED, LEFT_OUT):
                continue
            if plugin.own:  # ours may be imported to look, which a stranger's that somebody disabled may not
                with contextlib.suppress(Exception):
                    for entry in self._collect(self._skipped[plugin.full_name], plugin)[1]:
                        if entry.name == name and kind in (None, entry.kind):
                            lines.append(f"{entry.label} comes with the plugin '{plugin.name}', {plugin.why}")
            elif plugin.state == DISABLED:
                lines.append(f"note: it may come with the plugin '{plugin.name}', {plugin.why}")
            else:
                left.append(plugin.name)
        if left:
            more = f" and {len(left) - MAX_HINTS} more" if len(left) > MAX_HINTS else ""
            lines.append(f"note: {settings.ONLY} leaves out {', '.join(left[:MAX_HINTS])}{more}")
        return "\n".join(lines)

    def check_needed(self, needed: Mapping[str, str]) -> None:
        """Check that the plugins that a checkpoint was saved with are in use; ``needed`` maps distributions to versions.

        Raises:
            MissingPlugin: one is installed, but failed, was disabled or was left out. PluginWarning, as a warning: it is older.
        """
        for dist, version in needed.items():
            theirs = [plugin for plugin in self.plugins if settings.normal(plugin.dist) == settings.normal(dist)]
            if used := [plugin for plugin in theirs if plugin.state == IN_USE]:
                if _older(used[0].version, version):
                    warn(
                        f"the checkpoint was saved with {dist} {version}, and {used[0].version} is installed: "
                        f"pip install --upgrade '{dist}>={version}'"
                    )
            elif theirs:
                plugin = next((plugin for plugin in theirs if plugin.state == FAILED), theirs[0])
                raise MissingPlugin(f"this checkpoint needs the plugin '{dist}' {version}, {plugin.why}")


class Refused(PluginBroken):
    """A plugin for another version of mmzoo; ``fix`` is the command that mends it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def _describe(point: Any) -> Plugin:
    about = discovery.describe_point(point)
    return Plugin(about.name, point.name, about.version)


def _described(points: Iterable[Any]) -> list[tuple[Any, Plugin]]:
    found = [(point, _describe(point)) for point in points]
    counted = Counter(plugin.dist for _, plugin in found)
    for _, plugin in found:
        plugin.several = counted[plugin.dist] > 1
    return found


def _chosen(plugins: list[Plugin], choice: settings.Choice) -> Callable[[Plugin], str]:
    """The state of a plugin before it is loaded."""
    only = choice.only
    if only is None:
        return lambda plugin: DISABLED if plugin.names & choice.disabled else IN_USE
    names = {plugin.name for plugin in plugins}
    if wrong := sorted(only - {name for plugin in plugins for name in plugin.names}):
        raise UnknownName(f"{settings.ONLY}: {settings.unknown(wrong[0], names)}")
    some = any(plugin.own and plugin.names & only for plugin in plugins)

    def state(plugin: Plugin) -> str:
        if plugin.names & only:
            return IN_USE
        if some or not plugin.own:
            return LEFT_OUT
        return DISABLED if plugin.names & choice.disabled else IN_USE

    return state


def _failure(plugin: Plugin, error: BaseException, trace: str) -> Failure:
    text = str(error) if isinstance(error, MmzooError) else describe_error(error)
    if isinstance(error, isolation.TookTooLong):
        text += f" to load ({isolation.TIMEOUT} sets the limit)"
    if isinstance(error, Refused):
        fix = error.fix
    elif plugin.own:
        fix = "pip install --force-reinstall mmzoo"
    elif isinstance(error, DuplicateName):
        fix = f"mmzoo plugin disable {plugin.name}"
    else:
        fix = f"pip install --upgrade {plugin.dist}"
    return Failure(plugin.name, plugin.version, sanitize(text), sanitize(trace), fix)


def _older(installed_version: str, recorded: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(installed_version) < Version(recorded)
    except InvalidVersion:
        return False


_current: PluginManager | None = None
_lock = threading.Lock()


def plugin_manager() -> PluginManager:
    """The process's plugins, loaded once, when they are first asked for.

    Raises:
        UnknownName, SettingsError: what says which plugins to load cannot be followed.
    """
    global _current
    if _current is None:
        if isolation.is_inside():
            raise PluginBroken("plugins are still being loaded; what there is can be asked when an entry is built, not in a hook")
        with _lock:
            if _current is None:
                loaded = PluginManager()
                loaded.load(discovery.entry_points(), settings.choice())
                _current = loaded
                _tell(loaded.failures)
    return _current


def reset() -> None:
    """Load plugins anew when they are next asked for: for tests that install some."""
    global _current
    _current = None


@contextmanager
def use_manager(other: PluginManager) -> Iterator[PluginManager]:
    """`host` gives ``other`` for the length of the block: for tests."""
    global _current
    before, _current = _current, other
    try:
        yield other
    finally:
        _current = before


def _tell(failures: list[Failure]) -> None:
    if len(failures) == 1:
        warn(f"plugin '{failures[0].plugin}' is not in use: {failures[0].line} (`mmzoo doctor` says more)")
    elif failures:
        names = [failure.plugin for failure in failures]
        more = f" and {len(names) - MAX_HINTS} more" if len(names) > MAX_HINTS else ""
        warn(f"{len(names)} plugins are not in use: {', '.join(names[:MAX_HINTS])}{more} (`mmzoo doctor` says why)")


def installed_plugins() -> list[Plugin]:
    """What is installed, by name and version; nothing of it is imported, whatever is disabled or left out."""
    return [plugin for _, plugin in _described(discovery.entry_points())]


def fake_entry_point(name: str, module: Any, *, dist: str, version: str = "0") -> Any:
    """A stand-in for an entry point that holds its module already, for tests of plugins that are not installed."""
    return SimpleNamespace(name=name, value=name, dist=SimpleNamespace(name=dist, version=version), load=lambda: module)
