"""Define the commands that exchange models: with other code (``import``, ``export``), over a hub, and as one file."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import typer

from mmzoo.cli import arguments as arg
from mmzoo.cli.printing import print_json, quiet
from mmzoo.cli.root import app
from mmzoo.common import processes
from mmzoo.common.sanitize import sanitize
from mmzoo.errors import BadRecipe, CheckpointError

Option = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the format (mmzoo show FORMAT); may be repeated."),
]
FormatName = Annotated[
    str, typer.Argument(help="A registered format, such as llava.", autocompletion=arg.complete("format"), metavar="FORMAT")
]


@app.command("import")
def import_(
    format: FormatName,
    source: Annotated[str, typer.Argument(help="A file, a folder, or a repository's id[@revision].", metavar="SOURCE")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="The folder to save the model in.")],
    encoder: arg.EncoderName = None,
    sets: Option = None,
) -> None:
    """Convert a checkpoint of other code into a model that computes the same."""
    from mmzoo.formats.format import import_model

    quiet()
    folder = Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):  # it may be a trained model
        raise CheckpointError(f"{folder}: is not empty; an import needs a new folder")
    model = import_model(format, source, **arg.changes_of(sets, encoder=encoder))
    model.save(output)
    print(f"imported {source}; the model is in {output}\n{model.summary()}")


@app.command()
def export(
    format: FormatName,
    model: arg.ModelFolder,
    folder: Annotated[str, typer.Argument(help="A new folder.", metavar="DIR")],
    sets: Option = None,
) -> None:
    """Write a model as a checkpoint of other code that generates the same tokens."""
    from mmzoo.formats.format import export_model

    quiet()
    print(f"exported {model}; the checkpoint is in {export_model(format, model, folder, **arg.changes_of(sets))}")


@app.command()
def card(model: arg.ModelFolder) -> None:
    """Print the card of a model, from its recorded runs."""
    from mmzoo.models.load import load

    quiet()
    print(load(model).card())


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a pack.", metavar="MODEL")],
    repo: arg.Repository,
    private: Annotated[bool, typer.Option("--private", help="Readable to you alone.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch, made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Share all weights, not only the trained ones.")] = False,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="A name for the commit.")] = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Share a model in one commit. Credentials: `hf auth login` or HF_TOKEN; of an object store, where its package looks."""
    from mmzoo.publish import push as run_push

    quiet()
    options: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr, "full": full, "tag": tag}
    done = run_push(model, repo, bases=arg.bases_of(bases), **options)
    if as_json:
        print_json(done.to_dict())
        return
    print(
        f"{done.repo}, {done.revision}: commit {done.commit[:12]}, {len(done.sent)} files sent, {len(done.unchanged)} unchanged"
    )
    print(f"{done.url}\nload it:  mmzoo.load({done.repo!r}, revision={done.commit[:40]!r})")


@app.command()
def pull(
    repo: arg.Repository,
    revision: Annotated[str | None, typer.Option(metavar="SHA|TAG", help="A branch, tag or commit; main if not given.")] = None,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="The folder to put it in; a cache if not given.")] = None,
    as_json: arg.Json = False,
) -> None:
    """Fetch a shared model and verify it. Nothing of it is run or loaded."""
    from mmzoo.sharing.locations import pull as run_pull

    folder = run_pull(repo, revision=revision, to=to)
    if as_json:
        print_json({"repo": repo, "revision": revision, "folder": str(folder)})
    else:
        print(folder)


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="A word of the name.", metavar="[QUERY]")] = None,
    at: Annotated[str | None, typer.Option(metavar="URL", help="file:///folder, s3://bucket, ...; the Hub if not given.")] = None,
    encoder: arg.EncoderName = None,
    fusion: arg.FusionName = None,
    language_model: arg.LanguageName = None,
    task: arg.TaskName = None,
    dataset: Annotated[str | None, typer.Option(help="Trained on this data set.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: arg.Json = False,
) -> None:
    """List shared models, by name, part or data set."""
    from mmzoo.sharing.locations import search as run_search

    asked = {"encoder": encoder, "fusion": fusion, "language_model": language_model, "task": task, "dataset": dataset}
    models = run_search(query, at=at, limit=limit, **{kind: name for kind, name in asked.items() if name})
    if as_json:
        print_json([model.to_dict() for model in models])
    else:
        for model in models:
            tags = " ".join(tag.removeprefix("mmzoo-") for tag in model.tags if ":" in tag)
            print(sanitize(f"{model.repo}  {tags}"))
    if not models:
        print("no shared model matches", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def verify(
    model: arg.ModelFolder,
    revision: Annotated[str | None, typer.Option(metavar="SHA|TAG", help="A branch, tag or commit of a repository.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="DATASET", help="Your copy of a data set without a public name.")] = None,
    data: arg.Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N examples: faster, but no proof.")] = None,
    batch_size: arg.BatchSize = 128,
    device: arg.Device = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Measure again what a model claims, and print which scores are reproduced. Exit code 1 if not all are."""
    from mmzoo.evaluation.verify import verify as run_verification

    quiet()
    if data and dataset is None:
        raise BadRecipe("--data: gives options of a data set; name it with --dataset")
    with processes.together():
        copy = None if dataset is None else arg.dataset_of(dataset, data)
        options: dict[str, Any] = {"dataset": copy, "limit": limit, "batch_size": batch_size, "device": arg.device_of(device)}
        report = run_verification(model, revision=revision, bases=arg.bases_of(bases), **options)
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
    if not report.reproduced:
        raise typer.Exit(1)


@app.command()
def pack(
    model: arg.ModelFolder,
    output: Annotated[str, typer.Argument(help="The file to write, such as out.mmzoo.", metavar="OUT.mmzoo")],
    wheels: Annotated[str | None, typer.Option(metavar="DIR", help="Add the needed plugins' wheels from this folder.")] = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Write one file with a model, its backbones, tokenizer and processor, which loads without network and cache."""
    from mmzoo.models.load import load as load_model
    from mmzoo.publish import pack as run_pack
    from mmzoo.sharing.unpack import read_index

    quiet()
    replaced = arg.bases_of(bases)
    path = run_pack(load_model(model, bases=replaced) if replaced else model, output, wheels=wheels)
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
    as_json: arg.Json = False,
) -> None:
    """Verify a pack and print its contents. Nothing in it is executed, and its plugins need not be installed."""
    from mmzoo.checkpoints.folder import read_manifest
    from mmzoo.recipes.schema import Recipe
    from mmzoo.sharing.unpack import extract_wheels, read_index, unpack, unpacked

    folder = unpack(pack, to) if to is not None else unpacked(pack)
    manifest = read_manifest(folder)
    recipe = Recipe.of(manifest.recipe, str(folder))
    extracted = [] if wheels is None else extract_wheels(pack, wheels)
    report: dict[str, Any] = {
        **_contents(Path(pack), read_index(Path(pack))),
        "recipe": manifest.recipe.get("name"),
        "parts": {recipe.label(key): part.use for key, part in recipe.parts().items()},
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
        print(f"  needs {name} {needed}{'' if any(distributions(name=name)) else ', which is not installed'}")
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
