"""Create and check a plugin: ``plugin new``, ``plugin check``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmzoo.cli.arguments import Json
from mmzoo.cli.plugin import plugin
from mmzoo.cli.printing import print_json, quiet
from mmzoo.cli.root import app
from mmzoo.common.progress import bar

if TYPE_CHECKING:
    from mmzoo.testing import Result

COLUMNS = 6  # entries per table


@plugin.command()
def new(
    name: Annotated[str, typer.Argument(help="The distribution's name, such as mmzoo-foo.", metavar="NAME")],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of its entries: encoder,fusion,...; may be repeated. The default is encoder.", metavar="KINDS"),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="The new folder; the default is NAME.")
    ] = None,
) -> None:
    """Create a plugin that installs, passes its tests, and can be published."""
    from mmzoo import scaffold

    group: Any = typer.main.get_command(app)
    taken = group.list_commands(group.context_class(group))
    kinds = [word for names in kind or ["encoder"] for word in names.split(",") if word.strip()]
    folder = scaffold.create(name, kinds, output, commands=taken)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(path)
    print(f'\nnext:\n  cd {shlex.quote(str(folder))}\n  pip install -e ".[test]"\n  pytest\n  mmzoo plugin check {name}')


@plugin.command()
def check(
    name: Annotated[str, typer.Argument(help="The name of an installed distribution.", metavar="NAME")],
    as_json: Json = False,
) -> None:
    """Check a plugin against the contract: every check on each of its entries, in its tiny form, offline."""
    from mmzoo import testing

    quiet()
    checks = testing.cases(name)
    with bar("checking", len(checks), shown=not as_json) as moved:
        outcomes = []
        moved.move(0, str(checks[0]))
        for result in testing.results(name):
            outcomes.append(result)
            current = checks[len(outcomes)] if len(outcomes) < len(checks) else ""
            moved.move(len(outcomes), str(current))
    failed = [result for result in outcomes if result.problem]
    if as_json:
        print_json([result.to_dict() for result in outcomes])
    else:
        _tables(outcomes)
        for result in failed:
            print(f"\n{result.problem}")
        print(
            f"\n{name}: "
            + (f"{len(failed)} of {len(outcomes)} checks failed" if failed else f"all {len(outcomes)} checks passed")
        )
    if failed:
        raise typer.Exit(1)


def _tables(results: Sequence[Result]) -> None:
    """Print a table of checks by entry for each kind: ✓ passed, ✗ failed, - what it needs is not installed."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=400)
    cells = {(r.case.check.name, r.case.subject.name): "✗" if r.problem else "-" if r.skipped else "✓" for r in results}
    kinds: dict[str, list[str]] = {}
    for result in results:
        names = kinds.setdefault(result.case.subject.kind, [])
        if result.case.subject.name not in names:
            names.append(result.case.subject.name)
    for kind, names in kinds.items():
        for start in range(0, len(names), COLUMNS):
            shown = names[start : start + COLUMNS]
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column("check", no_wrap=True, min_width=16)
            for name in shown:
                table.add_column(name.removeprefix(f"{kind}-").replace("_", " "), justify="center")
            for check in dict.fromkeys(check for check, name in cells if name in shown):
                table.add_row(check, *(cells.get((check, name), "") for name in shown))
            console.print(f"\n[bold]{kind.replace('_', ' ')}[/bold]")
            console.print(table)
    for result in results:
        if result.skipped:
            print(f"- {result.case}: {result.skipped}")
