"""Show what is registered, and check recipes: ``list``, ``show``, ``check``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from mmzoo.cli import arguments as arg
from mmzoo.cli.printing import fail, print_json, print_table, quiet
from mmzoo.cli.root import app
from mmzoo.errors import DoesNotFit, UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.recipes import catalogue
from mmzoo.registry.entries import Entry

MAX_WRAPPED = 500  # rows of a table
_complete_kind = arg.complete_from(lambda: [kind.replace("_", "-") for kind in KINDS])
_WAYS = {"import": "SOURCE --output DIR", "export": "MODEL DIR"}
Kind = Annotated[
    str | None,
    typer.Argument(help="A kind (such as encoder), a name, or a wildcard.", autocompletion=_complete_kind, metavar="[KIND]"),
]


@app.command("list")
def list_(
    kind: Kind = None,
    pattern: Annotated[str | None, typer.Argument(help="A wildcard for names, such as 'clip*'.", metavar="[PATTERN]")] = None,
    as_json: arg.Json = False,
) -> None:
    """List the entries: kind, name, summary, plugin, licence, source."""
    if kind is not None and pattern is None and _is_pattern(kind):
        kind, pattern = None, kind
    rows = catalogue.entries(kind, pattern)
    if as_json:
        print_json([entry.row() for entry in rows])
    elif rows:
        _table(rows)
    if not rows:
        print("nothing matches; `mmzoo list` lists all entries", file=sys.stderr)
        raise typer.Exit(1)


def _is_pattern(word: str) -> bool:
    """Return whether a word is a wildcard, or the name of an entry and not a kind: `mmzoo list lstm`."""
    if any(c in word for c in "*?["):
        return True
    try:
        catalogue.kind_of(word)
    except UnknownName:
        return any(entry.name == word for entry in catalogue.entries())
    return False


def _table(entries: list[Entry]) -> None:
    head = ("kind", "name", "summary", "plugin", "licence", "source")
    cells = [(KINDS[e.kind].label, e.name, e.summary, e.plugin, e.license, e.source) for e in entries]
    # Without a terminal nothing is cut or wrapped, as a pipe has no width. rich would need half a minute for thousands of rows.
    if not sys.stdout.isatty() or len(entries) > MAX_WRAPPED:
        print_table(head, cells)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = len(head) if console.width >= 180 else len(head) - 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in head[:shown]:
        table.add_column(column, no_wrap=column != "summary", ratio=1 if column == "summary" else None)
    for row in cells:
        table.add_row(*map(Text, row[:shown]))  # Text, so that brackets are not read as markup
    console.print(table)
    if shown < len(head):
        console.print("[dim]mmzoo show NAME shows the source and the options of an entry[/dim]")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of an entry of any kind.", autocompletion=arg.complete())],
    as_json: arg.Json = False,
) -> None:
    """Show an entry: summary, source, licence, options with types and defaults, and how to use it."""
    details = [_details(entry) for entry in catalogue.find(name.partition(":")[0])]
    if as_json:
        print_json(details)
        return
    for i, detail in enumerate(details):
        if i:
            print()
        print(f"{detail['name']} ({detail['kind'].replace('_', ' ')}, from {detail['plugin']} {detail['version']})")
        print(f"  {detail['summary']}")
        print(f"  source:  {detail['source'] or 'not given'}")
        print(f"  licence: {detail['license']}")
        if "recipe" in detail:
            print("  recipe:")
            for key, value in detail["recipe"].items():
                print(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
        if detail["options"]:
            print("  options:")
            for option in detail["options"]:
                default = option["default"] if isinstance(option["default"], str) else json.dumps(option["default"])
                print(f"    {option['name']}: {option['type']} = {default or repr('')}")
                if option["description"]:
                    print(f"        {option['description']}")
        print("  use:")
        for line in detail["use"]:
            print(f"    {line}")


def _details(entry: Entry) -> dict[str, Any]:
    detail: dict[str, Any] = {**entry.row(), "version": entry.version, "modality": entry.modality, "options": []}
    if entry.kind == "recipe":
        detail["recipe"] = dict(entry.load())
    elif entry.kind != "command":
        detail["options"] = catalogue.options(entry)
    needs_variant = entry.variant is None and any(option["name"] == "variant" for option in detail["options"])
    shown = f"{entry.name}:VARIANT" if needs_variant else entry.name
    detail["use"] = {
        "recipe": [f'mmzoo.build("{shown}")', f"mmzoo check {shown}", f"mmzoo train {shown} --dataset DATASET --output DIR"],
        "dataset": [f"mmzoo train RECIPE --dataset {shown} --output DIR"],
        "metric": [f"mmzoo evaluate MODEL --dataset DATASET --metric {shown}"],
        "augmentation": [f"mmzoo train RECIPE --dataset DATASET --output DIR --set data.augment.{entry.modality}={shown}"],
        "format": [f"mmzoo {way} {shown} {_WAYS[way]}" for way in entry.load().ways()] if entry.kind == "format" else [],
        "command": [f"mmzoo {shown} --help"],
    }.get(
        entry.kind,
        [f'mmzoo.build("RECIPE", {entry.kind}="{shown}")', f"mmzoo check RECIPE --{entry.kind.replace('_', '-')} {shown}"],
    )
    return detail


@app.command()
def check(
    recipe: arg.RecipeName = None,
    encoder: arg.EncoderName = None,
    fusion: arg.FusionName = None,
    language_model: arg.LanguageName = None,
    task: arg.TaskName = None,
    memory: Annotated[
        str | None, typer.Option(help="Show the largest batch that fits into it, e.g. 24GB.", metavar="SIZE")
    ] = None,
    sets: arg.Set = None,
    as_json: arg.Json = False,
) -> None:
    """Check that the parts are compatible, from configurations alone, and show sizes, parameters, memory and licences."""
    from mmzoo.models.build import check as check_fit

    quiet()
    changes = arg.changes_of(sets, encoder=encoder, fusion=fusion, language_model=language_model, task=task)
    try:
        summary = check_fit(recipe, memory=memory, **changes)
    except DoesNotFit as error:
        if as_json:
            print_json({"fits": False, "reason": str(error)})
        else:
            fail(str(error))
        raise typer.Exit(1) from None
    if as_json:
        print_json(summary.to_dict())
    else:
        print(summary)
