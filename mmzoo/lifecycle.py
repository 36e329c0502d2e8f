"""Lifecycle hooks of strangers, each contained: one that fails is passed over and told once, and the rest goes on.

There is no time limit here: they run where the model is, in the thread that built it, and may take what they need.
"""

from __future__ import annotations

import functools
import logging
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from mmzoo import hookspecs
from mmzoo.errors import PluginBroken, PluginWarning, TrainingError
from mmzoo.wording import told

logger = logging.getLogger(__name__)


def warn(text: str) -> None:
    """Warn of a plugin, in one line; where in mmzoo that is said tells nobody anything."""
    warnings.warn_explicit(text, PluginWarning, "mmzoo", 0)


class Shield:
    """What is registered in a plugin's place: its lifecycle hooks, with whatever they raise or return taken care of."""

    def __init__(self, plugin: str, hooks: dict[str, Any]) -> None:
        self.plugin = plugin
        self.told: set[str] = set()
        for name, impl in hooks.items():
            mark = hookspecs.hookimpl(tryfirst=impl.tryfirst, trylast=impl.trylast)
            setattr(self, name, mark(self.contained(impl.function, name, LIFECYCLE[name])))

    def contained(self, function: Callable[..., Any], name: str, taken: Callable[[Shield, Any], Any]) -> Callable[..., Any]:
        """``function``, giving None where it raises or where what it returns cannot be ``taken``."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return taken(self, function(*arguments, **keywords))
            except (KeyboardInterrupt, TrainingError):
                raise
            except BaseException as error:
                self.tell(name, error)
                return None

        return call

    def tell(self, name: str, error: BaseException) -> None:
        logger.debug("plugin '%s': %s", self.plugin, name, exc_info=error)
        if name in self.told:
            return
        self.told.add(name)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, PluginBroken) else f" ({frame.filename}:{frame.lineno})"
        said = str(error) if isinstance(error, PluginBroken) else told(error)
        warn(f"plugin '{self.plugin}': its {name} failed and is passed over: {(said.splitlines() or [''])[0]}{where}")


def _nothing(shield: Shield, value: Any) -> None:
    return None


def _sections(shield: Shield, value: Any) -> Any:
    pairs = _listed(value)
    if not all(isinstance(pair, tuple | list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise PluginBroken("it must return pairs of a title and a Markdown text")
    return pairs


def _callbacks(shield: Shield, value: Any) -> Any:
    from transformers import TrainerCallback

    callbacks = _listed(value)
    if wrong := [callback for callback in callbacks if not isinstance(callback, TrainerCallback)]:
        raise PluginBroken(f"it must return transformers.TrainerCallback objects, not {type(wrong[0]).__name__}")
    for callback in callbacks:
        for event in dir(TrainerCallback):
            if event.startswith("on_") and event not in vars(callback):
                name = f"{type(callback).__name__}.{event}"
                setattr(callback, event, shield.contained(getattr(callback, event), name, lambda _, value: value))
    return callbacks


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | bytes):
        raise PluginBroken(f"it must return a list, not {type(value).__name__}")
    return list(value)


# Each lifecycle hook, and what is made of its result.
LIFECYCLE: dict[str, Callable[[Shield, Any], Any]] = {
    "mmzoo_model_built": _nothing,
    "mmzoo_train_callbacks": _callbacks,
    "mmzoo_card_sections": _sections,
}
