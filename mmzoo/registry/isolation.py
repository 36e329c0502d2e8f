"""Running what a stranger wrote: with a time limit, with whatever it raises caught, its prints kept out of our output, and what
it changes of the process put back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from mmzoo.common.sanitize import describe_error
from mmzoo.errors import MmzooError, PluginBroken, SettingsError

TIMEOUT = "MMZOO_PLUGIN_TIMEOUT"
MAX_NOTES, MAX_NOTE = 20, 1000
MAX_FRAMES = 1000  # a stack can be millions deep, and then telling it takes minutes

_here = threading.local()


class TookTooLong(PluginBroken):
    """The time limit is over."""


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


def is_inside() -> bool:
    """Whether this is called by something that `limited` runs."""
    return getattr(_here, "limited", False)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """What takes longer ends with `TookTooLong`, where the system has an alarm and this is the main thread. Only code that gives
    the interpreter back can be ended."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TookTooLong(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_limited(function: Callable[[], Any], seconds: float, package: str = "") -> Outcome:
    """`each` of one call."""
    return run_each([(function, package)], seconds)[0]


@contextlib.contextmanager
def attribute_errors_to(what: str) -> Iterator[None]:
    """Whatever is raised inside is a `PluginBroken` that begins with ``what``, but for our own errors and an interrupt."""
    try:
        yield
    except (MmzooError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginBroken(
            f"{what}: {describe_error(error).splitlines()[0]}"
        ) from error  # below it torch tells of its C++ frames


def run_each(calls: Sequence[tuple[Callable[[], Any], str]], seconds: float) -> list[Outcome]:
    """Make calls one after another in another thread, and wait for each so long, and no longer.

    A thread is the limit that every platform has, whichever thread asks. What it cannot end is code that never gives the
    interpreter back (and ``os._exit``). A loop that outstays its time is told to stop, unless it is amid an import of something
    else than the package that stands beside the call: half an import of a library would break everybody's.

    Between two calls the process is as before (`_Process`), so that none finds what another has left.
    """
    outcomes: list[Outcome] = []
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        process = _Process()
        while len(outcomes) < len(calls):
            _Worker(calls, outcomes, seen, process).run(seconds)
            process.put_back()
    return outcomes


class _Worker:
    """Makes the calls that have no outcome yet, until all have one or one takes too long."""

    def __init__(self, calls: Sequence[Any], outcomes: list[Outcome], seen: Sequence[Any], process: _Process) -> None:
        self.calls, self.outcomes, self.seen, self.process = calls, outcomes, seen, process
        self.lock, self.done, self.late = threading.Lock(), threading.Event(), False
        self.since = time.monotonic()

    def run(self, seconds: float) -> None:
        thread = threading.Thread(target=self._work, name="mmzoo-plugin", daemon=True)
        thread.start()
        while not self.done.wait(max(0.0, self.since + seconds - time.monotonic())):
            with self.lock:
                if self.done.is_set() or time.monotonic() < self.since + seconds:
                    continue  # it is at the next call already
                self.late = True
                frame = sys._current_frames().get(thread.ident or 0)
                where = ["It was here (most recent call last):\n", *traceback.format_stack(frame, MAX_FRAMES)] if frame else []
                package = self.calls[len(self.outcomes)][1]
                error = TookTooLong(f"took longer than {seconds:g} s")
                self.outcomes.append(Outcome(error=error, trace="".join(where)))
            _stop(thread, frame, package)
            return

    def _work(self) -> None:
        _here.limited = True
        for function, _ in self.calls[len(self.outcomes) :]:
            outcome, warned = Outcome(), len(self.seen)
            try:
                outcome.value = function()
            except BaseException as error:
                outcome.error, outcome.trace = error, traceback.format_exc(-MAX_FRAMES)
            with self.lock:
                if self.late:  # whoever waited has put everything back
                    return
                self.process.put_back()
                outcome.notes = [describe_error(w.message)[:MAX_NOTE] for w in self.seen[warned : warned + MAX_NOTES]]
                self.outcomes.append(outcome)
                self.since = time.monotonic()
        self.done.set()


class _Process:
    """What of the process a plugin may not change for everybody: the standard streams, the working directory, the environment,
    the limit of recursion, warnings that are errors, and what else is imported and can be. What it adds to ``sys.path`` stays, as
    its entries may need it, but behind what was there."""

    def __init__(self) -> None:
        self.streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
        self.folder, self.environment = _folder(), dict(os.environ)
        self.depth, self.modules = sys.getrecursionlimit(), dict(sys.modules)
        self.lists = {name: (getattr(sys, name), list(getattr(sys, name))) for name in ("path", "meta_path", "path_hooks")}

    def put_back(self) -> None:
        for name, stream in self.streams.items():
            setattr(sys, name, stream)
        if self.folder is not None and _folder() != self.folder:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)
        if self.environment != os.environ:
            for name in os.environ.keys() - self.environment.keys():
                del os.environ[name]
            os.environ.update(self.environment)
        if sys.getrecursionlimit() != self.depth:
            sys.setrecursionlimit(self.depth)
        for name, (kept, before) in self.lists.items():
            found = list(getattr(sys, name))
            if found[: len(before)] != before:
                kept[:] = [*before, *(added for added in found if added not in before)]
            setattr(sys, name, kept)
        for name in [name for name, module in sys.modules.items() if module is None and name not in self.modules]:
            del sys.modules[name]  # None is how an import is forbidden
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
        self.modules = dict(sys.modules)
        warnings.simplefilter("always")


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _stop(thread: threading.Thread, frame: FrameType | None, package: str) -> None:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__")).partition(".")[0] != package:
            return
        frame = frame.f_back
    import ctypes

    with contextlib.suppress(AttributeError):  # an interpreter other than CPython
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
