"""Run the code of plugins with a time limit, and turn whatever it raises into a result or a `PluginBroken`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
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
    """Return whether the caller runs in a thread of `run_limited`."""
    return getattr(_thread, "is_worker", False)


def run_limited(function: Callable[[], Any], seconds: float) -> Outcome:
    """Call a function in a thread of its own, and wait at most ``seconds`` for it.

    If it takes longer, the error is a `PluginTimeout`. The thread cannot be stopped: it is abandoned, and does not keep the
    process alive. While the function runs, ``sys.stdout`` is stderr, and warnings are recorded in the outcome.

    A thread works on every platform and from any thread. It cannot limit code that ends the process (``os._exit``) or that never
    releases the interpreter's lock.
    """
    outcome = Outcome()

    def work() -> None:
        _thread.is_worker = True
        try:
            outcome.value = function()
        except BaseException as error:
            outcome.error, outcome.trace = error, traceback.format_exc(-MAX_FRAMES)

    thread = threading.Thread(target=work, name="mmzoo-plugin", daemon=True)
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        thread.start()
        thread.join(seconds)
    notes = [describe_error(warning.message)[:MAX_NOTE] for warning in caught[:MAX_NOTES]]  # type: ignore[arg-type]
    if thread.is_alive():  # what it returns later is not used
        return Outcome(None, PluginTimeout(f"took longer than {seconds:g} s"), _format_stack(thread), notes)
    outcome.notes = notes
    return outcome


def _format_stack(thread: threading.Thread) -> str:
    """Return where a thread is now, so that the author of a plugin that hangs sees where."""
    frame = sys._current_frames().get(thread.ident or 0)
    lines = traceback.format_stack(frame, MAX_FRAMES) if frame is not None else []
    return "".join(["It was here (most recent call last):\n", *lines])


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `PluginTimeout` in a block that takes longer than ``seconds`` and releases the interpreter's lock.

    It needs the main thread and a system with an alarm signal; elsewhere there is no limit.
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
    """Raise the errors of a block, except those of mmzoo, as `PluginBroken`, with a message that begins with ``source``."""
    try:
        yield
    except (MmzooError, KeyboardInterrupt):
        raise
    except BaseException as error:
        first_line = describe_error(error).splitlines()[0]  # torch adds its C++ stack below it
        raise PluginBroken(f"{source}: {first_line}") from error
