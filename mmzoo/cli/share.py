"""Define the commands that share a model: ``card``, ``push``, ``pull``, ``search``, ``verify``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mmzoo.cli.arguments import (
    Data,
    EncoderName,
    FusionName,
    Json,
    LanguageName,
    ModelFolder,
    Repository,
    TaskName,
    dataset_of,
    device_of,
)
from mmzoo.cli.printing import print_json, quiet
from mmzoo.cli.root import app
from mmzoo.common.sanitize import sanitize


@app.command()
def card(model: ModelFolder) -> None:
    """Print the card of a model, from its recorded runs."""
    from mmzoo.models.load import load

    quiet()
    print(load(model).card())


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a pack.", metavar="MODEL")],
    repo: Repository,
    private: Annotated[bool, typer.Option("--private", help="Readable to you alone.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch, made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Share all weights, not only the trained ones.")] = False,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="A name for the commit.")] = None,
    as_json: Json = False,
) -> None:
    """Share a model in one commit. Credentials: `hf auth login` or HF_TOKEN; of an object store, where its package looks."""
    from mmzoo.publish import push as run_push

    quiet()
    done = run_push(model, repo, private=private, revision=revision, create_pr=create_pr, full=full, tag=tag)
    if as_json:
        print_json(done.to_dict())
        return
    counts = f"{len(done.sent)} files sent, {len(done.unchanged)} unchanged"
    print(f"{done.repo}, {done.revision}: commit {done.commit[:12]}, {counts}\n{done.url}")
    print(f"load it:  mmzoo.load({done.repo!r}, revision={done.commit[:40]!r})")


@app.command()
def pull(
    repo: Repository,
    revision: Annotated[str | None, typer.Option(metavar="SHA|TAG", help="A branch, tag or commit; main if not given.")] = None,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="The folder to put it in; a cache if not given.")] = None,
    as_json: Json = False,
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
    at: Annotated[
        str | None, typer.Option("--at", metavar="URL", help="file:///folder, s3://bucket, ...; the Hub if not given.")
    ] = None,
    encoder: EncoderName = None,
    fusion: FusionName = None,
    language_model: LanguageName = None,
    task: TaskName = None,
    dataset: Annotated[str | None, typer.Option(help="Trained on this data set.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List shared models, by name, part or data set."""
    from mmzoo.sharing.locations import search as run_search

    asked = {"encoder": encoder, "fusion": fusion, "language_model": language_model, "task": task, "dataset": dataset}
    models = run_search(query, at=at, limit=limit, **{kind: name for kind, name in asked.items() if name})
    if as_json:
        print_json([model.to_dict() for model in models])
    for model in models if not as_json else []:
        tags = " ".join(tag.removeprefix("mmzoo-") for tag in model.tags if ":" in tag)
        print(sanitize(f"{model.repo}  {tags}"))
    if not models:
        print("no shared model matches", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def verify(
    model: ModelFolder,
    revision: Annotated[str | None, typer.Option(metavar="SHA|TAG", help="A branch, tag or commit of a repository.")] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Your copy of a data set that has no public name.")
    ] = None,
    data: Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N examples: faster, but no proof.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time; it changes speed and memory, not scores.")] = 128,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best available if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Measure again what a model claims, and print which scores are reproduced. Exit code 1 if not all are."""
    from mmzoo.errors import BadRecipe
    from mmzoo.evaluation.verify import verify as run_verification

    quiet()
    if data and dataset is None:
        raise BadRecipe("--data: gives options of a data set; name it with --dataset")
    copy = None if dataset is None else dataset_of(dataset, data)
    report = run_verification(
        model, revision=revision, dataset=copy, limit=limit, batch_size=batch_size, device=device_of(device)
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
    if not report.reproduced:
        raise typer.Exit(1)
