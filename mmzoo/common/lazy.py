"""Load a package's names when they are first used, so that importing it imports no torch (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(module: str, file: str) -> tuple[dict[str, str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the names in a module's ``if TYPE_CHECKING:`` block, and the ``__getattr__`` and ``__dir__`` that load them.

    The block is the only list: type checkers and editors read it too. Pass the module's ``__name__`` and ``__file__``.
    """
    block = next(node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    names = {alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[module], name, value)
        return value

    return names, load, lambda: sorted({*vars(sys.modules[module]), *names})
