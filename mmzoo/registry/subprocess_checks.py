"""Trying what may end the process, in a process of its own: what plugins bring, whether torch works, what entries point to.

A child writes one line of JSON before each thing that it tries and one after; what it was at when it ended is the last line.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmzoo import errors
from mmzoo.common.sanitize import describe_error, sanitize
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import discovery, isolation, settings
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import DISABLED, Plugin, PluginManager, Refused

MAX_DEADLY = 20  # plugins that end the process, before we stop looking for more
SECONDS = 300.0
PATIENCE = 6  # what an entry points to may import a large library: so many times longer than a plugin has
LIBRARIES = ("torch", "transformers")


@dataclass
class Plugins:
    """What became of each plugin. Where ``complete`` is false the child ended while it loaded ``last``."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    last: str = ""
    ended: str = ""


@dataclass
class Libraries:
    """torch's version and accelerators; libraries and entries that cannot be imported, with the error and the trace."""

    torch: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, tuple[str, str]] = field(default_factory=dict)
    bad: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)


def plugin_row(plugin: Plugin) -> dict[str, Any]:
    """A plugin as data: what it is, its state, and its entries by kind."""
    entries: dict[str, list[str]] = {}
    for entry in plugin.entries:
        entries.setdefault(entry.kind, []).append(entry.name)
    return {
        "plugin": plugin.name,
        "distribution": plugin.dist,
        "entry_point": plugin.entry_point,
        "version": plugin.version,
        "api": plugin.api,
        "state": plugin.state,
        "entries": entries,
        "error": plugin.failure.error if plugin.failure else "",
        "fix": plugin.failure.fix
        if plugin.failure
        else f"mmzoo plugin enable {plugin.disabled}"
        if plugin.state == DISABLED
        else "",
    }


def plugins(deadly: Mapping[str, str]) -> Plugins:
    """Load every plugin that is chosen, but for those that are known to end the process; ``deadly`` says how.

    Raises:
        UnknownName, SettingsError: as `mmzoo.registry.manager.plugin_manager`.
    """
    lines, ended = _child("try_plugins", dict(deadly))
    found = Plugins(ended=ended)
    for line in lines:
        if "error" in line:
            raise getattr(errors, line["error"])(line["message"])
        found.last = line.get("loading", found.last)
        if "rows" in line:
            found.rows, found.complete = line["rows"], True
    if not found.complete and not found.last:
        raise RuntimeError(f"python could not be started to try the plugins: {ended}")
    return found


def libraries(targets: Sequence[tuple[str, str, str]]) -> Libraries:
    """Import torch and transformers, then what each of ``targets`` (kind, name, target) points to."""
    lines, ended = _child("try_libraries", [list(target) for target in targets])
    found, at = Libraries(), ""
    for line in lines:
        at = line.get("trying", at)
        if "torch" in line:
            found.torch = line["torch"]
        if "broken" in line:
            found.broken[line["broken"]] = (line["message"], line["trace"])
        if "bad" in line:
            found.bad[tuple(line["bad"])] = (line["message"], line["trace"])
        if line.get("done"):
            return found
    said = (f"the process ended ({ended})", "")
    if at in LIBRARIES or not at:
        found.broken[at or LIBRARIES[0]] = said
    else:
        kind, _, name = at.partition("/")
        found.bad[kind, name] = said
    return found


def _child(function: str, argument: Any) -> tuple[list[dict[str, Any]], str]:
    """The lines of JSON that a function of this module writes in a new process, and how the process ended."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from mmzoo.registry import subprocess_checks; subprocess_checks.{function}()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(argument), capture_output=True, text=True, timeout=SECONDS, check=False
        )
        out, ended = done.stdout, f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    except subprocess.TimeoutExpired as late:
        out, ended = (late.stdout or b"").decode(errors="replace"), f"it took longer than {SECONDS:g} s"
    lines = []
    for text in out.splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the end of a line that was cut
            continue
    return lines, ended


# In the child


def _writer() -> Any:
    """Write lines to the real stdout; whatever else is printed goes nowhere."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def write(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    return write


class _Telling(PluginManager):
    """Says which plugin it is about to load, and leaves those alone that are known to end the process."""

    write: Any
    deadly: dict[str, str]

    def _collect(self, point: Any, plugin: Plugin) -> Any:
        if plugin.name in self.deadly:
            error = f"ends the whole process when it is loaded ({self.deadly[plugin.name]}), and every command with it"
            raise Refused(error, f"mmzoo plugin disable {plugin.name}")
        self.write(loading=plugin.name)
        return super()._collect(point, plugin)


def try_plugins() -> None:
    deadly, write = json.load(sys.stdin), _writer()
    try:
        host = _Telling()
        host.write, host.deadly = write, deadly
        host.load(discovery.entry_points(), settings.choice())
    except errors.MmzooError as error:
        write(error=type(error).__name__, message=str(error))
        os._exit(0)
    rows = []
    for plugin in host.plugins:
        targets: dict[str, dict[str, str]] = {}
        for entry in plugin.entries:
            targets.setdefault(entry.kind, {})[entry.name] = entry.target
        trace = plugin.failure.trace if plugin.failure else ""
        rows.append({**plugin_row(plugin), "trace": trace, "notes": plugin.notes, "targets": targets})
    write(rows=rows)
    os._exit(0)  # whatever threads a plugin has left


def try_libraries() -> None:
    targets, write = json.load(sys.stdin), _writer()
    for library in LIBRARIES:
        write(trying=library)
        try:
            importlib.import_module(library)
        except BaseException as error:
            write(broken=library, message=describe_error(error), trace=sanitize(traceback.format_exc()))
    if "torch" in sys.modules:
        write(torch=_torch())
    for kind, name, target in targets:
        write(trying=f"{kind}/{name}")
        call = partial(_try, kind, Entry(kind, name, target, "-"))
        outcome = isolation.run_limited(call, PATIENCE * isolation.timeout(), target.partition(":")[0].partition(".")[0])
        if (broken := outcome.error) is not None:
            cause = broken.__cause__
            trace = "".join(traceback.format_exception(cause)) if cause else outcome.trace
            write(bad=[kind, name], message=str(broken).splitlines()[0], trace=sanitize(trace))
    write(done=True)
    os._exit(0)


def _torch() -> dict[str, Any]:
    import torch

    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            found.append({"name": facts.name, "bytes": facts.total_memory})
    elif torch.accelerator.is_available():
        found.append({"name": str(torch.accelerator.current_accelerator()), "bytes": None})
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "accelerators": found}


def _try(kind: str, entry: Entry) -> None:
    made, base = entry.load(), KINDS[kind].base_class()
    if base is not None and not (isinstance(made, type) and issubclass(made, base)):
        raise errors.PluginBroken(f"its target is no mmzoo.api.{base.__name__}")
