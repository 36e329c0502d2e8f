"""Write the generated pages: docs/reference, docs/plugin-contract.md and the model cards.

``python docs/generate.py --check`` writes nothing: it fails if a page is stale, or if too few docstrings open with a verb.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import docstrings
import typer

from mmzoo.checkpoints import card
from mmzoo.checkpoints.summary import PartSummary, Summary
from mmzoo.cli import app
from mmzoo.interfaces.kinds import KINDS
from mmzoo.recipes import catalogue
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe, TaskConfig
from mmzoo.recipes.shape import default_name
from mmzoo.recipes.training_options import TrainingOptions
from mmzoo.registry import hookspecs
from mmzoo.testing import CHECKS

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n\n"


def main() -> int:
    """Write the pages that are stale, or with ``--check`` list them; return the exit code."""
    pages = {f"docs/reference/{name}.md": NOTE + page() for name, page in REFERENCE.items()} | cards()
    pages["docs/plugin-contract.md"] = NOTE + contract()
    stale = []
    for name, text in pages.items():
        path = ROOT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    checking = "--check" in sys.argv
    print("\n".join(f"{'stale' if checking else 'written'}: {name}" for name in stale) or "all pages are fresh")
    return int(checking and (not docstrings.check(listed=False) or bool(stale)))


def entries() -> str:
    lines = ["# Entries\n"]
    for kind in KINDS:
        lines.append(f"## {kind.replace('_', ' ').capitalize()}s\n")
        for entry in catalogue.entries(kind):
            if entry.plugin != "mmzoo":
                continue  # the pages describe this distribution only
            lines.append(f"### `{entry.name}`\n\n{entry.summary}\n\n- source: {entry.source}\n- licence: {entry.license}\n")
            if kind not in ("recipe", "command") and (rows := catalogue.options(entry)):
                lines.append("| option | type | default | |\n|---|---|---|---|")
                for row in rows:
                    default = row["default"] if isinstance(row["default"], str) else json.dumps(row["default"])
                    kind_text = row["type"].replace("|", "\\|")
                    lines.append(
                        f"| `{row['name']}` | `{kind_text}` | `{default}` | {row['description'].replace('|', chr(92) + '|')} |"
                    )
                lines.append("")
    return "\n".join(lines)


def hooks() -> str:
    lines = [f"# Hooks\n\n{inspect.cleandoc(hookspecs.__doc__ or '')}\n"]
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("mmzoo_"):
            lines.append(f"## `{name}{inspect.signature(function)}`\n\n{inspect.getdoc(function)}\n")
    return "\n".join(lines)


API = """\
# The interface of plugins

Everything that a plugin may rely on, by subject: `from mmzoo.api import NAME`. Base classes come first, followed by the objects
and functions that a plugin gets or may call. Function bodies are omitted. `mmzoo.api.API_VERSION` states how these names change.
The [hooks](hooks.md) have their own page.
"""


def api() -> str:
    lines = [API]
    for subject, names in _subjects().items():
        lines.append(f"## {subject}\n")
        for name, module in names.items():
            lines.append(f"### `{name}`\n\n```python\n{_code(module, name)}\n```\n")
    return "\n".join(lines)


def _subjects() -> dict[str, dict[str, str]]:
    """Return the names of `mmzoo.api` with the modules that define them, by the comment that they stand under."""
    source = (ROOT / "mmzoo" / "api.py").read_text(encoding="utf-8")
    comments = {number: line.strip()[2:] for number, line in enumerate(source.splitlines(), 1) if line.startswith("    # ")}
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    subjects: dict[str, dict[str, str]] = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            subject = comments[max(number for number in comments if number < node.lineno)]
            subjects.setdefault(subject, {}).update({alias.name: str(node.module) for alias in node.names})
    return subjects


def _code(module: str, name: str) -> str:
    """Return the source of a definition without its body."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            node.body = [kept for child in node.body if (kept := _without_body(child))]
            return ast.unparse(node)
        if isinstance(node, ast.FunctionDef) and node.name == name and (kept := _without_body(node)):
            return ast.unparse(kept)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for each in targets for target in ast.walk(each)):
            return ast.unparse(node)
    raise LookupError(f"{module} does not define {name}")


def _without_body(node: ast.stmt) -> ast.stmt | None:
    """Return a public method with its docstring only, None for a private one, and anything else unchanged."""
    if not isinstance(node, ast.FunctionDef):
        return node
    if node.name.startswith("_") and node.name != "__init__":
        return None
    documented = ast.get_docstring(node) is not None
    node.body = node.body[:1] if documented else [ast.Expr(ast.Constant(...))]
    return node


def command_line() -> str:
    group: Any = typer.main.get_command(app)
    return "\n".join(["# The command line\n", *_commands(group, group.context_class(group, info_name="mmzoo"))])


def _commands(group: Any, context: Any) -> list[str]:
    lines = []
    for name in sorted(group.list_commands(context)):
        _, command, _ = group.resolve_command(context, [name])
        inner = command.context_class(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            lines += _commands(command, inner)
            continue
        lines.append(f"## `{inner.command_path} {' '.join(command.collect_usage_pieces(inner))}`\n\n{command.help or ''}\n")
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                lines.append(f"- `{'`, `'.join([*parameter.opts, *parameter.secondary_opts])}`: {parameter.help or ''}")
        lines.append("")
    return lines


RECIPE = """\
# The recipe

A YAML or JSON file with these keys. `encoder`, `fusion` and `task` are short for a single part of that kind;
[several.md](../several.md) explains the long form. The JSON schema is at the end of this page.
"""
_PRIVATE = re.compile(r"mmzoo\.recipes\.\w+\.|Annotated\[(\w+), .*?\)\]\)\]")  # of a type: our modules, limits
TABLES = (
    ("Keys", Recipe),
    ("Keys of a part", PartConfig),
    ("Further keys of a task", TaskConfig),
    ("Keys of `training`", TrainingOptions),
)


def recipe() -> str:
    lines = [RECIPE]
    for title, model in TABLES:
        lines.append(f"## {title}\n\n| key | type | default | |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            if model is TaskConfig and name in PartConfig.model_fields:
                continue
            default = (
                "required"
                if field.is_required()
                else json.dumps(field.get_default(call_default_factory=True), default=lambda o: {})
            )
            kind = _PRIVATE.sub(r"\1", catalogue.type_name(field.annotation)).replace("|", "\\|")
            lines.append(f"| `{name}` | `{kind}` | `{default}` | {field.description or ''} |")
        lines.append("")
    lines.append(f"## JSON schema\n\n```json\n{json.dumps(Recipe.model_json_schema(), indent=1)}\n```\n")
    return "\n".join(lines)


def cards() -> dict[str, str]:
    """Return a card for each recipe of this distribution, from model_cards/runs only."""
    found = {}
    for entry in catalogue.entries("recipe"):
        if entry.plugin != "mmzoo":
            continue
        record = json.loads((ROOT / "model_cards" / "runs" / f"{entry.name}.json").read_text(encoding="utf-8"))
        said = record["summary"]
        keys = ("recipe", "memory_run", "memory_train")
        summary = Summary(parts=[PartSummary(**part) for part in said["parts"]], **{key: said[key] for key in keys})
        run = {key: record[key] for key in ("training", "evaluations") if key in record}
        sections = [blind(record["blind"])] if "blind" in record else []
        sections.append(("Reproduce the numbers", f"```\n{reproduce(entry.name, run)}\n```"))
        chosen = read_recipe(entry.name)
        generates = any(resolve("task", task).cls.needs_generation for task in chosen.tasks.values())
        modalities = tuple(dict.fromkeys(default_name("encoder", encoder) for encoder in chosen.encoders.values()))
        text = card.render(chosen, summary, run, generates=generates, modalities=modalities, sections=sections)
        found[f"model_cards/{entry.name}.md"] = text
    return found


def reproduce(recipe: str, run: dict[str, Any]) -> str:
    """Return the commands that measure the numbers of a card again."""
    if not run:
        return f"mmzoo check {recipe} --json"
    dataset = run["training"]["dataset"]
    if dataset == "easy-vqa":
        return f"python -m benchmarks easy_vqa --recipe {recipe}"
    return f"mmzoo train {recipe} --dataset {dataset} --output model\nmmzoo evaluate model --dataset {dataset}"


CONTRACT = """\
# The contract with plugins

What mmzoo promises its users about every entry, whoever wrote it. `mmzoo.testing` checks a plugin against this contract: each
entry in its `tiny` form, offline and with its own cache. Every failure names the contract, what happened, and the section here.

    mmzoo plugin check mmzoo-foo            # a table of checks and entries; exit code 1 if one fails; --json

    from mmzoo.testing import check_plugin

    def test_contract():
        check_plugin("mmzoo-foo")           # one error that lists every failure

As one pytest test for each entry and check:

    @pytest.mark.parametrize("case", mmzoo.testing.cases("mmzoo-foo"), ids=str)
    def test_contract(case):
        case.run()

    @pytest.mark.mmzoo_plugin("mmzoo-foo")  # the same, with mmzoo's plugin for pytest
    def test_contract(mmzoo_case):
        mmzoo_case.run()

`mmzoo plugin new mmzoo-foo --kind encoder,fusion` writes a package that passes. [reference/hooks.md](reference/hooks.md)
describes entries and hooks, and the [interface of plugins](reference/api.md) describes the methods of each part.
"""


def contract() -> str:
    """Return a section for each check of the conformance kit; its docstring is the contract."""
    lines = [CONTRACT]
    for check in CHECKS.values():
        kinds = ", ".join(kind.replace("_", " ") for kind in check.kinds)
        whom = "every entry" if set(check.kinds) == set(KINDS) else kinds or "the plugin as a whole"
        lines.append(f"## {check.name}\n\n*{whom}*\n\n{textwrap.fill(check.contract, 128)}\n")
    return "\n".join(lines)


def blind(record: dict) -> tuple[str, str]:
    rows = [
        f"| {name} | {score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}] |" for name, score in record["scores"].items()
    ]
    text = "The same recipe, trained and measured on blank images: the score that the questions alone reach.\n\n"
    text += "| metric | score |\n|---|---|\n"
    return "Trained blind", text + "\n".join(rows)


REFERENCE = {
    "entries": entries,
    "hooks": hooks,
    "api": api,
    "cli": command_line,
    "recipe": recipe,
}

if __name__ == "__main__":
    sys.exit(main())
