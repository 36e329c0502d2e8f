"""What is installed: the entry points of the group ``mmzoo``, and what their distributions say of themselves.

`importlib.metadata.entry_points` parses the entry points of every distribution and raises if one file is malformed, and the
name or version of a distribution parses all its metadata each time; with hundreds of plugins both are seconds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from mmzoo.common.sanitize import sanitize
from mmzoo.registry.settings import normal

GROUP = "mmzoo"
# Names go into commands that a user copies, and versions to the terminal.
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
MAX_NAME = 100
_SECTION = re.compile(rf"^\[\s*{GROUP}\s*\]", re.MULTILINE)
_NEED = re.compile(r"^Requires-Dist:\s*(mmzoo(?![\w.-]).*)$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Distribution:
    """A distribution: its name, version, and what it requires of mmzoo, as ``Requires-Dist`` says it."""

    name: str
    version: str = ""
    needs: tuple[str, ...] = ()

    def refusal(self, ours: str) -> tuple[str, str] | None:
        """Why it cannot be used with version ``ours`` of mmzoo and the command that fixes it; None if it can."""
        from packaging.requirements import InvalidRequirement, Requirement

        for text in self.needs:
            try:
                need = Requirement(text)
            except InvalidRequirement:
                continue  # pip judges it
            applies = need.marker is None or need.marker.evaluate({"extra": ""})
            if applies and not need.specifier.contains(ours, prereleases=True):
                fix = f"pip install --upgrade '{self.name}' 'mmzoo{need.specifier}'"
                return f"needs mmzoo{need.specifier}, and {ours} is installed: {fix}", fix
        return None


@functools.cache
def own_version() -> str:
    """The version of mmzoo."""
    return importlib.metadata.version(GROUP)


def describe(dist: Any) -> Distribution:
    """Read a distribution's metadata, without parsing what nobody asked for. ``dist`` may be a stand-in with name and version."""
    if dist is None:
        return Distribution("unknown")
    if not hasattr(dist, "read_text"):
        return Distribution(dist.name, dist.version)
    text = (_text(dist, "METADATA") or _text(dist, "PKG-INFO")).replace("\r\n", "\n").partition("\n\n")[0]
    found = {key: value.strip() for key, value in re.findall(r"^(Name|Version):(.*)$", text, re.MULTILINE)}
    needs = tuple(need.strip() for need in _NEED.findall(text) if re.search(r"[<>=~!]", need))
    folder = getattr(dist, "_path", None)  # it is named as the distribution, where its metadata cannot be read
    name = found.get("Name") or (folder.name.partition("-")[0] if folder is not None else "unknown")
    return Distribution(_UNUSUAL.sub("_", name)[:MAX_NAME], sanitize(found.get("Version", ""))[:MAX_NAME], needs)


def _text(dist: Any, name: str) -> str:
    """A file of a distribution's metadata; empty where there is none, or none that can be read."""
    try:
        return dist.read_text(name) or ""
    except (OSError, UnicodeError):
        return ""


def describe_point(point: Any) -> Distribution:
    """What the distribution of an entry point says of itself."""
    return point.about if hasattr(point, "about") else describe(point.dist)


def entry_points() -> Iterator[Any]:
    """Every entry point of the group, each with ``about``, the `About` of its distribution. One whose file is malformed raises
    when it is loaded."""
    seen: set[str] = set()
    own: set[str] = set()
    for dist in importlib.metadata.distributions():
        text = _text(dist, "entry_points.txt")
        if not _SECTION.search(text):
            continue
        said = describe(dist)
        is_ours = normal(said.name) == GROUP
        # A copy further down sys.path is not what gets imported. But where ours has one, such as an old egg-info in a checkout,
        # what is imported may be either's.
        if said.name != "unknown" and normal(said.name) in seen and not is_ours:
            continue
        seen.add(normal(said.name))
        try:
            found = list(dist.entry_points.select(group=GROUP))
        except Exception as error:  # by the version of Python, of one kind or another
            found = [SimpleNamespace(name="?", value="", load=_raiser(error))]  # type: ignore[list-item]
        for point in found:
            if is_ours:
                if point.name in own:
                    continue
                own.add(point.name)
            yield SimpleNamespace(name=sanitize(point.name), value=point.value, about=said, load=point.load)


def _raiser(error: Exception) -> Any:
    def load() -> None:
        raise ValueError(f"its entry_points.txt is malformed: {error}")

    return load
