"""Running what a stranger wrote: with a time limit, with whatever it raises caught, and its prints kept out of our output."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from mmzoo.errors import PluginBroken, SettingsError

TIMEOUT = "MMZOO_PLUGIN_TIMEOUT"
MAX_NOTES = 20

_here = threading.local()


@dataclass
class Outcome:
    """What came of a call: its ``value``, or what it raised and where. ``notes`` are the warnings that it gave."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    notes: list[str] = field(default_factory=list)


def timeout() -> float:
    """Seconds that a plugin has to be imported and to say what it brings: ``$MMZOO_PLUGIN_TIMEOUT``, or 10.

    Raises:
        SettingsError: it is no number above 0.
    """
    text = os.environ.get(TIMEOUT) or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise SettingsError(f"{TIMEOUT}={text!r}: must be a number of seconds above 0")
    return seconds


def inside() -> bool:
    """Whether this is called by something that `limited` runs."""
    return getattr(_here, "limited", False)


def limited(function: Callable[[], Any], seconds: float, package: str = "") -> Outcome:
    """Call ``function`` in a thread of its own and wait for it so long, and no longer.

    A thread is the limit that every platform has, whichever thread asks. What it cannot end is code that never gives the
    interpreter back (and ``os._exit``). A loop that outstays its time is told to stop, unless it is amid an import of something
    else than ``package``: half an import of a library would break everybody's.
    """
    outcome, done = Outcome(), threading.Event()

    def run() -> None:
        _here.limited = True
        try:
            outcome.value = function()
        except BaseException as error:
            outcome.error, outcome.trace = error, traceback.format_exc()
        done.set()

    thread = threading.Thread(target=run, name="mmzoo-plugin", daemon=True)
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        thread.start()
        finished = done.wait(seconds)
    notes = [f"{warning.category.__name__}: {warning.message}" for warning in seen[:MAX_NOTES]]
    if finished:
        outcome.notes = notes
        return outcome
    frame = sys._current_frames().get(thread.ident or 0)
    trace = "".join(["It was here (most recent call last):\n", *traceback.format_stack(frame)]) if frame else ""
    _stop(thread, frame, package)
    return Outcome(error=PluginBroken(f"took longer than {seconds:g} s ({TIMEOUT} sets the limit)"), trace=trace, notes=notes)


def _stop(thread: threading.Thread, frame: FrameType | None, package: str) -> None:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).partition(".")[0] != package:
            return
        frame = frame.f_back
    import ctypes

    with contextlib.suppress(AttributeError):  # an interpreter other than CPython
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
