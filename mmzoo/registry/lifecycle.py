"""Lifecycle hooks of strangers, each contained: one that fails is passed over and told once, and the rest goes on.

There is no time limit here: they run where the model is, in the thread that built it, and may take what they need.
"""

from __future__ import annotations

import functools
import itertools
import logging
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from mmzoo.common.sanitize import describe_error
from mmzoo.errors import PluginBroken, PluginWarning, TrainingError
from mmzoo.registry import hookspecs

MAX_LISTED = 1000
MAX_BYTES = 1 << 18  # of a card's sections: a model whose card is above `mmzoo.checkpoints.screening.MAX_CARD` does not load

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
        said = str(error) if isinstance(error, PluginBroken) else describe_error(error)
        warn(f"plugin '{self.plugin}': its {name} failed and is passed over: {(said.splitlines() or [''])[0]}{where}")


def _nothing(shield: Shield, value: Any) -> None:
    return None


def _sections(shield: Shield, value: Any) -> Any:
    pairs = _listed(value)
    if not all(isinstance(pair, tuple | list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise PluginBroken("it must return pairs of a title and a Markdown text")
    size = sum(len((title + text).encode()) for title, text in pairs)  # what cannot be encoded could not be written
    if size > MAX_BYTES:
        raise PluginBroken(f"its sections have {size} bytes; {MAX_BYTES} is the most that a card takes of a plugin")
    if not all(len(title.splitlines()) == 1 for title, _ in pairs):
        raise PluginBroken("a title must be one line")
    return pairs


def _callbacks(shield: Shield, value: Any) -> Any:
    from transformers import TrainerCallback, TrainerControl

    def control(_: Shield, value: Any) -> Any:
        if value is not None and not isinstance(value, TrainerControl):
            raise PluginBroken(f"it must return None or the transformers.TrainerControl, not {type(value).__name__}")
        return value

    callbacks = _listed(value)
    if wrong := [callback for callback in callbacks if not isinstance(callback, TrainerCallback)]:
        raise PluginBroken(f"it must return transformers.TrainerCallback objects, not {type(wrong[0]).__name__}")
    for callback in callbacks:
        for event in dir(TrainerCallback):
            if event.startswith("on_") and event not in vars(callback):
                name = f"{type(callback).__name__}.{event}"
                setattr(callback, event, shield.contained(getattr(callback, event), name, control))
    return callbacks


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise PluginBroken(f"it must return a list, not {type(value).__name__}")
    listed = list(itertools.islice(value, MAX_LISTED + 1))
    if len(listed) > MAX_LISTED:
        raise PluginBroken(f"it returns more than {MAX_LISTED}")
    return listed


# Each lifecycle hook, and what is made of its result.
LIFECYCLE: dict[str, Callable[[Shield, Any], Any]] = {
    "mmzoo_model_built": _nothing,
    "mmzoo_train_callbacks": _callbacks,
    "mmzoo_card_sections": _sections,
}
