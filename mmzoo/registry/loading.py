"""What one plugin brings, asked of its module: the hooks that it has and the entries that they return, or what is wrong."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pluggy

from mmzoo.common.sanitize import short_repr
from mmzoo.errors import PluginBroken
from mmzoo.interfaces.kinds import HOOKS
from mmzoo.registry import hookspecs
from mmzoo.registry.entries import Entry
from mmzoo.registry.lifecycle import LIFECYCLE

MAX_ENTRIES = 10_000  # of one hook


def hook_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks and no plugin."""
    made = pluggy.PluginManager(hookspecs.PROJECT)
    made.add_hookspecs(hookspecs)
    return made


def collect(module: Any, scratch: pluggy.PluginManager, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """A plugin's lifecycle hooks, by name, and its entries.

    ``scratch`` is a manager that sees this plugin alone, so that a misspelt hook is its failure and nobody else's.

    Raises:
        PluginBroken, and whatever the plugin raises.
    """
    try:
        scratch.register(module, name=name)
        callers = scratch.get_hookcallers(module) or []
        impls = {caller.name: impl for caller in callers for impl in caller.get_hookimpls()}
        _check(module, impls)
        entries: list[Entry] = []
        for hook, kind in HOOKS.items():
            if hook in impls:
                entries += _entries(impls[hook], hook, kind)
    except pluggy.PluginValidationError as error:  # its first line does not say what is wrong
        raise PluginBroken("; ".join(str(error).strip().splitlines())) from error
    finally:
        if scratch.has_plugin(name):
            scratch.unregister(name=name)
    return {hook: impl for hook, impl in impls.items() if hook in LIFECYCLE}, entries


def _check(module: Any, impls: Mapping[str, Any]) -> None:
    known = [*HOOKS, *LIFECYCLE]
    for name, impl in impls.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise PluginBroken(f"unknown hook '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if impl.hookwrapper or impl.wrapper:
            raise PluginBroken(f"hook {name} is a wrapper; a plugin brings its own entries and changes nobody else's")
        if inspect.iscoroutinefunction(impl.function) or inspect.isasyncgenfunction(impl.function):
            raise PluginBroken(f"hook {name} is async; write it as an ordinary function, which is called and not awaited")
    for name in known:
        if name not in impls and (found := getattr(module, name, None)) is not None:
            if not inspect.isroutine(found):
                raise PluginBroken(f"{name} is {short_repr(found)}; a hook is a function with @mmzoo.hookimpl above it")
            raise PluginBroken(f"{name} is not marked: write @mmzoo.hookimpl above it")
    if not impls:
        raise PluginBroken("has no hook: mark functions such as mmzoo_encoders with @mmzoo.hookimpl")


def _entries(impl: Any, hook: str, kind: str) -> Iterator[Entry]:
    found = impl.function()
    if found is None or isinstance(found, str | bytes | Mapping) or not isinstance(found, Iterable):
        raise PluginBroken(f"hook {hook} returned {type(found).__name__} where a list of mmzoo.Entry belongs")
    for count, entry in enumerate(found):
        if count >= MAX_ENTRIES:
            raise PluginBroken(f"hook {hook} returned more than {MAX_ENTRIES} entries")
        if isinstance(entry, Entry) and entry.kind != kind:
            raise PluginBroken(f"hook {hook} returned an entry of kind {entry.kind!r}")
        yield entry
