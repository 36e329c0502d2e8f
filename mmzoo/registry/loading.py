"""Read what the module of a plugin brings: its lifecycle hooks and entries, or what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pluggy

from mmzoo.common.sanitize import short_repr
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import PluginBroken
from mmzoo.interfaces.kinds import HOOKS
from mmzoo.registry import hookspecs
from mmzoo.registry.entries import Entry
from mmzoo.registry.lifecycle import LIFECYCLE

MAX_ENTRIES = 10_000  # of one hook


def create_hook_manager() -> pluggy.PluginManager:
    """Return a pluggy manager that knows the hooks and has no plugin."""
    hooks = pluggy.PluginManager(hookspecs.PROJECT)
    hooks.add_hookspecs(hookspecs)
    return hooks


def collect(module: Any, hooks: pluggy.PluginManager, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """Return a plugin's lifecycle hooks, by name, and its entries.

    Args:
        module: the plugin's module.
        hooks: a manager that has no other plugin, so that an unknown hook is an error of this plugin alone.
        name: the name to register the plugin by, until its entries are collected.

    Raises:
        PluginBroken: a hook is wrong or returns something other than a list of entries.
        BaseException: whatever the plugin raises.
    """
    try:
        hooks.register(module, name=name)
        callers = hooks.get_hookcallers(module) or []
        implementations = {caller.name: hook for caller in callers for hook in caller.get_hookimpls()}
        _check_hooks(module, implementations)
        entries: list[Entry] = []
        for hook_name, kind in HOOKS.items():
            if hook_name in implementations:
                entries += _call_entry_hook(implementations[hook_name], hook_name, kind)
    except pluggy.PluginValidationError as error:  # its first line does not say what is wrong
        raise PluginBroken("; ".join(str(error).strip().splitlines())) from error
    finally:
        if hooks.has_plugin(name):
            hooks.unregister(name=name)
    return {name: hook for name, hook in implementations.items() if name in LIFECYCLE}, entries


def _check_hooks(module: Any, implementations: Mapping[str, Any]) -> None:
    """Check that all hooks are known, ordinary functions, and that no function with the name of a hook lacks the mark."""
    known = [*HOOKS, *LIFECYCLE]
    for name, hook in implementations.items():
        if name not in known:
            advice = did_you_mean(name, known, 1)
            raise PluginBroken(f"unknown hook '{name}'" + (f"; {advice}" if advice else ""))
        if hook.hookwrapper or hook.wrapper:
            raise PluginBroken(f"hook {name} is a wrapper; a plugin may add its own entries, not change those of others")
        if inspect.iscoroutinefunction(hook.function) or inspect.isasyncgenfunction(hook.function):
            raise PluginBroken(f"hook {name} is async; write it as an ordinary function, because nothing awaits it")
    for name in known:
        if name not in implementations and (value := getattr(module, name, None)) is not None:
            if not inspect.isroutine(value):
                raise PluginBroken(f"{name} is {short_repr(value)}; a hook is a function with @mmzoo.hookimpl above it")
            raise PluginBroken(f"{name} is not marked as a hook: write @mmzoo.hookimpl above it")
    if not implementations:
        raise PluginBroken("has no hook: mark functions such as mmzoo_encoders with @mmzoo.hookimpl")


def _call_entry_hook(hook: Any, name: str, kind: str) -> Iterator[Entry]:
    """Yield the entries that a hook returns, at most `MAX_ENTRIES`."""
    entries = hook.function()
    if entries is None or isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):
        raise PluginBroken(f"hook {name} returned {type(entries).__name__} where a list of mmzoo.Entry belongs")
    for count, entry in enumerate(entries):
        if count >= MAX_ENTRIES:
            raise PluginBroken(f"hook {name} returned more than {MAX_ENTRIES} entries")
        if isinstance(entry, Entry) and entry.kind != kind:
            raise PluginBroken(f"hook {name} returned an entry of kind {entry.kind!r}")
        yield entry
