"""Record which hooks were attached to a module, so that they can be removed from a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class AttachedHooks:
    """Hold the hooks that were added to a module and its children in the block of `recorded`."""

    def __init__(self) -> None:
        self.added: set[tuple[str, str, int]] = set()

    @classmethod
    @contextmanager
    def recorded(cls, module: nn.Module) -> Iterator[AttachedHooks]:
        """Record the hooks that are added to ``module`` within a ``with`` block."""
        hooks, before = cls(), _all(module)
        yield hooks
        hooks.added = _all(module) - before

    def wrap(self, module: nn.Module, wrapper: Callable[[Any], Any]) -> None:
        """Replace each recorded hook by ``wrapper(hook)``."""
        for name, kind, number in self.added:
            hooks = getattr(module.get_submodule(name), kind)
            hooks[number] = wrapper(hooks[number])

    def remove(self, module: nn.Module) -> None:
        """Remove the recorded hooks from a module that has the same children."""
        for name, kind, number in self.added:
            getattr(module.get_submodule(name), kind).pop(number, None)


def _all(module: nn.Module) -> set[tuple[str, str, int]]:
    return {(name, kind, number) for name, child in module.named_modules() for kind in _HOOKS for number in getattr(child, kind)}
