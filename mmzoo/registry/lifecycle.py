"""Call the lifecycle hooks of plugins so that one that fails is skipped and reported once, and everything else continues.

They have no time limit: they run in the thread that builds or trains the model, and may use what they need.
"""

from __future__ import annotations

import functools
import itertools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from mmzoo.common.sanitize import describe_error, one_line
from mmzoo.errors import PluginBroken, PluginWarning, TrainingError
from mmzoo.registry import hookspecs

MAX_LISTED = 1000
MAX_BYTES = 1 << 18  # of a card's sections: a model whose card is above `mmzoo.checkpoints.screening.MAX_CARD` does not load

logger = logging.getLogger(__name__)


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

    def contain(
        self, function: Callable[..., Any], name: str, validate: Callable[[ContainedHooks, Any], Any]
    ) -> Callable[..., Any]:
        """Return a function that calls ``function`` and ``validate`` on its result, and returns None if either raises."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return validate(self, function(*arguments, **keywords))
            except (KeyboardInterrupt, TrainingError):
                raise
            except BaseException as error:
                self.report(name, error)
                return None

        return call

    def report(self, name: str, error: BaseException) -> None:
        """Warn of a hook that failed, the first time that it does; log the traceback at debug level."""
        logger.debug("plugin '%s': %s", self.plugin, name, exc_info=error)
        if name in self.reported:
            return
        self.reported.add(name)
        if isinstance(error, PluginBroken):
            reason = one_line(error)
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{one_line(describe_error(error))} ({frame.filename}:{frame.lineno})"
        warn(f"plugin '{self.plugin}': its {name} failed and is skipped: {reason}")


def _ignore(hooks: ContainedHooks, value: Any) -> None:
    """Ignore what a hook returns."""


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
LIFECYCLE: dict[str, Callable[[ContainedHooks, Any], Any]] = {
    "mmzoo_model_built": _ignore,
    "mmzoo_train_callbacks": _validate_callbacks,
    "mmzoo_card_sections": _validate_sections,
}
