"""Define the commands ``plugin list``, ``plugin disable`` and ``plugin enable``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from mmzoo.cli.arguments import Json
from mmzoo.cli.printing import print_json, print_table
from mmzoo.cli.root import app
from mmzoo.common.sanitize import one_line
from mmzoo.errors import UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import settings

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


def _complete(names: Callable[[], list[str]]) -> Any:
    """Return a function that completes names for a shell."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _installed() -> list[str]:
    """Return the names of the installed plugins without importing any: one may be broken."""
    from mmzoo.registry.manager import list_installed_plugins

    return sorted({plugin.name for plugin in list_installed_plugins()})


@plugin.command()
def disable(
    name: Annotated[str, typer.Argument(help="As `mmzoo plugin list` names it.", autocompletion=_complete(_installed))],
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
    name: Annotated[str, typer.Argument(help="A disabled plugin.", autocompletion=_complete(settings.read_disabled))],
) -> None:
    """Load a disabled plugin again."""
    name = settings.normalise_name(name)
    if settings.enable(name):
        print(f"{name} is enabled")
        return
    if name not in {settings.normalise_name(known) for known in _installed()}:
        raise UnknownName(settings.describe_unknown_plugin(name, [*settings.read_disabled(), *_installed()]))
    print(f"{name} was not disabled")
