"""Find the installed plugins: the entry points in the group ``mmzoo`` and the metadata of their distributions.

`importlib.metadata.entry_points` raises for all distributions if one file is malformed, so each distribution is read on its own.
"""

from __future__ import annotations

import email
import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmzoo.common.sanitize import sanitize
from mmzoo.errors import PluginRefused
from mmzoo.registry.settings import normalise_name

GROUP = "mmzoo"
UNKNOWN = "unknown"  # the name of a distribution whose metadata cannot be read
MAX_NAME = 100
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")  # users copy commands that contain the name


@dataclass(frozen=True)
class Distribution:
    """Represent an installed distribution; ``requirements`` are its ``Requires-Dist`` that concern mmzoo."""

    name: str
    version: str = ""
    requirements: tuple[str, ...] = ()

    def check_requirements(self, version: str) -> None:
        """Raise a `PluginRefused`, with the pip command that fixes it, if the distribution requires another version of mmzoo."""
        from packaging.requirements import InvalidRequirement, Requirement

        for text in self.requirements:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue  # pip reports it
            if normalise_name(requirement.name) != GROUP or requirement.specifier.contains(version, prereleases=True):
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                fix = f"pip install --upgrade '{self.name}' 'mmzoo{requirement.specifier}'"
                raise PluginRefused(f"needs mmzoo{requirement.specifier}, and {version} is installed: {fix}", fix)


@dataclass(frozen=True)
class PluginEntryPoint:
    """Represent an entry point in the group ``mmzoo``; ``load`` imports and returns the plugin's module, named ``value``."""

    name: str
    value: str
    distribution: Distribution
    load: Callable[[], Any]


@functools.cache
def read_own_version() -> str:
    """Return the installed version of mmzoo."""
    return importlib.metadata.version(GROUP)


def find_entry_points() -> Iterator[PluginEntryPoint]:
    """Yield every entry point in the group. If a plugin's list of them is malformed, yield one that raises when it is loaded."""
    complete: set[str] = set()  # distributions whose entry points have been found
    own_points: set[str] = set()
    for installed in importlib.metadata.distributions():
        points = _read_entry_points(installed)
        name = normalise_name(points[0].distribution.name) if points else UNKNOWN
        if name in complete:
            continue  # a copy further down sys.path, which is not the one that is imported
        if name == GROUP:  # a checkout may hold an old copy of mmzoo's list before the current one: join them
            points = [point for point in points if point.name not in own_points]
            own_points |= {point.name for point in points}
        elif name != UNKNOWN:
            complete.add(name)
        yield from points


def _read_entry_points(installed: importlib.metadata.Distribution) -> list[PluginEntryPoint]:
    """Return the entry points of one distribution in the group."""
    try:
        text = installed.read_text("entry_points.txt") or ""
    except (OSError, UnicodeError):
        return []
    if f"[{GROUP}]" not in text:  # parsing the files of all installed packages would take longer
        return []
    distribution = _read_metadata(installed)
    try:
        points = installed.entry_points.select(group=GROUP)
        return [PluginEntryPoint(sanitize(point.name), point.value, distribution, point.load) for point in points]
    except Exception as raised:  # which one depends on the version of Python
        error = ValueError(f"its entry_points.txt is malformed: {raised}")

    def fail() -> None:
        raise error

    return [PluginEntryPoint("?", "", distribution, fail)]


def _read_metadata(installed: importlib.metadata.Distribution) -> Distribution:
    """Return the name, version and requirements of a distribution; they are unknown if its metadata cannot be read."""
    try:
        # `installed.metadata` also parses the description below the headers, which takes most of its time.
        text = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
        metadata = email.message_from_string(text.replace("\r\n", "\n").partition("\n\n")[0])
        name, version = str(metadata["Name"] or UNKNOWN), str(metadata["Version"] or "")
        requirements = tuple(text for text in metadata.get_all("Requires-Dist") or () if text.lower().startswith(GROUP))
    except Exception:
        return Distribution(UNKNOWN)
    return Distribution(_UNUSUAL.sub("_", name)[:MAX_NAME], sanitize(version)[:MAX_NAME], requirements)
