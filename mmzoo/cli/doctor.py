"""Define the command ``doctor``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

from mmzoo.cli.arguments import Json
from mmzoo.cli.plugin import plugin_cells
from mmzoo.cli.printing import print_json, print_table
from mmzoo.cli.root import app

if TYPE_CHECKING:
    from mmzoo.registry.diagnosis import Report


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
