"""Look after plugins: ``plugin list``."""

from __future__ import annotations

import typer

from mmzoo import catalogue
from mmzoo.cli.arguments import Json
from mmzoo.cli.printing import print_json, warn_of_failures
from mmzoo.cli.root import app

plugin = typer.Typer(no_args_is_help=True, help="Look after plugins.")
app.add_typer(plugin, name="plugin")


@plugin.command("list")
def list_(as_json: Json = False) -> None:
    """List the distributions that bring entries, and how many."""
    counts: dict[tuple[str, str], int] = {}
    for entry in catalogue.entries():
        counts[entry.plugin, entry.version] = counts.get((entry.plugin, entry.version), 0) + 1
    if as_json:
        print_json([{"plugin": name, "version": version, "entries": count} for (name, version), count in counts.items()])
    else:
        for (name, version), count in sorted(counts.items()):
            print(f"{name} {version}  {count} entries")
    warn_of_failures()
