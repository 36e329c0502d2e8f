"""Run checks that may end the process in a child process: load plugins, import torch, import the targets of entries.

The child writes a line of JSON before and after each step, so that the last line names the step at which it ended.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmzoo import errors
from mmzoo.common.sanitize import describe_error, sanitize
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import discovery, isolation, settings
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import DISABLED, Plugin, PluginManager

MAX_CRASHES = 20  # plugins that end the process, before the search for more stops
SECONDS = 300.0  # of a child process
TARGET_FACTOR = 6  # the target of an entry may import a large library: its limit is a plugin's, times this
LIBRARIES = ("torch", "transformers")


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
    return {
        "plugin": plugin.name,
        "distribution": plugin.dist,
        "entry_point": plugin.entry_point,
        "version": plugin.version,
        "api": plugin.api,
        "state": plugin.state,
        "entries": entries,
        "error": plugin.failure.error if plugin.failure else "",
        "fix": plugin.failure.fix if plugin.failure else fix,
    }


def check_plugins() -> list[dict[str, Any]]:
    """Load the selected plugins in a child process; if one ends the process, repeat without loading it.

    Returns:
        A row for each plugin: `plugin_row`, its traceback, its warnings (``notes``) and the targets of its entries by kind.

    Raises:
        UnknownName, SettingsError: as `mmzoo.registry.manager.plugin_manager`.
        PluginBroken: more than `MAX_CRASHES` plugins end the process, or it ends before a plugin is loaded.
    """
    crashes: dict[str, str] = {}  # by plugin, how the process ended
    while True:
        lines, ended = _run_child("load_plugins_in_child", crashes)
        last = ""
        for line in lines:
            if "error" in line:
                raise getattr(errors, line["error"])(line["message"])
            if "rows" in line:
                return line["rows"]
            last = line["loading"]
        if not last or len(crashes) == MAX_CRASHES:
            without = f", even without {', '.join(crashes)}" if crashes else ""
            raise errors.PluginBroken(f"the process ends while plugins are loaded ({ended}){without}")
        crashes[last] = ended


def check_libraries(targets: Sequence[tuple[str, str, str]]) -> LibraryResults:
    """Import torch and transformers in a child process, then each of ``targets`` (kind, name and target of an entry)."""
    lines, ended = _run_child("import_libraries_in_child", list(targets))
    results, current = LibraryResults(), LIBRARIES[0]
    for line in lines:
        current = line.get("trying", current)
        if "torch" in line:
            results.torch = line["torch"]
        if "message" in line:
            results.failures[current] = (line["message"], line["trace"])
        if line.get("done"):
            return results
    results.failures[current] = (f"the process ended ({ended})", "")
    return results


def _run_child(function: str, argument: Any) -> tuple[list[dict[str, Any]], str]:
    """Call a function of this module in a new process; return the lines of JSON that it writes, and how the process ended."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from mmzoo.registry import subprocess_checks; subprocess_checks.{function}()"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, input=json.dumps(argument), capture_output=True, text=True, timeout=SECONDS, check=False)
        output, ended = done.stdout, f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    except subprocess.TimeoutExpired as late:
        output, ended = (late.stdout or b"").decode(errors="replace"), f"it took longer than {SECONDS:g} s"
    lines = []
    for text in output.splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the last line, if the process ended while it was written
            continue
    return lines, ended


# The following functions run in the child process.


def _open_output() -> Any:
    """Return a function that writes lines of JSON to the real stdout; everything else that is printed is discarded."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    def write(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    return write


class _ReportingManager(PluginManager):
    """Report each plugin before it is loaded, and do not load those that are known to end the process."""

    write: Any
    crashes: dict[str, str]

    def _collect(self, point: Any, plugin: Plugin) -> Any:
        if plugin.name in self.crashes:
            message = f"ends the whole process when it is loaded ({self.crashes[plugin.name]}), and every command with it"
            raise errors.PluginRefused(message, f"mmzoo plugin disable {plugin.name}")
        self.write(loading=plugin.name)
        return super()._collect(point, plugin)


def load_plugins_in_child() -> None:
    """Read the known crashes from stdin, load the plugins, and write a row for each."""
    crashes, write = json.load(sys.stdin), _open_output()
    try:
        manager = _ReportingManager()
        manager.write, manager.crashes = write, crashes
        manager.load(discovery.find_entry_points(), settings.read_selection())
    except errors.MmzooError as error:
        write(error=type(error).__name__, message=str(error))
        os._exit(0)
    rows = []
    for plugin in manager.plugins:
        targets: dict[str, dict[str, str]] = {}
        for entry in plugin.entries:
            targets.setdefault(entry.kind, {})[entry.name] = entry.target
        trace = plugin.failure.trace if plugin.failure else ""
        rows.append({**plugin_row(plugin), "trace": trace, "notes": plugin.notes, "targets": targets})
    write(rows=rows)
    os._exit(0)  # do not wait for threads that plugins started


def import_libraries_in_child() -> None:
    """Read targets of entries from stdin, import the libraries and the targets, and write what fails."""
    targets, write = json.load(sys.stdin), _open_output()
    for library in LIBRARIES:
        write(trying=library)
        try:
            importlib.import_module(library)
        except BaseException as error:
            write(message=describe_error(error), trace=sanitize(traceback.format_exc()))
    if "torch" in sys.modules:
        write(torch=_describe_torch())
    for kind, name, target in targets:
        write(trying=f"{kind}/{name}")
        call = partial(_check_target, kind, Entry(kind, name, target, "-"))
        outcome = isolation.run_limited(call, TARGET_FACTOR * isolation.read_timeout())
        if outcome.error is not None:
            cause = outcome.error.__cause__
            trace = "".join(traceback.format_exception(cause)) if cause else outcome.trace
            write(message=str(outcome.error).splitlines()[0], trace=sanitize(trace))
    write(done=True)
    os._exit(0)  # do not wait for threads that plugins started


def _describe_torch() -> dict[str, Any]:
    """Return torch's version, threads and accelerators, with their memory in bytes where it is known."""
    import torch

    accelerators: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            accelerators.append({"name": properties.name, "bytes": properties.total_memory})
    elif torch.accelerator.is_available():
        accelerators.append({"name": str(torch.accelerator.current_accelerator()), "bytes": None})
    versions = {"version": torch.__version__, "cuda": torch.version.cuda}
    return {**versions, "threads": torch.get_num_threads(), "accelerators": accelerators}


def _check_target(kind: str, entry: Entry) -> None:
    """Check that the target of an entry can be imported and derives from the base class of its kind."""
    target, base = entry.load(), KINDS[kind].base_class()
    if base is not None and not (isinstance(target, type) and issubclass(target, base)):
        raise errors.PluginBroken(f"its target is not a subclass of mmzoo.api.{base.__name__}")
