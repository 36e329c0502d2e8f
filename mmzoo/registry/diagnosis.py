"""What is wrong with this installation, and the command that mends it.

Plugins, torch and what entries point to are tried in processes of their own: a plugin that ends its process, or a library that
crashes it, is a line of the report. Nothing here imports torch, so it works where torch does not.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.common.files import cache_folder
from mmzoo.errors import SettingsError, UnknownName
from mmzoo.registry import api_version, discovery, isolation, settings, subprocess_checks
from mmzoo.registry.manager import FAILED

HUB_SECONDS = 3.0
MAX_FILES = 200_000


@dataclass(frozen=True)
class Problem:
    """Something that is broken: what, the commands that mend it (the first is the likeliest), and where it happened."""

    what: str
    fixes: tuple[str, ...]
    trace: str = ""


@dataclass
class Report:
    """What `diagnose` found: ``plugins`` as `mmzoo.registry.subprocess_checks.plugins` has them; ``notes`` are worth knowing, and not broken."""

    mmzoo: str
    api: str
    environment: dict[str, str]
    plugins: list[dict[str, Any]] = field(default_factory=list)
    torch: dict[str, Any] = field(default_factory=dict)
    caches: list[dict[str, Any]] = field(default_factory=list)
    hub: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {"well": self.well, **asdict(self)}


def diagnose() -> Report:
    """Look at everything. It takes about as long as importing torch, and at most some minutes where something hangs."""
    environment = {"python": platform.python_version(), "platform": platform.platform()}
    report = Report(discovery.own_version(), api_version.API_VERSION, environment)
    _dependencies(report)
    _plugins(report)
    _torch(report)
    _caches(report)
    _hub(report)
    return report


def _dependencies(report: Report) -> None:
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("mmzoo") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        report.environment[need.name] = version or "missing"
        if not version or not need.specifier.contains(version, prereleases=True):
            has = f"{version} is installed" if version else "it is not installed"
            report.problems.append(Problem(f"mmzoo needs {need.name}{need.specifier}, and {has}", (f"pip install '{need}'",)))


def _plugins(report: Report) -> None:
    deadly: dict[str, str] = {}
    while True:
        try:
            found = subprocess_checks.plugins(deadly)
        except UnknownName as error:
            report.problems.append(Problem(str(error), (f"unset {settings.ONLY}",)))
            return
        except SettingsError as error:
            mend = f"unset {isolation.TIMEOUT}" if isolation.TIMEOUT in str(error) else f"rm {settings.config_file()}"
            report.problems.append(Problem(str(error), (mend,)))
            return
        if found.complete or len(deadly) == subprocess_checks.MAX_DEADLY:
            break
        deadly[found.last] = found.ended
    report.plugins = found.rows
    for row in report.plugins:
        if row["state"] == FAILED:
            what = f"plugin '{row['plugin']}' {row['version']} is not in use: {row['error']}"
            fixes = (row["fix"], *_mends(row["plugin"], row["distribution"]))
            report.problems.append(Problem(what, tuple(dict.fromkeys(fix for fix in fixes if fix)), row["trace"]))
        for note in row["notes"]:
            report.notes.append(f"plugin '{row['plugin']}' warned while it was loaded: {note}")


def _mends(plugin: str, dist: str) -> tuple[str, ...]:
    disable = f"mmzoo plugin disable {plugin}"
    return ("pip install --force-reinstall mmzoo", disable) if dist == "mmzoo" else (disable, f"pip uninstall {dist}")


def _torch(report: Report) -> None:
    targets = [
        (row["plugin"], row["distribution"], kind, name, target)
        for row in report.plugins
        if row["distribution"] != "mmzoo"
        for kind, entries in row["targets"].items()
        for name, target in entries.items()
    ]
    found = subprocess_checks.libraries([(kind, name, target) for _, _, kind, name, target in targets])
    report.torch = found.torch
    for library, (error, trace) in found.broken.items():
        report.problems.append(
            Problem(f"{library} cannot be imported: {error}", (f"pip install --force-reinstall {library}",), trace)
        )
    if not report.torch.get("accelerators"):
        report.notes.append("no GPU that torch can use; models run on the processor")
    for plugin, dist, kind, name, _ in targets:
        if (kind, name) in found.bad and not found.broken:
            error, trace = found.bad[kind, name]
            what = f"{kind.replace('_', ' ')} '{name}' of plugin '{plugin}' cannot be built: {error}"
            report.problems.append(Problem(what, (f"pip install --upgrade {dist}", *_mends(plugin, dist)), trace))


def _caches(report: Report) -> None:
    folders = {"mmzoo (MMZOO_CACHE)": cache_folder()}
    try:
        from huggingface_hub import constants

        folders["Hugging Face (HF_HOME)"] = Path(constants.HF_HUB_CACHE)
    except Exception as error:
        report.notes.append(f"the cache of huggingface_hub cannot be found: {error}")
    for name, folder in folders.items():
        report.caches.append({"cache": name, "folder": str(folder), **_size(folder)})


def _size(folder: Path) -> dict[str, Any]:
    """Bytes and files below a folder; links count as links, as the cache of the Hub has each file once and links to it."""
    size = files = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
            files += 1
        if files > MAX_FILES:
            return {"bytes": size, "files": files, "complete": False}
    return {"bytes": size, "files": files, "complete": True}


def _hub(report: Report) -> None:
    try:
        from huggingface_hub import constants
    except Exception as error:
        report.hub = {"endpoint": "", "reached": False, "said": f"huggingface_hub cannot be imported: {error}"}
        return
    report.hub = {"endpoint": constants.ENDPOINT, "reached": False}
    if constants.HF_HUB_OFFLINE:
        report.hub["said"] = "not tried: HF_HUB_OFFLINE is set"
        return
    # In a thread with a limit: a timeout of a connection does not cover the look-up of its name.
    outcome = isolation.run_limited(lambda: _answer(constants.ENDPOINT), HUB_SECONDS + 1)
    report.hub["reached"] = outcome.error is None
    report.hub["said"] = outcome.value or f"cannot be reached: {outcome.error}"
    if outcome.error is not None:
        report.notes.append(f"{constants.ENDPOINT} cannot be reached; if that is meant to be so, HF_HUB_OFFLINE=1 saves waiting")


def _answer(endpoint: str) -> str:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS) as answer:
            return f"answers ({answer.status})"
    except urllib.error.HTTPError as error:  # refusing is an answer
        return f"answers ({error.code})"
