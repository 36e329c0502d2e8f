"""Define entries, which are what plugins register, and the registry that finds one by kind and name. Imports no torch."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mmzoo.common.sanitize import describe_error, sanitize, short_repr
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import DuplicateName, PluginBroken, UnknownName
from mmzoo.interfaces.kinds import KINDS

# The commands of mmzoo itself, whose names a plugin may not use.
RESERVED = frozenset(
    {
        *("list", "show", "check", "train", "evaluate", "generate", "predict", "import", "export"),
        *("card", "verify", "push", "pull", "search", "pack", "load", "plugin", "doctor"),
    }
)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
MAX_NAME, MAX_TEXT, MAX_TINY = 100, 1000, 100_000  # characters
MAX_NAMED = 12  # entries that a message names all


@dataclass(frozen=True)
class Entry:
    """Describe one thing that a recipe or a command can name. It is data: ``target`` is imported when it is first used.

    Args:
        kind: one of `KINDS`, such as ``"encoder"``.
        name: lower-case letters, digits, ``.``, ``_`` and ``-``.
        target: ``"package.module:attribute"``; `mmzoo.registry.hookspecs` says what each kind requires.
        summary: one line for ``mmzoo list``.
        modality: ``"image"``, ``"text"``, ...; empty if it has none.
        license: the SPDX id of the weights, or of the code if there are no weights; ``"unknown"`` if it is not known,
            ``"varies"`` if it depends on the variant.
        source: the paper, the original code, or the page of the weights.
        variant: the default variant, e.g. ``"openai-community/gpt2"``; None if there is none.
        tiny: options that make it small, random and offline; every entry is tested with them.
        plugin: the distribution that registered it; set when it is registered.
        version: the version of that distribution; set when it is registered.
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
        """Return what is wrong with the entry's data; an empty list if it is valid."""
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind {short_repr(self.kind)} is not one of {', '.join(KINDS)}")
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            allowed = f"at most {MAX_NAME} lower-case letters, digits, '.', '_' and '-'"
            problems.append(f"name {short_repr(self.name)} must be {allowed}")
        for key in ("target", "summary", "modality", "license", "source", *(["variant"] if self.variant is not None else [])):
            if not isinstance(value := getattr(self, key), str):
                problems.append(f"{key} {short_repr(value)} is not text")
            elif len(value) > MAX_TEXT or not (value.isprintable() or _is_one_line(value)):
                problems.append(f"{key} {short_repr(value)} must be one line of {MAX_TEXT} characters at most")
        if isinstance(self.target, str) and not _TARGET.fullmatch(self.target):
            problems.append(f"target {short_repr(self.target)} is not 'package.module:attribute'")
        if self.summary == "":
            problems.append("summary is empty")
        if not isinstance(self.tiny, Mapping):
            return [*problems, "tiny is not a mapping of options"]
        try:
            if len(json.dumps(dict(self.tiny), allow_nan=False)) > MAX_TINY:
                problems.append(f"tiny has more than {MAX_TINY} characters as JSON")
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"tiny is not JSON: {error}")
        return problems

    def load(self) -> Any:
        """Import and return the target; raise a `PluginBroken` if the module cannot be imported or lacks the attribute."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may raise anything, SystemExit included
            message = f"{self.label} could not be imported from {self.target}: {describe_error(error)}"
            fix = f"It belongs to {self.plugin or 'no plugin'}; reinstall or remove that plugin (`mmzoo doctor` says more)."
            raise PluginBroken(f"{message}\n{fix}") from error

    @property
    def label(self) -> str:
        """Return the kind and name for messages, such as "encoder 'clip'"."""
        return f"{self.kind.replace('_', ' ')} '{self.name}'"

    def row(self) -> dict[str, str]:
        """Return the fields that ``mmzoo list --json`` prints."""
        return {key: getattr(self, key) for key in ("kind", "name", "summary", "plugin", "license", "source")}


_FIELDS = [item.name for item in fields(Entry)]


def _is_one_line(text: str) -> bool:
    """Return whether a text has neither line breaks nor tabs nor other control characters."""
    return sanitize(text) == text and not {"\n", "\t"} & set(text)


def split_use(use: str) -> tuple[str, str | None, str | None]:
    """Split ``name[:variant][@revision]`` into its three parts, at the first ``:`` and the last ``@``.

    >>> split_use("hf-causal:Qwen/Qwen3-0.6B@main")
    ('hf-causal', 'Qwen/Qwen3-0.6B', 'main')
    """
    head, at, revision = use.rpartition("@")
    if not at:
        head, revision = use, ""
    name, colon, variant = head.partition(":")
    return name, (variant if colon else None), (revision or None)


class Registry:
    """Hold the registered entries by kind and name."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}

    def add_all(self, entries: Iterable[Entry], *, plugin: str, version: str) -> list[Entry]:
        """Register a plugin's entries, all of them or none; return them with their plugin (a distribution) and version set.

        Raises:
            PluginBroken: the data of an entry is wrong.
            DuplicateName: a name is registered already, or is a command of mmzoo.
        """
        added: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            if not isinstance(entry, Entry):
                raise PluginBroken(f"a hook returned {type(entry).__name__} where an mmzoo.Entry belongs")
            # Copy its data: a subclass may override any method.
            data = {name: getattr(entry, name) for name in _FIELDS}
            entry = Entry(**{**data, "plugin": plugin, "version": version})
            if problems := entry.problems():
                raise PluginBroken(f"entry {short_repr(entry.name)}: {'; '.join(problems)}")
            if entry.kind == "command" and entry.name in RESERVED:
                raise DuplicateName(f"{entry.label} of '{plugin}' has the name of a command of mmzoo; it needs another name")
            key = (entry.kind, entry.name)
            if existing := added.get(key) or self._entries.get(key):
                both = f"both '{existing.plugin}' and '{plugin}'; uninstall or disable one of them"
                twice = f"'{plugin}' twice; one of them needs another name"
                raise DuplicateName(f"{entry.label} comes from {twice if existing.plugin == plugin else both}")
            added[key] = entry
        self._entries.update(added)
        return list(added.values())

    def entries(self, kind: str | None = None, pattern: str | None = None) -> list[Entry]:
        """Return entries sorted by kind and name; ``pattern`` is a shell wildcard such as ``clip*``."""
        entries = [
            entry
            for entry in self._entries.values()
            if (kind is None or entry.kind == kind) and (pattern is None or fnmatch.fnmatchcase(entry.name, pattern))
        ]
        order = list(KINDS)
        return sorted(entries, key=lambda entry: (order.index(entry.kind), entry.name))

    def get(self, kind: str, name: str, *, hint: Callable[[], str] | None = None) -> Entry:
        """Return the entry of that kind and name.

        Raises:
            UnknownName: there is none; the message suggests similar names and ends with the text of ``hint``.
        """
        if (entry := self._entries.get((kind, name))) is not None:
            return entry
        note = hint() if hint is not None else ""
        raise UnknownName(self._describe_unknown(kind, name) + (f"\n{note}" if note else ""))

    def _describe_unknown(self, kind: str, name: str) -> str:
        """Return the message that no entry has this kind and name."""
        names = [entry.name for entry in self.entries(kind)]
        other_kinds = [entry for entry in self._entries.values() if entry.name == name]
        if not (advice := did_you_mean(name, names)):
            advice = f"`mmzoo list {kind.replace('_', '-')}` shows all {len(names)}."
            if other_kinds:
                advice = f"there is the {other_kinds[0].label}."
            elif 0 < len(names) <= MAX_NAMED:
                advice = f"there are: {', '.join(names)}."
        return f"unknown {kind.replace('_', ' ')} '{name}'; {advice}"
