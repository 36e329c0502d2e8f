"""Read what the module of a plugin brings: its entries, and lifecycle hooks that are skipped and reported once when they fail.

Lifecycle hooks have no time limit: they run in the thread that builds or trains the model, and may use what they need.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pluggy

from mmzoo.common.sanitize import describe_error, one_line, short_repr
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import PluginBroken, PluginWarning, TrainingError
from mmzoo.interfaces.kinds import HOOKS
from mmzoo.registry import hookspecs
from mmzoo.registry.entries import Entry

MAX_ENTRIES = 10_000  # of one hook
MAX_LISTED = 1000
MAX_BYTES = 1 << 18  # of a card's sections: a model whose card is above `mmzoo.checkpoints.screening.MAX_CARD` does not load

logger = logging.getLogger(__name__)
Validator = Callable[["ContainedHooks", Any], Any]  # returns the value that a hook returned, or raises


def warn(message: str) -> None:
    """Warn of a plugin in one line, without a position in mmzoo's source, which would not help."""
    warnings.warn_explicit(message, PluginWarning, "mmzoo", 0)


class ContainedHooks:
    """Hold the lifecycle hooks of a plugin, wrapped so that they never raise; pluggy registers it in place of the module."""

    def __init__(self, plugin: str, hooks: dict[str, Any]) -> None:
        self.plugin = plugin
        self.reported: set[str] = set()
        for name, hook in hooks.items():
            mark = hookspecs.hookimpl(tryfirst=hook.tryfirst, trylast=hook.trylast)
            setattr(self, name, mark(self.contain(hook.function, name, LIFECYCLE[name])))

    def contain(self, function: Callable[..., Any], name: str, validate: Validator) -> Callable[..., Any]:
        """Return a function that calls ``function`` and ``validate`` on its result, and returns None if either raises."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return validate(self, function(*arguments, **keywords))
            except (KeyboardInterrupt, TrainingError):
                raise
            except BaseException as error:
                self.report(name, error)

        return call

    def report(self, name: str, error: BaseException) -> None:
        """Warn of a hook that failed, the first time that it does; log the traceback at debug level."""
        logger.debug("plugin '%s': %s", self.plugin, name, exc_info=error)
        if name in self.reported:
            return
        self.reported.add(name)
        reason = one_line(error)
        if not isinstance(error, PluginBroken):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{one_line(describe_error(error))} ({frame.filename}:{frame.lineno})"
        warn(f"plugin '{self.plugin}': its {name} failed and is skipped: {reason}")


def _validate_sections(hooks: ContainedHooks, value: Any) -> Any:
    """Return the sections of a card: pairs of a title and a Markdown text."""
    sections = _validate_list(value)
    if not all(isinstance(pair, tuple | list) and [type(text) for text in pair] == [str, str] for pair in sections):
        raise PluginBroken("it must return pairs of a title and a Markdown text")
    size = sum(len((title + text).encode()) for title, text in sections)  # text that cannot be encoded raises here
    if size > MAX_BYTES:
        raise PluginBroken(f"its sections have {size} bytes; a plugin may add at most {MAX_BYTES} to a card")
    if not all(len(title.splitlines()) == 1 for title, _ in sections):
        raise PluginBroken("a title must be one line")
    return sections


def _validate_callbacks(hooks: ContainedHooks, value: Any) -> Any:
    """Return callbacks of a training, with each event contained like a hook."""
    from transformers import TrainerCallback, TrainerControl

    def validate_control(_: ContainedHooks, value: Any) -> Any:
        if value is not None and not isinstance(value, TrainerControl):
            raise PluginBroken(f"it must return None or the transformers.TrainerControl, not {type(value).__name__}")
        return value

    callbacks = _validate_list(value)
    if wrong := [callback for callback in callbacks if not isinstance(callback, TrainerCallback)]:
        raise PluginBroken(f"it must return transformers.TrainerCallback objects, not {type(wrong[0]).__name__}")
    for callback in callbacks:
        for event in dir(TrainerCallback):
            if event.startswith("on_") and event not in vars(callback):
                name = f"{type(callback).__name__}.{event}"
                setattr(callback, event, hooks.contain(getattr(callback, event), name, validate_control))
    return callbacks


def _validate_list(value: Any) -> list[Any]:
    """Return an iterable as a list of at most `MAX_LISTED` items; None is an empty list."""
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise PluginBroken(f"it must return a list, not {type(value).__name__}")
    items = list(itertools.islice(value, MAX_LISTED + 1))
    if len(items) > MAX_LISTED:
        raise PluginBroken(f"it returns more than {MAX_LISTED} items")
    return items


# Each lifecycle hook, and the function that checks its result.
LIFECYCLE: dict[str, Validator] = {
    "mmzoo_model_built": lambda hooks, value: None,
    "mmzoo_train_callbacks": _validate_callbacks,
    "mmzoo_card_sections": _validate_sections,
}


def create_hook_manager() -> pluggy.PluginManager:
    """Return a pluggy manager that knows the hooks and has no plugin."""
    hooks = pluggy.PluginManager(hookspecs.PROJECT)
    hooks.add_hookspecs(hookspecs)
    return hooks


def collect(module: Any, hooks: pluggy.PluginManager, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """Return a plugin's lifecycle hooks, by name, and its entries.

    Args:
        module: the plugin's module.
        hooks: a manager that has no other plugin, except those that still run after their time limit.
        name: the name to register the plugin by, until its entries are collected.

    Raises:
        PluginBroken: a hook is wrong or returns something other than a list of entries.
        BaseException: whatever the plugin raises.
    """
    try:
        hooks.register(module, name=name)
        callers = hooks.get_hookcallers(module) or []
        implementations = {caller.name: hook for caller in callers for hook in caller.get_hookimpls() if hook.plugin is module}
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
