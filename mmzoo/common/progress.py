"""Show progress on stderr: a live bar in a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmzoo.common.processes import is_main

WIDE = 100  # columns of a terminal that has room for all
LINE_SECONDS = 10.0  # between lines where there is no terminal


class Bar:
    """Show the progress of a task of known or unknown length. ``note`` is a short text beside the bar, such as the loss."""

    def __init__(self, title: str, total: int | None, progress: Progress | None, console: Console | None) -> None:
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self._progress, self._console = progress, console
        self._task = progress.add_task(title, total=total, note="") if progress else None
        self._printed_at = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` to the steps done; a ``note`` of None keeps the current one."""
        self.move(self.done + count, note)

    def move(self, done: int, note: str | None = None) -> None:
        """Set the number of steps done; a ``note`` of None keeps the current one."""
        self.done = done
        self.note = self.note if note is None else note
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=self.note)
        elif self._console is not None and (done == self.total or time.monotonic() - self._printed_at > LINE_SECONDS):
            self._printed_at = time.monotonic()
            self._console.print(f"{self.title}: {done}/{self.total or '?'} {self.note}".rstrip(), highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Bar]:
    """Yield a `Bar`; if ``shown`` is false, and in all processes but the main one, one that prints nothing."""
    console = Console(stderr=True) if shown and is_main() else None
    if console is None or not console.is_terminal:
        yield Bar(title, total, None, console)
        return
    times: list[Any] = [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    if console.width >= WIDE:
        times.insert(0, TimeElapsedColumn())
    with Progress("{task.description}", BarColumn(bar_width=None), MofNCompleteColumn(), *times, console=console) as progress:
        yield Bar(title, total, progress, console)
