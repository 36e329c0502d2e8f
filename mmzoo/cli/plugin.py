"""Look after plugins: ``plugin list``, ``disable`` and ``enable``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from mmzoo.cli.arguments import Json
from mmzoo.cli.printing import print_json, print_table
from mmzoo.cli.root import app
from mmzoo.errors import UnknownName
from mmzoo.registry import settings

plugin = typer.Typer(no_args_is_help=True, help="Look after plugins.")
app.add_typer(plugin, name="plugin")


@plugin.command("list")
def list_(as_json: Json = False) -> None:
    """List the plugins that are installed: version, API version, state, and what each brings."""
    from mmzoo.registry.manager import plugin_manager
    from mmzoo.registry.subprocess_checks import plugin_row

    rows = [plugin_row(plugin) for plugin in plugin_manager().plugins]
    if as_json:
        print_json(rows)
    else:
        print_table(("plugin", "version", "API", "state", "brings"), plugin_rows(rows))


def plugin_rows(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of a table of plugins, from what `mmzoo.registry.subprocess_checks.plugin_row` says of each."""
    return [(row["plugin"], row["version"], row["api"], row["state"], _brings(row)) for row in rows]


def _brings(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return row["error"].splitlines()[0]
    words = {"language_model": "language model"}
    counted = [(len(names), words.get(kind, kind)) for kind, names in row["entries"].items()]
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for count, word in counted)


def _complete(names: Callable[[], list[str]]) -> Any:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _installed() -> list[str]:
    """The names of what is installed, and nothing of it is imported: it may be broken."""
    from mmzoo.registry.manager import installed_plugins

    return sorted({plugin.name for plugin in installed_plugins()})


@plugin.command()
def disable(
    name: Annotated[str, typer.Argument(help="As `mmzoo plugin list` names it.", autocompletion=_complete(_installed))],
) -> None:
    """Do not load a plugin any more, in no process of this user; nothing of it is uninstalled or imported."""
    from mmzoo.registry.manager import installed_plugins

    found = installed_plugins()
    if settings.normal(name) == "mmzoo":
        raise UnknownName("mmzoo's own plugins are disabled one at a time, such as mmzoo:timm (`mmzoo plugin list`)")
    if not any(settings.normal(name) in plugin.names for plugin in found):
        raise UnknownName(settings.unknown(name, {plugin.name for plugin in found}))
    said = "is disabled" if settings.disable(name) else "was disabled already"
    print(f"{settings.normal(name)} {said}; mmzoo plugin enable {settings.normal(name)} brings it back")


@plugin.command()
def enable(
    name: Annotated[str, typer.Argument(help="A disabled plugin.", autocompletion=_complete(settings.disabled))],
) -> None:
    """Load a plugin again that was disabled."""
    if settings.enable(name):
        print(f"{settings.normal(name)} is enabled")
        return
    if settings.normal(name) not in {settings.normal(known) for known in _installed()}:
        raise UnknownName(settings.unknown(name, [*settings.disabled(), *_installed()]))
    print(f"{settings.normal(name)} was not disabled")
