"""Which plugins load: ``MMZOO_PLUGINS`` for this process, and a file with the disabled ones for this user."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmzoo.errors import SettingsError

ONLY = "MMZOO_PLUGINS"
CONFIG = "MMZOO_CONFIG"


def normal(name: str) -> str:
    """A distribution's name as packaging tools compare it; ``mmzoo:scratch`` keeps its second half."""
    dist, colon, point = name.strip().partition(":")
    return re.sub(r"[-_.]+", "-", dist).lower() + colon + point


def unknown(name: str, known: Iterable[str]) -> str:
    """The message that there is no plugin ``name``, with those of the ``known`` that are like it but for the `mmzoo` that all
    names begin with."""

    def own(text: str) -> str:
        return re.sub("^mmzoo[-:]", "", normal(text))

    short = {own(each): each for each in known}
    near = [short[match] for match in difflib.get_close_matches(own(name), short, n=3, cutoff=0.6)]
    advice = f"did you mean {' or '.join(near)}?" if near else "`mmzoo plugin list` shows those that are installed."
    return f"there is no plugin '{name}'; {advice}"


@dataclass(frozen=True)
class Choice:
    """``only``: these and no others, None for all; ``disabled``: not these. Both hold normal names."""

    only: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()


def choice() -> Choice:
    """What the environment and the file say.

    Raises:
        SettingsError: the file cannot be read.
    """
    text = os.environ.get(ONLY)
    only = None if text is None else frozenset(normal(name) for name in text.split(",") if name.strip())
    return Choice(only, frozenset(disabled()))


def config_file() -> Path:
    """``$MMZOO_CONFIG`` (a file, or a folder that has one), or ``mmzoo/config.json`` in ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    if chosen := os.environ.get(CONFIG):
        path = Path(chosen).expanduser()
        return path / "config.json" if path.is_dir() else path
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "mmzoo" / "config.json"


def disabled() -> list[str]:
    """The names that `disable` has put down, in order.

    Raises:
        SettingsError: the file cannot be read, or is not what we write.
    """
    path = config_file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}; mend or delete it") from None
    from mmzoo.common import parsing  # it brings a YAML reader, which most commands do without

    try:
        data = parsing.parse(text)
    except ValueError as error:
        raise SettingsError(f"{path}: cannot be read: {error}; mend or delete it") from None
    names = data.get("disabled", []) if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f'{path}: is not {{"disabled": ["name", ...]}}; mend or delete it')
    return sorted({normal(name) for name in names})


def disable(name: str) -> bool:
    """Put a name down; False if it was there.

    Raises:
        SettingsError: the file cannot be read or written.
    """
    names = disabled()
    if normal(name) in names:
        return False
    _write([*names, normal(name)])
    return True


def enable(name: str) -> bool:
    """Strike a name out; False if it was not there.

    Raises:
        SettingsError: the file cannot be read or written.
    """
    names = disabled()
    if normal(name) not in names:
        return False
    _write(other for other in names if other != normal(name))
    return True


def _write(names: Iterable[str]) -> None:
    """Replace the file in one step: whoever reads it meanwhile finds the old one or the new one, whole."""
    path = config_file()
    staging = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps({"disabled": sorted(names)}, indent=2) + "\n")
        os.replace(staging, path)
    except OSError as error:
        if staging is not None:
            with contextlib.suppress(OSError):
                os.unlink(staging)
        raise SettingsError(f"{path}: cannot be written: {error.strerror or error}; {CONFIG} names another file") from None
