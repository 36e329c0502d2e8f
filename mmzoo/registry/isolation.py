"""Run the code of plugins with a time limit, and turn whatever it raises into a result or a `PluginBroken`."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmzoo.common.sanitize import describe_error
from mmzoo.errors import MmzooError, PluginBroken, PluginTimeout, SettingsError

TIMEOUT = "MMZOO_PLUGIN_TIMEOUT"
MAX_NOTES, MAX_NOTE = 20, 1000
MAX_FRAMES = 1000  # formatting a stack of millions of frames would take minutes

_thread = threading.local()


@dataclass
class Outcome:
    """Hold the result of a call: its value, or its error and traceback; ``notes`` are the warnings that it issued."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    notes: list[str] = field(default_factory=list)


def read_timeout() -> float:
    """Return the seconds that a plugin has to be imported and to return its entries: ``$MMZOO_PLUGIN_TIMEOUT``, or 10.

    Raises:
        SettingsError: it is not a number above 0.
    """
    text = os.environ.get(TIMEOUT) or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise SettingsError(f"{TIMEOUT}={text!r}: must be a number of seconds above 0")
    return seconds


def in_worker() -> bool:
    """Return whether the caller runs in a thread of `run_each`."""
    return getattr(_thread, "is_worker", False)


def run_limited(function: Callable[[], Any], seconds: float) -> Outcome:
    """Call one function as `run_each` does."""
    return run_each([function], seconds)[0]


def run_each(functions: Sequence[Callable[[], Any]], seconds: float) -> list[Outcome]:
    """Call functions one after another in a worker thread, and wait at most ``seconds`` for each.

    A call that takes longer gets a `PluginTimeout` as its error. Its thread cannot be stopped: it is abandoned, and a new one
    makes the remaining calls. While a function runs, ``sys.stdout`` is stderr, and warnings are recorded in its outcome.

    A thread works on every platform and from any thread. It cannot limit code that ends the process (``os._exit``) or that never
    releases the interpreter's lock.
    """
    outcomes: list[Outcome] = []
    worker: _Worker | None = None
    for function in functions:
        worker = worker or _Worker()
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("always")
            outcome = worker.call(function, seconds)
        outcome.notes = [describe_error(warning.message)[:MAX_NOTE] for warning in caught[:MAX_NOTES]]  # type: ignore[arg-type]
        outcomes.append(outcome)
        if worker.abandoned:
            worker = None
    if worker is not None:
        worker.stop()
    return outcomes


class _Worker:
    """Make calls in a daemon thread of its own, which does not keep the process alive."""

    def __init__(self) -> None:
        self.abandoned = False
        self._functions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mmzoo-plugin", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Any], seconds: float) -> Outcome:
        """Return the outcome of a call; abandon the thread if that takes longer than ``seconds``."""
        self._functions.put(function)
        try:
            return self._outcomes.get(timeout=seconds)
        except queue.Empty:
            self.abandoned = True
            self.stop()
            return Outcome(error=PluginTimeout(f"took longer than {seconds:g} s"), trace=self._format_stack())

    def stop(self) -> None:
        """End the thread after the call that it makes now."""
        self._functions.put(None)

    def _work(self) -> None:
        """Make calls until `stop`."""
        _thread.is_worker = True
        while (function := self._functions.get()) is not None:
            outcome = Outcome()
            try:
                outcome.value = function()
            except BaseException as error:
                outcome.error, outcome.trace = error, traceback.format_exc(-MAX_FRAMES)
            self._outcomes.put(outcome)

    def _format_stack(self) -> str:
        """Return where the thread is now, so that the author of a plugin that hangs sees where."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        lines = traceback.format_stack(frame, MAX_FRAMES) if frame is not None else []
        return "".join(["It was here (most recent call last):\n", *lines])


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `PluginTimeout` in a block that takes longer than ``seconds``.

    It needs the main thread and a system with an alarm signal; elsewhere there is no limit. Code that never releases the
    interpreter's lock cannot be interrupted.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise PluginTimeout(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextlib.contextmanager
def attribute_errors_to(source: str) -> Iterator[None]:
    """Raise the errors of a block as `PluginBroken`, with a message that begins with ``source``.

    Errors of mmzoo and ``KeyboardInterrupt`` are not changed.
    """
    try:
        yield
    except (MmzooError, KeyboardInterrupt):
        raise
    except BaseException as error:
        first_line = describe_error(error).splitlines()[0]  # torch adds its C++ stack below it
        raise PluginBroken(f"{source}: {first_line}") from error
