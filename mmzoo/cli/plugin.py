"""Define the commands that manage plugins (``plugin list``, ``disable``, ``enable``, ``new``, ``check``), and ``doctor``."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmzoo.cli.arguments import Json, complete_from
from mmzoo.cli.printing import print_json, print_table, quiet
from mmzoo.cli.root import app
from mmzoo.common.sanitize import one_line
from mmzoo.errors import UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import settings

if TYPE_CHECKING:
    from mmzoo.registry.diagnosis import Report
    from mmzoo.testing import Result

COLUMNS = 6  # entries per table of checks

plugin = typer.Typer(no_args_is_help=True, help="Manage plugins.")
app.add_typer(plugin, name="plugin")


@plugin.command("list")
def list_(as_json: Json = False) -> None:
    """List the installed plugins: version, API version, state, and what each brings."""
    from mmzoo.registry.manager import plugin_manager
    from mmzoo.registry.subprocess_checks import plugin_row

    rows = [plugin_row(plugin) for plugin in plugin_manager().plugins]
    if as_json:
        print_json(rows)
    else:
        print_table(("plugin", "version", "API", "state", "brings"), plugin_cells(rows))


def plugin_cells(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of a table of plugins, from the rows of `mmzoo.registry.subprocess_checks.plugin_row`."""
    return [(row["plugin"], row["version"], row["api"], row["state"], _summarise_entries(row)) for row in rows]


def _summarise_entries(row: Mapping[str, Any]) -> str:
    """Return how many entries of each kind a plugin brings, or its error."""
    if row["error"]:
        return one_line(row["error"])
    counts = [(len(names), KINDS[kind].label) for kind, names in row["entries"].items()]
    return ", ".join(f"{count} {label}{'s' * (count > 1)}" for count, label in counts)


def _installed() -> list[str]:
    """Return the names of the installed plugins without importing any: one may be broken."""
    from mmzoo.registry.manager import list_installed_plugins

    return sorted({plugin.name for plugin in list_installed_plugins()})


@plugin.command()
def disable(
    name: Annotated[str, typer.Argument(help="As `mmzoo plugin list` names it.", autocompletion=complete_from(_installed))],
) -> None:
    """Stop loading a plugin in all processes of this user; it stays installed and is not imported."""
    from mmzoo.registry.manager import list_installed_plugins

    name = settings.normalise_name(name)
    plugins = list_installed_plugins()
    if name == "mmzoo":
        raise UnknownName("mmzoo's own plugins are disabled one at a time, such as mmzoo:timm (`mmzoo plugin list`)")
    if not any(name in plugin.names for plugin in plugins):
        raise UnknownName(settings.describe_unknown_plugin(name, {plugin.name for plugin in plugins}))
    state = "is disabled" if settings.disable(name) else "was disabled already"
    print(f"{name} {state}; mmzoo plugin enable {name} brings it back")


@plugin.command()
def enable(
    name: Annotated[str, typer.Argument(help="A disabled plugin.", autocompletion=complete_from(settings.read_disabled))],
) -> None:
    """Load a disabled plugin again."""
    name = settings.normalise_name(name)
    if settings.enable(name):
        print(f"{name} is enabled")
        return
    if name not in {settings.normalise_name(known) for known in _installed()}:
        raise UnknownName(settings.describe_unknown_plugin(name, [*settings.read_disabled(), *_installed()]))
    print(f"{name} was not disabled")


@plugin.command()
def new(
    name: Annotated[str, typer.Argument(help="The distribution's name, such as mmzoo-foo.", metavar="NAME")],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Kinds of its entries: encoder,fusion,...; may be repeated. The default is encoder.", metavar="KINDS"),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="The new folder; by default NAME.")] = None,
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
    name: Annotated[str, typer.Argument(help="The name of an installed distribution.", metavar="NAME")], as_json: Json = False
) -> None:
    """Check a plugin against the contract: every check on each of its entries, in its tiny form, offline."""
    from mmzoo import testing
    from mmzoo.common.progress import bar

    quiet()
    checks = testing.cases(name)
    outcomes: list[Result] = []
    with bar("checking", len(checks), shown=not as_json) as progress:
        progress.move(0, str(checks[0]))
        for result in testing.results(name):
            outcomes.append(result)
            progress.move(len(outcomes), str(checks[len(outcomes)]) if len(outcomes) < len(checks) else "")
    failed = [result for result in outcomes if result.problem]
    if as_json:
        print_json([result.to_dict() for result in outcomes])
    else:
        _tables(outcomes)
        for result in failed:
            print(f"\n{result.problem}")
        summary = f"{len(failed)} of {len(outcomes)} checks failed" if failed else f"all {len(outcomes)} checks passed"
        print(f"\n{name}: {summary}")
    if failed:
        raise typer.Exit(1)


def _tables(results: Sequence[Result]) -> None:
    """Print a table of checks by entry for each kind: ✓ passed, ✗ failed, - what it needs is not installed."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=400)
    cells = {(r.case.check.name, r.case.subject.name): "✗" if r.problem else "-" if r.skipped else "✓" for r in results}
    kinds: dict[str, dict[str, None]] = {}  # the names of each, in order
    for result in results:
        kinds.setdefault(result.case.subject.kind, {})[result.case.subject.name] = None
    for kind, names in kinds.items():
        for start in range(0, len(names), COLUMNS):
            shown = list(names)[start : start + COLUMNS]
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check plugins, libraries, GPU, caches and the Hub, and show for each problem the command that fixes it."""
    from mmzoo.registry.diagnosis import diagnose

    report = diagnose()
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)
    if not report.well:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    """Print a report as text."""
    print(f"mmzoo {report.mmzoo}, plugin API {report.api}\n")
    print_table(("plugin", "version", "API", "state", "brings"), plugin_cells(report.plugins))
    print("\nenvironment")
    print_table((), [(f"  {name}", version) for name, version in report.environment.items()])
    for gpu in report.torch.get("accelerators", []):
        memory = f", {gpu['bytes'] / 2**30:.0f} GiB" if gpu["bytes"] else ""
        print(f"  GPU: {gpu['name']}{memory}")
    print("\ncaches")
    rows = []
    for cache in report.caches:
        size = f"{'' if cache['complete'] else 'more than '}{cache['bytes'] / 1e6:.1f} MB, {cache['files']} files"
        rows.append((f"  {cache['cache']}", size, cache["folder"]))
    print_table((), rows)
    print(f"\nhub\n  {report.hub['endpoint']} {report.hub['said']}")
    if report.notes:
        print("\nnotes")
        for note in report.notes:
            print(textwrap.indent(note, "    ").replace("    ", "  - ", 1))
    if report.well:
        print("\nnothing is broken")
        return
    print(f"\n{len(report.problems)} problem{'s' * (len(report.problems) > 1)}")
    for i, problem in enumerate(report.problems, 1):
        print(f"\n{i}. {problem.what}")
        for label, fix in zip(["fix it:", *["or:"] * len(problem.fixes)], problem.fixes, strict=False):
            print(f"   {label.ljust(8)}  {fix}")
        if problem.trace:
            print(textwrap.indent(problem.trace.rstrip(), "   | "))
