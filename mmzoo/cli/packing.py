"""Define the commands ``mmzoo pack`` and ``mmzoo load``: one file with a model, for a machine without network."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from mmzoo.cli.arguments import Json, ModelFolder
from mmzoo.cli.printing import print_json, quiet
from mmzoo.cli.root import app


@app.command()
def pack(
    model: ModelFolder,
    output: Annotated[str, typer.Argument(help="The file to write, such as out.mmzoo.", metavar="OUT.mmzoo")],
    wheels: Annotated[
        str | None, typer.Option(metavar="DIR", help="Add the wheels in this folder of the plugins that the model needs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one file with a model, its backbones, tokenizer and processor, which loads without network and cache."""
    from mmzoo.publish import pack as run_pack
    from mmzoo.sharing.unpack import read_index

    quiet()
    path = run_pack(model, output, wheels=wheels)
    index = read_index(path)
    if as_json:
        print_json({"pack": str(path), **_contents(path, index)})
        return
    backbones = ", ".join(backbone.id for backbone in index.backbones) or "none"
    print(f"packed {model} into {path}, {path.stat().st_size / 1e6:.1f} MB; backbones: {backbones}; wheels: {len(index.wheels)}")
    print(f"load it:  mmzoo.load({str(path)!r})")


@app.command()
def load(
    pack: Annotated[str, typer.Argument(help="A file that `mmzoo pack` wrote.", metavar="PACK.mmzoo")],
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Unpack it there as a checkpoint folder.")] = None,
    wheels: Annotated[str | None, typer.Option(metavar="DIR", help="Write its wheels there; none is installed.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a pack and print its contents. Nothing in it is executed, and its plugins need not be installed."""
    from mmzoo.checkpoints.folder import read_manifest
    from mmzoo.sharing.unpack import extract_wheels, read_index, unpack, unpacked

    folder = unpack(pack, to) if to is not None else unpacked(pack)
    manifest = read_manifest(folder)
    extracted = [] if wheels is None else extract_wheels(pack, wheels)
    report: dict[str, Any] = {
        **_contents(Path(pack), read_index(Path(pack))),
        "recipe": manifest.recipe.get("name"),
        "parts": {kind: _use(manifest.recipe.get(kind)) for kind in ("encoder", "fusion", "language_model", "task")},
        "plugins": manifest.plugins,
        "packages": {b.id: b.commit for b in manifest.lock.values() if b.source == "package"},
        "folder": None if to is None else str(folder),
        "extracted": [str(path) for path in extracted],
    }
    if as_json:
        print_json(report)
    else:
        _print(pack, report)


def _print(pack: str, report: dict[str, Any]) -> None:
    """Print what `load` reports, for people."""
    print(f"{pack}: {report['recipe'] or 'unnamed'}, {report['bytes'] / 1e6:.1f} MB, complete and unaltered")
    for kind, use in report["parts"].items():
        print(f"  {kind.replace('_', ' ')}: {use}")
    for backbone in report["backbones"]:
        commit = backbone["commit"] or "none, from a folder"
        print(f"  backbone {backbone['id']}: commit {commit}, {len(backbone['files'])} files")
    for name, needed in [*report["plugins"].items(), *report["packages"].items()]:
        print(f"  needs {name} {needed}{'' if _installed(name) else ', which is not installed'}")
    for wheel in report["wheels"]:
        print(f"  wheel {wheel}")
    if report["folder"] is not None:
        print(f"unpacked into {report['folder']}; load it:  mmzoo.load({report['folder']!r})")
    for path in report["extracted"]:
        print(f"install it, if you trust it:  pip install {path}")


def _contents(path: Path, index: Any) -> dict[str, Any]:
    return {
        "bytes": path.expanduser().stat().st_size,
        "files": {name: facts.size for name, facts in index.files.items()},
        "backbones": [backbone.model_dump() for backbone in index.backbones],
        "wheels": index.wheels,
    }


def _use(part: Any) -> str:
    return str(part.get("use") if isinstance(part, dict) else part)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
