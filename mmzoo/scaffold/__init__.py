"""Write a new plugin: a package that installs, passes the contract's checks and can be published as it is.

The templates of the files are in this folder: one for each kind of entry, and those of every package. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import keyword
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import BadPlugin, UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.recipes import catalogue
from mmzoo.registry.api_version import API_VERSION

PREFIX = "mmzoo-"
# The grammar of PEP 508; names are compared in lower case, with each run of -_. as one dash.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

_SUMMARIES = {
    "encoder": "image patches through one linear layer",
    "fusion": "pooled features as a few tokens before the text",
    "language_model": "a gated recurrent network with a vocabulary learned from the data",
    "task": "one label of a fixed set for an image and a text",
    "dataset": "plain squares and the names of their colours",
    "metric": "share of predictions that contain a reference",
    "augmentation": "pictures with their colour channels in a random order",
    "recipe": "a label for an image and a question, trained from scratch",
    "format": "a folder with recipe.json and weights.safetensors (import, export)",
    "command": "list the entries of this plugin",
}
_TINY = {
    "encoder": '{"image_size": 16, "patch": 8, "dim": 16}',
    "fusion": '{"length": 2}',
    "language_model": '{"dim": 16}',
    "dataset": '{"size": 16, "limit": 8}',
}
_MODALITIES = {"encoder": "image", "language_model": "text", "dataset": "image", "augmentation": "image", "recipe": "image"}
_USES = {
    "dataset": "mmzoo train RECIPE --dataset {name} --output DIR",
    "metric": "mmzoo evaluate MODEL --dataset DATASET --metric {name}",
    "augmentation": "mmzoo train RECIPE --dataset DATASET --output DIR --set data.augment.image={name}",
    "recipe": "mmzoo train {name} --dataset DATASET --output DIR",
    "format": "mmzoo export {name} MODEL DIR",
    "command": "mmzoo {name}",
}
_PARTNERS = {"encoder": "cnn", "fusion": "late-concat", "language_model": "lstm", "task": "classify"}


def create(
    name: str, kinds: Sequence[str] = ("encoder",), folder: str | Path | None = None, *, commands: Collection[str] = ()
) -> Path:
    """Write the package ``name`` with one small entry of each kind.

    Args:
        folder: the new folder; ``name`` if None.
        commands: names of commands that exist already on the command line.

    Raises:
        BadPlugin: the name cannot be that of a distribution or its package, or the folder exists.
        UnknownName: there is no such kind.
    """
    package = package_of(name)
    chosen = {_kind(kind) for kind in kinds}
    target = Path(folder or name).expanduser()
    if target.exists():
        raise BadPlugin(f"{target} exists; name a new folder: --output {target / name}")
    entries = [_plan(kind, name, commands) for kind in sorted(chosen, key=list(KINDS).index)]
    for path, text in _files(name, package, entries).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    return target


def package_of(name: str) -> str:
    """Return the name of the package in a distribution of that name; a `BadPlugin` says why a name is not valid."""
    package = re.sub(r"[-_.]+", "_", name).lower()
    if not _NAME.fullmatch(name) or len(name) > 100:
        rule = "use letters, digits, '-', '_' and '.', and begin and end with a letter or digit"
        raise BadPlugin(f"'{name}' is not a valid name of a distribution: {rule}")
    if not package.isidentifier() or keyword.iskeyword(package):
        raise BadPlugin(f"'{name}' would be the package '{package}', which Python cannot import; try '{PREFIX}{name}'")
    spec = importlib.util.find_spec(package)
    if package in sys.stdlib_module_names or (spec is not None and spec.origin is not None):
        raise BadPlugin(f"'{name}' would be the package '{package}', which exists already; try '{PREFIX}{name}-2'")
    return package


def _kind(word: str) -> str:
    try:
        return catalogue.kind_of(word.strip())
    except UnknownName as error:
        advice = did_you_mean(word.strip().lower().replace("_", "-"), [kind.replace("_", "-") for kind in KINDS], 1)
        raise UnknownName(f"{error}{advice and '; '}{advice}") from None


def _plan(kind: str, name: str, commands: Collection[str]) -> dict[str, Any]:
    """Describe the entry of a kind for the templates. Its name is the distribution's without prefix; if taken, with the kind."""
    own = re.sub(r"[-_.]+", "-", name).lower()
    short = own.removeprefix(PREFIX)
    taken = any(entry.name == short and entry.plugin.lower() != own for entry in catalogue.entries(kind))
    if taken or (kind == "command" and short in commands):
        short = f"{short}-{kind.replace('_', '-')}"
    words = "".join(word.capitalize() for word in f"{own.removeprefix(PREFIX)}-{kind}".replace("_", "-").split("-"))
    attribute = {"recipe": "RECIPE", "command": "run"}.get(kind) or (words if words[0].isalpha() else f"Zoo{words}")
    return {
        "kind": kind,
        "name": short,
        "attribute": attribute,
        "hook": KINDS[kind].hook,
        "words": KINDS[kind].label,
        "summary": _SUMMARIES[kind],
        "modality": _MODALITIES.get(kind, ""),
        "tiny": _TINY.get(kind, ""),
        "use": _USES.get(kind, f"mmzoo check RECIPE --{kind.replace('_', '-')} {{name}}").format(name=short),
        "options": kind in ("encoder", "fusion", "language_model", "task", "dataset", "augmentation"),
    }


def _files(name: str, package: str, entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the text of each file, by its path in the new folder."""
    own = {entry["kind"]: entry["name"] for entry in entries}
    words = {
        "distribution": name,
        "package": package,
        "entries": entries,
        "summary": f"A plugin for mmzoo: {', '.join(entry['words'] for entry in entries)}",
        "api": API_VERSION,
        "mmzoo": ".".join(importlib.metadata.version("mmzoo").split(".")[:2]),
        "parts": {kind: own.get(kind, partner) for kind, partner in _PARTNERS.items()},
    }
    files = {
        "pyproject.toml": _render("pyproject.toml", words),
        "README.md": _render("README.md", words),
        "LICENSE": _render("LICENSE", words),
        ".gitignore": _render("gitignore", words),
        ".github/workflows/test.yml": _render("ci.yml", words),
        f"{package}/__init__.py": _render("init.py", words),
        f"{package}/py.typed": "",
        f"{package}/plugin.py": _render("plugin.py", words),
        "tests/test_plugin.py": _render("test_plugin.py", words),
    }
    for entry in entries:
        files[f"{package}/{entry['kind']}.py"] = _render(f"{entry['kind']}.py", {**words, "entry": entry})
    return files


def _render(template: str, words: dict[str, Any]) -> str:
    text = importlib.resources.files(__package__).joinpath(f"{template}.j2").read_text(encoding="utf-8")
    parsed = jinja2.Template(text, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return parsed.render(words)
