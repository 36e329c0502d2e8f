"""Show progress on stderr: a live bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0  # between two lines outside a terminal


class Bar:
    """Track a task of known or unknown length (``total=None``). ``note`` is a short text beside the bar, such as the loss."""

    def __init__(self, title: str, total: int | None, progress: Progress | None, console: Console | None) -> None:
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self._progress, self._console = progress, console
        self._task = progress.add_task(title, total=total, note="") if progress else None
        self._last_printed = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` steps; change the note if one is given."""
        self.move(self.done + count, note)

    def move(self, done: int, note: str | None = None) -> None:
        """Set the number of steps that are done; change the note if one is given."""
        self.done = done
        self.note = self.note if note is None else note
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=self.note)
        elif self._console is not None and (done == self.total or time.monotonic() - self._last_printed > QUIET_SECONDS):
            self._last_printed = time.monotonic()
            self._console.print(f"{self.title}: {done}/{self.total or '?'} {self.note}".rstrip(), highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int | None, *, shown: bool = True) -> Iterator[Bar]:
    """Yield a `Bar` that is shown until the end of the block; with ``shown=False`` it prints nothing."""
    if not shown:
        yield Bar(title, total, None, None)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(title, total, None, console)
        return
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress:
        yield Bar(title, total, progress, console)
