"""Choose which plugins load: ``MMZOO_PLUGINS`` for one process, and a file of disabled plugins for all processes of a user."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmzoo.common.files import write_atomically
from mmzoo.common.sanitize import one_line
from mmzoo.common.suggestions import close_names
from mmzoo.errors import SettingsError

ONLY = "MMZOO_PLUGINS"
CONFIG = "MMZOO_CONFIG"


def normalise_name(name: str) -> str:
    """Return a plugin's name as packaging tools compare names; the part after a colon, as in ``mmzoo:scratch``, is unchanged."""
    distribution, colon, entry_point = name.strip().partition(":")
    return re.sub(r"[-_.]+", "-", distribution).lower() + colon + entry_point


def describe_unknown_plugin(name: str, known: Iterable[str]) -> str:
    """Return the message that there is no plugin ``name``, with similar ``known`` names."""

    def shorten(text: str) -> str:  # almost all names have the prefix, so it does not count as similarity
        return re.sub("^mmzoo[-:]", "", normalise_name(text))

    known_by_short_name = {shorten(text): text for text in known}
    similar = [known_by_short_name[short] for short in close_names(shorten(name), known_by_short_name)]
    advice = f"did you mean {' or '.join(similar)}?" if similar else "`mmzoo plugin list` shows the installed ones."
    return f"there is no plugin '{name}'; {advice}"


@dataclass(frozen=True)
class PluginSelection:
    """Hold which plugins load: those in ``only`` (None: all), except those in ``disabled``. Both hold normalised names."""

    only: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()


def read_selection() -> PluginSelection:
    """Return the selection that the environment and the configuration file make."""
    text = os.environ.get(ONLY)
    only = None if text is None else frozenset(normalise_name(name) for name in text.split(",") if name.strip())
    return PluginSelection(only, frozenset(read_disabled()))


def config_file() -> Path:
    """Return ``$MMZOO_CONFIG`` (a file, or its folder), or ``mmzoo/config.json`` in ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if chosen := os.environ.get(CONFIG):
        path = Path(chosen).expanduser()
        return path / "config.json" if path.is_dir() else path
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "mmzoo" / "config.json"


def read_disabled() -> list[str]:
    """Return the normalised names of the disabled plugins, sorted.

    Raises:
        SettingsError: the file cannot be read or has another structure.
    """
    path = config_file()
    try:
        text = path.read_text(encoding="utf-8")
        from mmzoo.common import parsing  # imports a YAML reader, which most commands do not need

        data = parsing.parse(text)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read: {one_line(error)}; fix or delete it") from None
    names = data.get("disabled", []) if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f'{path}: must be {{"disabled": ["name", ...]}}; fix or delete it')
    return sorted({normalise_name(name) for name in names})


def disable(name: str) -> bool:
    """Add a plugin to the disabled ones; return False if it was disabled already."""
    return _write_disabled({*read_disabled(), normalise_name(name)})


def enable(name: str) -> bool:
    """Remove a plugin from the disabled ones; return False if it was not disabled."""
    return _write_disabled({*read_disabled()} - {normalise_name(name)})


def _write_disabled(names: set[str]) -> bool:
    """Replace the configuration file atomically; return False if it holds these names already.

    Raises:
        SettingsError: the file cannot be read or written.
    """
    if names == {*read_disabled()}:
        return False
    path = config_file()
    try:
        write_atomically(path, json.dumps({"disabled": sorted(names)}, indent=2) + "\n")
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise SettingsError(f"{path}: cannot be written: {reason}; set {CONFIG} to use another file") from None
    return True
