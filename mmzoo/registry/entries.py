"""Names: what an entry is, and the table that finds one by its name. Imports no torch, and nothing of a plugin."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mmzoo.common.sanitize import describe_error, short_repr
from mmzoo.errors import DuplicateName, PluginBroken, UnknownName
from mmzoo.interfaces.kinds import KINDS

# Commands of the command line itself, which no plugin's command may hide behind.
RESERVED = frozenset(
    {
        *("list", "show", "check", "train", "evaluate", "generate", "predict", "import", "export"),
        *("card", "verify", "push", "pull", "search", "pack", "load", "plugin", "doctor"),
    }
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MAX_NAME, MAX_TEXT, MAX_TINY = 100, 1000, 100_000


@dataclass(frozen=True)
class Entry:
    """One thing that can be chosen, as data. Its ``target`` is imported only when it is built.

    Args:
        kind: one of `KINDS`.
        name: lower case; letters, digits, ``.``, ``_`` and ``-``.
        target: ``"package.module:attribute"``; what it must be is in `mmzoo.registry.hookspecs`.
        summary: one line for ``mmzoo list``.
        modality: ``"image"``, ``"text"``, ... or empty where it has none.
        license: SPDX id of the weights, or of the code where there are no weights; ``"unknown"`` if not known,
            ``"varies"`` where the variant decides.
        source: where it comes from: the paper, the original code, the page of the weights.
        variant: the variant that the bare name stands for, e.g. ``"openai-community/gpt2"``; None if the entry has none.
        tiny: the options that make it small, random and offline; every entry is tested with them.
    """

    kind: str
    name: str
    target: str
    summary: str
    modality: str = ""
    license: str = "unknown"
    source: str = ""
    variant: str | None = None
    tiny: Mapping[str, Any] = field(default_factory=dict)
    plugin: str = ""
    version: str = ""

    def problems(self) -> list[str]:
        """What is wrong with the entry's data, in words; empty if nothing is."""
        found = []
        if self.kind not in KINDS:
            found.append(f"kind {short_repr(self.kind)} is none of {', '.join(KINDS)}")
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            found.append(
                f"name {short_repr(self.name)} must be lower case letters, digits, '.', '_' and '-', {MAX_NAME} of them at most"
            )
        texts = {key: getattr(self, key) for key in ("target", "summary", "modality", "license", "source", "variant")}
        if self.variant is None:
            del texts["variant"]
        for key, value in texts.items():
            if not isinstance(value, str):
                found.append(f"{key} {short_repr(value)} is no text")
            elif len(value) > MAX_TEXT or (not value.isprintable() and _CONTROL.search(value)):
                found.append(f"{key} {short_repr(value)} must be one line of {MAX_TEXT} characters at most")
        if isinstance(self.target, str) and not _TARGET.fullmatch(self.target):
            found.append(f"target {short_repr(self.target)} is not 'package.module:attribute'")
        if self.summary == "":
            found.append("summary is empty")
        if not isinstance(self.tiny, Mapping):
            found.append("tiny is not a mapping of options")
        elif self.tiny:
            try:
                if len(json.dumps(dict(self.tiny), allow_nan=False)) > MAX_TINY:
                    found.append(f"tiny has more than {MAX_TINY} characters as JSON")
            except (TypeError, ValueError, RecursionError) as error:
                found.append(f"tiny is not JSON: {error}")
        return found

    def load(self) -> Any:
        """Import and return the target.

        Raises:
            PluginBroken: the module cannot be imported or has no such attribute.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's module may raise anything
            raise PluginBroken(
                f"{self.label} could not be imported from {self.target}: {describe_error(error)}\n"
                f"It belongs to {self.plugin or 'no plugin'}; reinstall or remove that plugin (`mmzoo doctor` says more)."
            ) from error

    @property
    def label(self) -> str:
        return f"{self.kind.replace('_', ' ')} '{self.name}'"

    def row(self) -> dict[str, str]:
        """What ``mmzoo list --json`` prints of it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "summary": self.summary,
            "plugin": self.plugin,
            "license": self.license,
            "source": self.source,
        }


_FIELDS = fields(Entry)


def split_use(use: str) -> tuple[str, str | None, str | None]:
    """Split ``name[:variant][@revision]`` into its three parts; only ``:`` and ``@`` mean anything.

    >>> split_use("hf-causal:Qwen/Qwen3-0.6B@main")
    ('hf-causal', 'Qwen/Qwen3-0.6B', 'main')
    """
    head, at, revision = use.rpartition("@")
    if not at:
        head, revision = use, ""
    name, colon, variant = head.partition(":")
    return name, (variant if colon else None), (revision or None)


class Registry:
    """A table of entries by kind and name."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def add_all(self, entries: Iterable[Entry], *, plugin: str, version: str) -> list[Entry]:
        """Add a plugin's entries: all of them, or none.

        Returns:
            Them, with the plugin and version that they are of.

        Raises:
            PluginBroken: an entry whose data is wrong.
            DuplicateName: a name that is taken.
        """
        fresh: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            if not isinstance(entry, Entry):
                raise PluginBroken(f"a hook returned {type(entry).__name__} where an mmzoo.Entry belongs")
            # Its data alone: a subclass may have any methods.
            data = {item.name: getattr(entry, item.name) for item in _FIELDS}
            entry = Entry(**{**data, "plugin": plugin, "version": version})
            if problems := entry.problems():
                raise PluginBroken(f"entry {short_repr(entry.name)}: {'; '.join(problems)}")
            if entry.kind == "command" and entry.name in RESERVED:
                raise DuplicateName(f"{entry.label} of '{plugin}' is called like a command of mmzoo's own; it needs another name")
            key = (entry.kind, entry.name)
            taken = fresh.get(key) or self._entries.get(key)
            if taken is not None:
                if taken.plugin == plugin:
                    raise DuplicateName(f"{entry.label} comes from '{plugin}' twice; one of them needs another name")
                raise DuplicateName(
                    f"{entry.label} comes from both '{taken.plugin}' and '{plugin}'; uninstall or disable one of them"
                )
            fresh[key] = entry
        self._entries.update(fresh)
        return list(fresh.values())

    def remove(self, entries: Iterable[Entry]) -> None:
        """Forget entries that were added."""
        for entry in entries:
            del self._entries[entry.kind, entry.name]

    def entries(self, kind: str | None = None, pattern: str | None = None) -> list[Entry]:
        """Entries, sorted by kind and name; ``pattern`` is a shell wildcard such as ``clip*``."""
        found = [
            entry
            for entry in self._entries.values()
            if (kind is None or entry.kind == kind) and (pattern is None or fnmatch.fnmatchcase(entry.name, pattern))
        ]
        order = {name: place for place, name in enumerate(KINDS)}
        return sorted(found, key=lambda entry: (order[entry.kind], entry.name))

    def get(self, kind: str, name: str, *, hint: Callable[[], str] | None = None) -> Entry:
        """The entry of that kind and name.

        Raises:
            UnknownName: with the nearest names, and with what ``hint`` says (e.g. which plugins failed) below them.
        """
        entry = self._entries.get((kind, name))
        if entry is None:
            said = hint() if hint is not None else ""
            raise UnknownName(self.unknown(kind, name) + (f"\n{said}" if said else ""))
        return entry

    def unknown(self, kind: str, name: str) -> str:
        """The message for a name that is not there."""
        words = kind.replace("_", " ")
        names = [entry.name for entry in self.entries(kind)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
        elsewhere = [entry for entry in self._entries.values() if entry.name == name and entry.kind != kind]
        if near:
            advice = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
        elif elsewhere:
            advice = f"there is the {elsewhere[0].label}."
        elif len(names) <= 12 and names:
            advice = "there are: " + ", ".join(names) + "."
        else:
            advice = f"`mmzoo list {kind.replace('_', '-')}` shows all {len(names)}."
        return f"unknown {words} '{name}'; {advice}"
