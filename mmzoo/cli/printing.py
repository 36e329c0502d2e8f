"""Print results, errors and warnings of commands."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from mmzoo.common import processes
from mmzoo.common.sanitize import sanitize
from mmzoo.errors import MmzooError, PluginWarning
from mmzoo.registry.entries import RESERVED


def fail(message: str) -> None:
    print(sanitize(f"error: {message}"), file=sys.stderr)


@contextmanager
def failing(*, everywhere: bool) -> Iterator[None]:
    """Print an error in the block; once if all processes have it. A launcher ends them all when one ends, so that each waits."""
    with redirect_stderr(sys.stderr if everywhere or processes.is_main() else sys.__stderr__):
        yield
    if everywhere:
        with suppress(MmzooError):  # a process in which the error is of another class is ending
            processes.gather(None)


@contextmanager
def main_process_alone() -> Iterator[None]:
    """Print what a command of mmzoo prints in the main process only. Errors that nothing catches are printed by each."""
    if processes.is_main() or not RESERVED.intersection(sys.argv[1:2]):
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def speaking() -> Iterator[None]:
    """Print each plugin warning as one line, every time it occurs, except while a shell asks for completions."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if not issubclass(category, PluginWarning):
            usual(message, category, *where, **more)
        elif "_MMZOO_COMPLETE" not in os.environ:
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = show
        yield


_json: list[TextIO] = []  # the stream for JSON while all other output goes to stderr


@contextmanager
def json_alone() -> Iterator[None]:
    """Keep stdout for `print_json` with ``--json``, whatever plugins and libraries print; not for commands of plugins."""
    if "--json" not in sys.argv or not RESERVED.intersection(sys.argv[1:2]):
        yield
        return
    out = sys.stdout
    try:
        is_real = out.fileno() == 1
    except (OSError, ValueError):
        is_real = False
    if is_real:  # output to the file descriptor goes to stderr too
        out.flush()
        out = os.fdopen(os.dup(1), "w", encoding=out.encoding, errors=out.errors)
        os.dup2(2, 1)
    _json.append(out)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json.pop()
        if is_real:
            os.dup2(out.fileno(), 1)
            with suppress(OSError):  # print_json has flushed and reported errors
                out.close()


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str), file=_json[-1] if _json else None, flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their content, below ``head`` if it is not empty."""
    every = [head, *rows] if head else rows
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every)
    print("\n".join(lines))


def quiet() -> None:
    """Hide the warnings of libraries and show only their errors."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|accelerate|transformers|timm|open_clip")
    warnings.filterwarnings("ignore", category=FutureWarning)
