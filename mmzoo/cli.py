"""The command line: parse, call, print; nothing else.

Exit codes: 0 well, 1 the answer is no, 2 wrong input (one message on stderr), 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mmzoo import catalogue
from mmzoo.errors import DoesNotFit, MmzooError, PluginBroken
from mmzoo.plugins import host
from mmzoo.registry import KINDS, Entry

# By its version, typer uses click or a copy of its own, with exceptions of its own.
_UsageError: Any = typer.BadParameter.__base__


class _Group(TyperGroup):
    """Our commands and those that plugins bring, which are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(entry.name for entry in catalogue.entries("command"))]

    def get_command(self, ctx: Any, name: str) -> Any:
        if (own := super().get_command(ctx, name)) is not None:
            return own
        for entry in catalogue.entries("command"):
            if entry.name == name:
                single = typer.Typer(add_completion=False)
                single.command(name, help=entry.summary)(_command(entry))
                return typer.main.get_command(single)
        return None


def _command(entry: Entry) -> Any:
    """What a plugin's command runs; of a broken one, its error, so that ``mmzoo --help`` lists the rest."""
    try:
        return entry.load()
    except PluginBroken as error:
        message = str(error)

        def broken() -> None:
            raise PluginBroken(message)

        return broken


app = typer.Typer(
    name="mmzoo",
    cls=_Group,
    no_args_is_help=True,
    help="Any encoder, any fusion, any language model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; every error of the package becomes one message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(standalone_mode=False)
    except MmzooError as error:
        _fail(str(error))
        code = 2
    except _UsageError as error:
        error.show()
        code = 2
    except _UsageError.__base__ as error:
        _fail(error.format_message())
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped")
        code = 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that the interpreter's last flush finds no pipe
        code = 1
    except OSError as error:  # such as a full disk where the output goes
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        _fail(str(error))
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def _warn_of_failures() -> None:
    for failure in host().failures:
        print(f"warning: plugin '{failure.plugin}' is not in use: {failure.error.splitlines()[0]}", file=sys.stderr)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def _quiet() -> None:
    """Let the libraries underneath speak only of errors; what a user needs to know comes from here."""
    import logging
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|accelerate|transformers|timm|open_clip")
    warnings.filterwarnings("ignore", category=FutureWarning)


# Completion


def _complete(kind: str) -> Any:
    def names(incomplete: str) -> list[str]:
        return [entry.name for entry in catalogue.entries(kind) if entry.name.startswith(incomplete)]

    return names


def _complete_kind(incomplete: str) -> list[str]:
    return [kind.replace("_", "-") for kind in KINDS if kind.startswith(incomplete.replace("-", "_"))]


def _complete_any(incomplete: str) -> list[str]:
    return sorted({entry.name for entry in catalogue.entries() if entry.name.startswith(incomplete)})


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. train.epochs=3; may be repeated.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="KEY=VALUE", help="An option of the data set, e.g. text_column=question; may be repeated."),
]
DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="A registered name, a folder or file, or an id such as org/name.",
        autocompletion=_complete("dataset"),
        metavar="DATASET",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Argument(help="A registered recipe or a YAML or JSON file.", autocompletion=_complete("recipe"), metavar="RECIPE"),
]
EncoderName = Annotated[str | None, typer.Option("--encoder", help="This encoder.", autocompletion=_complete("encoder"))]
FusionName = Annotated[str | None, typer.Option("--fusion", help="This fusion.", autocompletion=_complete("fusion"))]
LanguageName = Annotated[
    str | None, typer.Option("--language-model", help="This language model.", autocompletion=_complete("language_model"))
]
TaskName = Annotated[str | None, typer.Option("--task", help="This task.", autocompletion=_complete("task"))]
Images = Annotated[
    list[str] | None, typer.Argument(help="Image files; none where the model looks at nothing.", metavar="[IMAGE]...")
]
ModelFolder = Annotated[
    str,
    typer.Argument(help="A checkpoint folder, or a repository: me/name[@REVISION] or file:///folder/me/name.", metavar="MODEL"),
]
Repository = Annotated[str, typer.Argument(help="me/name, or file:///folder/me/name.", metavar="REPOSITORY")]


def _changes(sets: list[str] | None, **parts: str | None) -> dict[str, Any]:
    from mmzoo.recipe import assignments, merge

    return merge({kind: name for kind, name in parts.items() if name is not None}, assignments(sets or []))


def _dataset(name: str, data: list[str] | None) -> Any:
    from mmzoo.data import dataset_part
    from mmzoo.recipe import assignments

    return dataset_part(name, assignments(data or [], "--data"))


# Commands


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help="A kind, such as encoder, or a wildcard.", autocompletion=_complete_kind, metavar="[KIND]"),
    ] = None,
    pattern: Annotated[str | None, typer.Argument(help="A wildcard over names, such as 'clip*'.", metavar="[PATTERN]")] = None,
    as_json: Json = False,
) -> None:
    """List what can be chosen: kind, name, summary, plugin, licence, source."""
    if kind is not None and pattern is None and any(c in kind for c in "*?["):
        kind, pattern = None, kind
    found = catalogue.entries(kind, pattern)
    if as_json:
        _print_json([entry.row() for entry in found])
    elif found:
        _table(found)
    _warn_of_failures()
    if not found:
        print("nothing matches; `mmzoo list` shows everything", file=sys.stderr)
        raise typer.Exit(1)


def _table(found: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Outside a terminal nothing is cut: a pipe has no width.
    console = Console() if sys.stdout.isatty() else Console(width=400)
    wide = console.width >= 180
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary", ratio=1 if sys.stdout.isatty() else None)
    for column in ("plugin", "licence", *(["source"] if wide else [])):
        table.add_column(column, no_wrap=True)
    for entry in found:
        cells = [entry.kind.replace("_", " "), entry.name, entry.summary, entry.plugin, entry.license]
        table.add_row(*(Text(cell) for cell in [*cells, *([entry.source] if wide else [])]))  # Text: brackets are no markup
    console.print(table)
    if not wide:
        console.print("[dim]mmzoo show NAME has the source and the options of an entry[/dim]")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of an entry of any kind.", autocompletion=_complete_any)],
    as_json: Json = False,
) -> None:
    """Show an entry: what it is, its options with types and defaults, its paper, and how it is used."""
    details = [_details(entry) for entry in catalogue.find(name.partition(":")[0])]
    if as_json:
        _print_json(details)
        return
    for i, detail in enumerate(details):
        if i:
            print()
        print(f"{detail['name']} ({detail['kind'].replace('_', ' ')}, from {detail['plugin']} {detail['version']})")
        print(f"  {detail['summary']}")
        print(f"  source:  {detail['source'] or 'not given'}")
        print(f"  licence: {detail['license']}")
        if "recipe" in detail:
            print("  recipe:")
            for key, value in detail["recipe"].items():
                print(f"    {key}: {json.dumps(value, ensure_ascii=False)}")
        if detail["options"]:
            print("  options:")
            for option in detail["options"]:
                default = option["default"] if isinstance(option["default"], str) else json.dumps(option["default"])
                print(f"    {option['name']}: {option['type']} = {default or repr('')}")
                if option["description"]:
                    print(f"        {option['description']}")
        print("  use:")
        for line in detail["use"]:
            print(f"    {line}")


def _details(entry: Entry) -> dict[str, Any]:
    detail: dict[str, Any] = {**entry.row(), "version": entry.version, "modality": entry.modality, "options": []}
    if entry.kind == "recipe":
        detail["recipe"] = dict(entry.load())
    elif entry.kind != "command":
        detail["options"] = catalogue.options(entry)
    shown = f"{entry.name}:VARIANT" if entry.variant is None and _needs_variant(detail["options"]) else entry.name
    detail["use"] = {
        "recipe": [
            f'mmzoo.build("{shown}")',
            f"mmzoo check {shown}",
            f"mmzoo train {shown} --dataset DATASET --output DIR",
        ],
        "dataset": [f"mmzoo train RECIPE --dataset {shown} --output DIR"],
        "metric": [f"mmzoo evaluate MODEL --dataset DATASET --metric {shown}"],
        "format": [f"mmzoo {way} {shown} {_WAYS[way]}" for way in entry.load().ways()] if entry.kind == "format" else [],
        "command": [f"mmzoo {shown} --help"],
    }.get(
        entry.kind,
        [f'mmzoo.build("RECIPE", {entry.kind}="{shown}")', f"mmzoo check RECIPE --{entry.kind.replace('_', '-')} {shown}"],
    )
    return detail


_WAYS = {"import": "SOURCE --output DIR", "export": "MODEL DIR"}


def _needs_variant(options: list[dict[str, Any]]) -> bool:
    return any(option["name"] == "variant" for option in options)


@app.command()
def check(
    recipe: RecipeName = None,
    encoder: EncoderName = None,
    fusion: FusionName = None,
    language_model: LanguageName = None,
    task: TaskName = None,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Check that the parts fit, from configurations alone, and show dims, tokens, parameters, memory and licences."""
    from mmzoo.build import check as check_fit

    _quiet()
    changes = _changes(sets, encoder=encoder, fusion=fusion, language_model=language_model, task=task)
    try:
        summary = check_fit(recipe, **changes)
    except DoesNotFit as error:
        if as_json:
            _print_json({"fits": False, "reason": str(error)})
        else:
            _fail(str(error))
        raise typer.Exit(1) from None
    if as_json:
        _print_json(summary.to_dict())
    else:
        print(summary)


@app.command()
def train(
    recipe: RecipeName = None,
    *,
    dataset: DatasetName,
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="The folder that the model is saved in.")],
    split: Annotated[str, typer.Option(help="The split to train on.")] = "train",
    encoder: EncoderName = None,
    fusion: FusionName = None,
    language_model: LanguageName = None,
    task: TaskName = None,
    sets: Set = None,
    data: Data = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out examples whose image cannot be read.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe on a data set. Ctrl-C saves a checkpoint; --resume goes on."""
    from mmzoo.train import NAMED_BAD
    from mmzoo.train import train as run_training

    _quiet()
    changes = _changes(sets, encoder=encoder, fusion=fusion, language_model=language_model, task=task)
    run = run_training(
        recipe,
        dataset=_dataset(dataset, data),
        output=output,
        split=split,
        resume=resume,
        overwrite=overwrite,
        skip_bad=skip_bad,
        **changes,
    )
    if int(os.environ.get("RANK", "0")):
        return
    if run.skipped:
        names = dict(run.skipped)
        print(f"skipped {len(names)} examples whose image cannot be read:", file=sys.stderr)
        for name, message in list(names.items())[:NAMED_BAD]:
            print(f"  {name}: {message}", file=sys.stderr)
    if not run.finished:
        print(f"stopped at step {run.steps}; the checkpoint is {run.stopped_at}", file=sys.stderr)
        print("go on with the same command and --resume", file=sys.stderr)
        raise typer.Exit(128 + run.signal)
    if as_json:
        _print_json({"output": str(run.output), "steps": run.steps, "seconds": run.seconds, "history": run.history})
    else:
        loss = f", loss {run.history[-1]['loss']:.4f}" if run.history else ""
        print(f"trained {run.steps} steps in {run.seconds:.0f} s{loss}; the model is in {run.output}")
        print(f"measure it:  mmzoo evaluate {run.output} --dataset {dataset}")


@app.command()
def evaluate(
    model: ModelFolder,
    dataset: DatasetName,
    split: Annotated[str | None, typer.Option(help="The split to measure on: test, or the only one, if not given.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric; may be repeated.", autocompletion=_complete("metric"))
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time; changes speed and memory, not scores.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffled control and the bootstrap.")] = 0,
    controls: Annotated[bool, typer.Option(help="Also measure with images shuffled and blanked.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Measure a model: each score with a 95% interval, beside the same model with images shuffled and blanked."""
    from mmzoo.evaluate import CONTROLS
    from mmzoo.evaluate import evaluate as run_evaluation

    _quiet()
    found = run_evaluation(
        model,
        dataset=_dataset(dataset, data),
        split=split,
        metrics=metric,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        controls=CONTROLS if controls else (),
        device=_device(device),
    )
    if found.unrecorded:
        print(f"warning: {found.unrecorded}", file=sys.stderr)
    if as_json:
        _print_json(found.to_dict())
        return
    print(found)
    if found.ignores_images:
        print("warning: it scores no better than with shuffled images; it does not use its images", file=sys.stderr)


def _device(name: str | None) -> str:
    import torch

    from mmzoo.errors import BadRecipe

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("computes nothing")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadRecipe(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


@app.command()
def generate(
    model: ModelFolder,
    images: Images = None,
    prompt: Annotated[
        str | None, typer.Option(help="The text to go on from; with several <image> in it, it is about all the images.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the tokenizer's chat template.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show one image's text as it is written.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 32,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Of sampling.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of sampling.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Generate text for images."""
    import torch

    from mmzoo.build import load

    _quiet()
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": sample or temperature is not None,
        "chat": chat,
        "stop": stop or (),
    }
    if temperature is not None:
        options["temperature"] = temperature
    images = images or []
    loaded = load(model, device=_device(device))
    torch.manual_seed(seed)
    if stream and not as_json:
        for piece in loaded.stream(image=images[0] if len(images) == 1 else images or None, prompt=prompt, **options):
            print(piece, end="", flush=True)
        print()
        return
    said = loaded.generate(image=images or None, prompt=prompt, **options)
    together = isinstance(said, str)
    names, texts = ([", ".join(images)], [said]) if together else (images, said)
    if as_json:
        shown: list[Any] = [images] if together else images
        _print_json([{"image": image, "text": text} for image, text in zip(shown, texts, strict=True)])
    else:
        for image, text in zip(names, texts, strict=True):
            print(text if len(texts) == 1 else f"{image}: {text}")


@app.command()
def predict(
    model: ModelFolder,
    images: Images = None,
    text: Annotated[str | None, typer.Option(help="The question or text that goes with each image.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Predict a label, an answer or a value for images."""
    from mmzoo.build import load

    _quiet()
    found = load(model, device=_device(device)).predict(image=images or None, text=text)
    pairs = list(zip(images, found, strict=True)) if images else [(None, found)]
    if as_json:
        _print_json([{"image": image, "label": p.label, "score": p.score, "value": p.value} for image, p in pairs])
        return
    for image, prediction in pairs:
        said = prediction.label if prediction.value is None else f"{prediction.value:.4g}"
        sure = "" if prediction.score is None else f" ({prediction.score:.1%})"
        print(f"{said}{sure}" if len(pairs) == 1 else f"{image}: {said}{sure}")


Option = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the format (mmzoo show FORMAT); may be repeated."),
]
FormatName = Annotated[
    str, typer.Argument(help="A registered format, such as llava.", autocompletion=_complete("format"), metavar="FORMAT")
]


@app.command("import")
def import_(
    format: FormatName,
    source: Annotated[str, typer.Argument(help="A file, a folder, or a repository's id[@revision].", metavar="SOURCE")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="The folder that the model is saved in.")],
    encoder: EncoderName = None,
    sets: Option = None,
) -> None:
    """Make a model from a checkpoint of other code; it computes the same."""
    from mmzoo.formats import import_model

    _quiet()
    model = import_model(format, source, **_changes(sets, encoder=encoder))
    model.save(output)
    print(f"imported {source}; the model is in {output}\n{model.summary()}")


@app.command()
def export(
    format: FormatName,
    model: ModelFolder,
    folder: Annotated[str, typer.Argument(help="A new folder.", metavar="DIR")],
    sets: Option = None,
) -> None:
    """Write a model as a checkpoint of other code, which gives the same tokens."""
    from mmzoo.formats import export_model

    _quiet()
    print(f"exported {model}; the checkpoint is in {export_model(format, model, folder, **_changes(sets))}")


@app.command()
def card(model: ModelFolder) -> None:
    """Print the card of a model, from its recorded runs."""
    from mmzoo.build import load

    _quiet()
    print(load(model).card())


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="A checkpoint folder.", metavar="MODEL")],
    repo: Repository,
    private: Annotated[bool, typer.Option("--private", help="Readable to you alone.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch, made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Share every weight, not those alone that were trained.")] = False,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Name the commit so.")] = None,
    as_json: Json = False,
) -> None:
    """Share a model, in one commit. The token is that of `hf auth login` or HF_TOKEN."""
    from mmzoo.hub import push as run_push

    _quiet()
    done = run_push(model, repo, private=private, revision=revision, create_pr=create_pr, full=full, tag=tag)
    if as_json:
        _print_json(done.to_dict())
        return
    what = f"{len(done.sent)} files sent, {len(done.unchanged)} unchanged"
    print(f"{done.repo}, {done.revision}: commit {done.commit[:12]}, {what}\n{done.url}")
    print(f"load it:  mmzoo.load({done.repo!r}, revision={done.commit[:40]!r})")


@app.command()
def pull(
    repo: Repository,
    revision: Annotated[str | None, typer.Option(metavar="SHA|TAG", help="A branch, tag or commit; main if not given.")] = None,
    to: Annotated[str | None, typer.Option(metavar="DIR", help="Put it there; a cache if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a shared model and verify it; nothing of it is run or loaded."""
    from mmzoo.remotes import pull as run_pull

    folder = run_pull(repo, revision=revision, to=to)
    if as_json:
        _print_json({"repo": repo, "revision": revision, "folder": str(folder)})
    else:
        print(folder)


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="A word of the name.", metavar="[QUERY]")] = None,
    at: Annotated[str | None, typer.Option("--hub", metavar="URL", help="file:///folder; the Hub if not given.")] = None,
    encoder: EncoderName = None,
    fusion: FusionName = None,
    language_model: LanguageName = None,
    task: TaskName = None,
    dataset: Annotated[str | None, typer.Option(help="Trained on this data set.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List shared models, by name, part or data set."""
    from mmzoo.remotes import search as run_search

    asked = {"encoder": encoder, "fusion": fusion, "language_model": language_model, "task": task, "dataset": dataset}
    found = run_search(query, at=at, limit=limit, **{kind: name for kind, name in asked.items() if name})
    if as_json:
        _print_json([model.to_dict() for model in found])
    for model in found if not as_json else []:
        print(f"{model.repo}  {' '.join(tag.removeprefix('mmzoo-') for tag in model.tags if ':' in tag)}")
    if not found:
        print("nothing is shared under that", file=sys.stderr)
        raise typer.Exit(1)
