"""Diagnose an installation: what is broken, and the command that fixes it.

Plugins, torch and the targets of entries are checked in child processes, so that a plugin which ends its process, or a library
which crashes it, is one line of the report. Nothing here imports torch, so it works where torch is broken.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.common.files import cache_folder
from mmzoo.common.sanitize import one_line
from mmzoo.errors import PluginBroken, SettingsError, UnknownName
from mmzoo.registry import api_version, discovery, isolation, settings, subprocess_checks
from mmzoo.registry.manager import FAILED

HUB_SECONDS = 3.0
MAX_FILES = 200_000  # of a cache, before counting stops


@dataclass(frozen=True)
class Problem:
    """Describe something that is broken, the commands that fix it (the likeliest first), and the traceback."""

    what: str
    fixes: tuple[str, ...]
    trace: str = ""


@dataclass
class Report:
    """Hold the result of `diagnose`. ``plugins`` are rows of `check_plugins`; ``notes`` are worth knowing, but not problems."""

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
        """Return whether nothing is broken."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {"well": self.well, **asdict(self)}


def diagnose() -> Report:
    """Check everything. This takes about as long as importing torch, or some minutes if something hangs."""
    environment = {"python": platform.python_version(), "platform": platform.platform()}
    report = Report(discovery.read_own_version(), api_version.API_VERSION, environment)
    _check_dependencies(report)
    _check_plugins(report)
    _check_libraries(report)
    _measure_caches(report)
    check_hub(report)
    return report


def _check_dependencies(report: Report) -> None:
    """Check that each dependency of mmzoo is installed in a version that it accepts."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("mmzoo") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        report.environment[requirement.name] = version or "missing"
        if not version or not requirement.specifier.contains(version, prereleases=True):
            installed = f"{version} is installed" if version else "it is not installed"
            what = f"mmzoo needs {requirement.name}{requirement.specifier}, and {installed}"
            report.problems.append(Problem(what, (f"pip install '{requirement}'",)))


def _check_plugins(report: Report) -> None:
    """Load the plugins in a child process."""
    try:
        report.plugins = subprocess_checks.check_plugins()
    except (UnknownName, SettingsError, PluginBroken) as error:
        fix = f"unset {isolation.TIMEOUT}" if isolation.TIMEOUT in str(error) else f"rm {settings.config_file()}"
        fix = {UnknownName: f"unset {settings.ONLY}", PluginBroken: f"{settings.ONLY}= mmzoo doctor"}.get(type(error), fix)
        report.problems.append(Problem(str(error), (fix,)))
    for row in report.plugins:
        if row["state"] == FAILED:
            what = f"plugin '{row['plugin']}' {row['version']} is not in use: {row['error']}"
            fixes = (row["fix"], *_list_fixes(row["plugin"], row["distribution"]))
            report.problems.append(Problem(what, tuple(dict.fromkeys(fix for fix in fixes if fix)), row["trace"]))
        report.notes += [f"plugin '{row['plugin']}' warned while it was loaded: {note}" for note in row["notes"]]


def _list_fixes(plugin: str, dist: str) -> tuple[str, ...]:
    """Return the commands that remove or repair a plugin."""
    disable = f"mmzoo plugin disable {plugin}"
    return ("pip install --force-reinstall mmzoo", disable) if dist == "mmzoo" else (disable, f"pip uninstall {dist}")


def _check_libraries(report: Report) -> None:
    """Import torch, transformers and the targets of entries of other distributions in a child process."""
    rows = [row for row in report.plugins if row["distribution"] != "mmzoo"]
    results = subprocess_checks.check_libraries([target for row in rows for target in row["targets"]])
    report.torch = results.torch
    broken = [library for library in subprocess_checks.LIBRARIES if library in results.failures]
    for library in broken:
        error, trace = results.failures[library]
        what, fix = f"{library} cannot be imported: {error}", f"pip install --force-reinstall {library}"
        report.problems.append(Problem(what, (fix,), trace))
    if not report.torch.get("accelerators"):
        report.notes.append("torch has no GPU to use; models run on the CPU")
    for row in rows if not broken else ():
        for kind, name, _ in row["targets"]:
            if f"{kind}/{name}" in results.failures:
                error, trace = results.failures[f"{kind}/{name}"]
                what = f"{kind.replace('_', ' ')} '{name}' of plugin '{row['plugin']}' cannot be built: {error}"
                fixes = (f"pip install --upgrade {row['distribution']}", *_list_fixes(row["plugin"], row["distribution"]))
                report.problems.append(Problem(what, fixes, trace))


def _measure_caches(report: Report) -> None:
    """Measure the caches of mmzoo and of the Hub's client."""
    folders = {"mmzoo (MMZOO_CACHE)": cache_folder()}
    try:
        from huggingface_hub import constants

        folders["Hugging Face (HF_HOME)"] = Path(constants.HF_HUB_CACHE)
    except Exception as error:
        report.notes.append(f"the cache of huggingface_hub cannot be found: {one_line(error)}")
    for name, folder in folders.items():
        report.caches.append({"cache": name, "folder": str(folder), **_measure_folder(folder)})


def _measure_folder(folder: Path) -> dict[str, Any]:
    """Return the size in bytes and the number of files of a folder."""
    size = files = 0
    for path, _, names in os.walk(folder):  # links are not followed: the Hub's cache holds each file once, with links to it
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(path, name)).st_size
                files += 1
        if files > MAX_FILES:
            break
    return {"bytes": size, "files": files, "complete": files <= MAX_FILES}


def check_hub(report: Report) -> None:
    """Check that the Hub answers, unless ``HF_HUB_OFFLINE`` is set."""
    try:
        from huggingface_hub import constants
    except Exception as error:
        report.hub = {"endpoint": "", "reached": False, "said": f"huggingface_hub cannot be imported: {one_line(error)}"}
        return
    report.hub = {"endpoint": constants.ENDPOINT, "reached": False, "said": "not tried: HF_HUB_OFFLINE is set"}
    if constants.HF_HUB_OFFLINE:
        return
    # In a thread with a time limit, because the timeout of a connection does not cover the DNS lookup.
    outcome = isolation.run_limited(lambda: _request_status(constants.ENDPOINT), HUB_SECONDS + 1)
    report.hub.update(reached=outcome.error is None, said=outcome.value or f"cannot be reached: {outcome.error}")
    if outcome.error is not None:
        report.notes.append(f"{constants.ENDPOINT} cannot be reached; if you work offline, set HF_HUB_OFFLINE=1 to avoid waiting")


def _request_status(endpoint: str) -> str:
    """Return the HTTP status of an endpoint, in words."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS) as answer:
            return f"answers ({answer.status})"
    except urllib.error.HTTPError as error:  # a refusal is an answer, too
        return f"answers ({error.code})"
