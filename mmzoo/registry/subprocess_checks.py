"""Run checks that may end the process in a child process: load plugins, import torch, import the targets of entries.

The child writes a line of JSON before each step and one for each result, so that the last ``step`` is the one at which it ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmzoo import errors
from mmzoo.common.sanitize import describe_error, sanitize
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import discovery, isolation, settings
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import DISABLED, Failure, Plugin, PluginManager

MAX_CRASHES = 20  # plugins that end the process, before the search for more stops
SECONDS = 300.0  # of a child process
TARGET_FACTOR = 6  # the target of an entry may import a large library: its limit is a plugin's, times this
LIBRARIES = ("torch", "transformers")
Writer = Callable[..., None]  # writes its keyword arguments as a line of JSON


@dataclass
class LibraryResults:
    """Hold torch's version and accelerators, and what cannot be imported, by library or ``kind/name``: error and traceback."""

    torch: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)


def plugin_row(plugin: Plugin) -> dict[str, Any]:
    """Return a plugin as JSON data: its names, versions and state, and its entries by kind."""
    entries: dict[str, list[str]] = {}
    for entry in plugin.entries:
        entries.setdefault(entry.kind, []).append(entry.name)
    fix = f"mmzoo plugin enable {plugin.disabled_as}" if plugin.state == DISABLED else ""
    failure = plugin.failure or Failure(plugin.name, "", "", fix)
    facts = {key: getattr(plugin, key) for key in ("entry_point", "version", "api", "state")}
    names = {"plugin": plugin.name, "distribution": plugin.dist}
    return {**names, **facts, "entries": entries, "error": failure.error, "fix": failure.fix}


def check_plugins() -> list[dict[str, Any]]:
    """Load the selected plugins in a child process; if one ends the process, repeat without loading it.

    Return a row for each plugin: `plugin_row`, its traceback, its warnings (``notes``), and kind, name and target of its entries.

    Raises:
        UnknownName, SettingsError: as `mmzoo.registry.manager.plugin_manager`.
        PluginBroken: more than `MAX_CRASHES` plugins end the process, or it ends before a plugin is loaded.
    """
    crashes: dict[str, str] = {}  # by plugin, how the process ended
    while True:
        lines, ended = _run_child("load_plugins", crashes)
        last: dict[str, Any] = lines[-1] if lines else {"step": ""}
        if "error" in last:
            raise getattr(errors, last["error"])(last["message"])
        if "rows" in last:
            return last["rows"]
        if not last["step"] or len(crashes) == MAX_CRASHES:
            without = f", even without {', '.join(crashes)}" if crashes else ""
            raise errors.PluginBroken(f"the process ends while plugins are loaded ({ended}){without}")
        crashes[last["step"]] = ended


def check_libraries(targets: Sequence[tuple[str, str, str]]) -> LibraryResults:
    """Import torch and transformers in a child process, then each of ``targets`` (kind, name and target of an entry)."""
    lines, ended = _run_child("import_libraries", targets)
    results, step = LibraryResults(), LIBRARIES[0]
    for line in lines:
        step = line.get("step", step)
        results.torch = line.get("torch", results.torch)
        if "message" in line:
            results.failures[step] = (line["message"], line["trace"])
    if step:
        results.failures[step] = (f"the process ended ({ended})", "")
    return results


def _run_child(function: str, argument: Any) -> tuple[list[dict[str, Any]], str]:
    """Call a function of this module in a new process; return the lines of JSON that it writes, and how the process ended."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from mmzoo.registry import subprocess_checks as c; c.run_as_child(c.{function})"
    )
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, input=json.dumps(argument), capture_output=True, text=True, timeout=SECONDS, check=False)
        output, ended = done.stdout, f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, ended = (late.stdout or b"").decode(errors="replace"), f"it took longer than {SECONDS:g} s"
    lines = []
    for text in output.splitlines():
        with contextlib.suppress(ValueError):  # the last line, if the process ended while it was written
            lines.append(json.loads(text))
    return lines, ended


# The following functions run in the child process.


def run_as_child(function: Callable[[Any, Writer], None]) -> None:
    """Call a function with the JSON on stdin and a writer of lines of JSON to the real stdout; discard what else is printed."""
    argument, out, null = json.load(sys.stdin), os.fdopen(os.dup(1), "w", encoding="utf-8"), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    function(argument, lambda **line: print(json.dumps(line), file=out, flush=True))
    os._exit(0)  # do not wait for threads that plugins started


class _ReportingManager(PluginManager):
    """Report each plugin before it is loaded, and do not load those that are known to end the process."""

    write: Writer
    crashes: dict[str, str]

    def _collect(self, plugin: Plugin) -> Any:
        if plugin.name in self.crashes:
            message = f"ends the whole process when it is loaded ({self.crashes[plugin.name]}), and every command with it"
            raise errors.PluginRefused(message, f"mmzoo plugin disable {plugin.name}")
        self.write(step=plugin.name)
        return super()._collect(plugin)


def load_plugins(crashes: dict[str, str], write: Writer) -> None:
    """Load the plugins, except those that are known to end the process, and write a row for each."""
    try:
        manager = _ReportingManager()
        manager.write, manager.crashes = write, crashes
        manager.load(discovery.find_entry_points(), settings.read_selection())
    except errors.MmzooError as error:
        return write(error=type(error).__name__, message=str(error))
    rows = []
    for plugin in manager.plugins:
        targets = [(entry.kind, entry.name, entry.target) for entry in plugin.entries]
        trace = plugin.failure.trace if plugin.failure else ""
        rows.append({**plugin_row(plugin), "trace": trace, "notes": plugin.notes, "targets": targets})
    write(rows=rows)


def import_libraries(targets: list[list[str]], write: Writer) -> None:
    """Import the libraries and the targets of entries, and write what fails; the step that ends it is empty."""
    for library in LIBRARIES:
        write(step=library)
        try:
            importlib.import_module(library)
        except BaseException as error:
            write(message=describe_error(error), trace=sanitize(traceback.format_exc()))
    if "torch" in sys.modules:
        write(torch=_describe_torch())
    for kind, name, target in targets:
        write(step=f"{kind}/{name}")
        outcome = isolation.run_limited(partial(_check_target, kind, name, target), TARGET_FACTOR * isolation.read_timeout())
        if outcome.error is not None:
            cause = outcome.error.__cause__
            trace = "".join(traceback.format_exception(cause)) if cause else outcome.trace
            write(message=str(outcome.error).splitlines()[0], trace=sanitize(trace))
    write(step="")


def _describe_torch() -> dict[str, Any]:
    """Return torch's version, threads and accelerators, with their memory in bytes where it is known."""
    import torch

    accelerators: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        accelerators = [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus]
    elif torch.accelerator.is_available():
        accelerators = [{"name": str(torch.accelerator.current_accelerator()), "bytes": None}]
    versions = {"version": torch.__version__, "cuda": torch.version.cuda}
    return {**versions, "threads": torch.get_num_threads(), "accelerators": accelerators}


def _check_target(kind: str, name: str, target: str) -> None:
    """Check that the target of an entry can be imported and derives from the base class of its kind."""
    value, base = Entry(kind, name, target, "-").load(), KINDS[kind].base_class()
    if base is not None and not (isinstance(value, type) and issubclass(value, base)):
        raise errors.PluginBroken(f"its target is not a subclass of mmzoo.api.{base.__name__}")
