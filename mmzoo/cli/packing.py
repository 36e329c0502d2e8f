"""One file for a machine without network: ``pack``, ``load``."""

from __future__ import annotations

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
        str | None, typer.Option(metavar="DIR", help="Add the wheels of the plugins that it needs, which are in this folder.")
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
    backbones = ", ".join(f"{b.id}" for b in index.backbones) or "none"
    print(f"packed {model} into {path}, {path.stat().st_size / 1e6:.1f} MB; backbones: {backbones}; wheels: {len(index.wheels)}")
    print(f"load it:  mmzoo.load({str(path)!r})")


@app.command()
def load(
    pack: Annotated[str, typer.Argument(help="A file that `mmzoo pack` wrote.", metavar="PACK.mmzoo")],
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Unpack it there as a checkpoint folder.")] = None,
    wheels: Annotated[str | None, typer.Option(metavar="DIR", help="Write its wheels there; none is installed.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a pack and say what it is; nothing of it is run, and its plugins need not be installed."""
    from mmzoo.checkpoints.folder import read_manifest
    from mmzoo.sharing.unpack import extract_wheels, read_index, unpack, unpacked

    folder = unpack(pack, to) if to is not None else unpacked(pack)
    manifest = read_manifest(folder)
    extracted = [] if wheels is None else extract_wheels(pack, wheels)
    said: dict[str, Any] = {
        **_contents(Path(pack), read_index(Path(pack))),
        "recipe": manifest.recipe.get("name"),
        "parts": {kind: _use(manifest.recipe.get(kind)) for kind in ("encoder", "fusion", "language_model", "task")},
        "plugins": manifest.plugins,
        "packages": {b.id: b.commit for b in manifest.lock.values() if b.source == "package"},
        "folder": None if to is None else str(folder),
        "extracted": [str(path) for path in extracted],
    }
    if as_json:
        print_json(said)
        return
    print(f"{pack}: {said['recipe'] or 'unnamed'}, {said['bytes'] / 1e6:.1f} MB, whole and unaltered")
    for kind, use in said["parts"].items():
        print(f"  {kind.replace('_', ' ')}: {use}")
    for backbone in said["backbones"]:
        print(
            f"  backbone {backbone['id']}: commit {backbone['commit'] or 'none, from a folder'}, {len(backbone['files'])} files"
        )
    for what in ("plugins", "packages"):
        for name, version in said[what].items():
            print(f"  needs {name} {version}" + _missing(name))
    for wheel in said["wheels"]:
        print(f"  wheel {wheel}")
    if to is not None:
        print(f"unpacked into {folder}; load it:  mmzoo.load({str(folder)!r})")
    for path in extracted:
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


def _missing(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(name)
    except PackageNotFoundError:
        return ", which is not installed"
    return ""
