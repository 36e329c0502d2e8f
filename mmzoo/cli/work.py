"""Work with a model: ``train``, ``evaluate``, ``generate``, ``predict``."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmzoo.cli.arguments import (
    Data,
    DatasetName,
    EncoderName,
    FusionName,
    Inputs,
    Json,
    LanguageName,
    ModelFolder,
    RecipeName,
    Set,
    TaskName,
    changes_of,
    complete,
    dataset_of,
    device_of,
)
from mmzoo.cli.printing import print_json, quiet

if TYPE_CHECKING:
    from mmzoo.training.run import Run
from mmzoo.cli.root import app


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
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out examples whose input cannot be read.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe on a data set. Ctrl-C saves a checkpoint; --resume goes on."""
    from mmzoo.training.run import NAMED_BAD
    from mmzoo.training.run import train as run_training

    quiet()
    changes = changes_of(sets, encoder=encoder, fusion=fusion, language_model=language_model, task=task)
    run = run_training(
        recipe,
        dataset=dataset_of(dataset, data),
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
        print(f"skipped {len(names)} examples whose {run.model.modality} cannot be read:", file=sys.stderr)
        for name, message in list(names.items())[:NAMED_BAD]:
            print(f"  {name}: {message}", file=sys.stderr)
    if not run.finished:
        print(f"stopped at step {run.steps}; the checkpoint is {run.stopped_at}", file=sys.stderr)
        print("go on with the same command and --resume", file=sys.stderr)
        raise typer.Exit(128 + run.signal)
    if as_json:
        print_json({"output": str(run.output), "steps": run.steps, "seconds": run.seconds, "history": run.history})
    else:
        loss = f", loss {run.history[-1]['loss']:.4f}" if run.history else ""
        print(f"trained {run.steps} steps in {run.seconds:.0f} s{loss}; the model is in {run.output}")
        print("measure it: ", shlex.join(["mmzoo", "evaluate", str(run.output), "--dataset", dataset, *_data_again(data)]))
        _say_if_one_step_an_epoch(run)


def _data_again(data: list[str] | None) -> list[str]:
    """The options of the data set, as they were given."""
    return [word for pair in data or [] for word in ("--data", pair)]


def _say_if_one_step_an_epoch(run: Run) -> None:
    """A recipe's batch size is meant for its own data; with few examples, so few steps learn little."""
    options = run.model.recipe.training
    examples = run.model.provenance.run["training"]["examples"]
    if examples and run.steps > 1 and options.max_steps is None and examples < options.batch_size:
        smaller = max(1, examples // 8)
        print(
            f"note: a batch of {options.batch_size} holds all {examples} examples, so an epoch was one step; "
            f"for more: --set training.batch_size={smaller}, or more of training.epochs",
            file=sys.stderr,
        )


@app.command()
def evaluate(
    model: ModelFolder,
    dataset: DatasetName,
    split: Annotated[str | None, typer.Option(help="The split to measure on: test, or the only one, if not given.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric; may be repeated.", autocompletion=complete("metric"))
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many examples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time; changes speed and memory, not scores.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffled control and the bootstrap.")] = 0,
    controls: Annotated[bool, typer.Option(help="Also measure with images (or other inputs) shuffled and blanked.")] = True,
    samples: Annotated[
        int, typer.Option(min=0, max=20, help="So many examples are recorded with what the model says of them, for the card.")
    ] = 5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Measure a model: each score with a 95% interval, beside the same with images (or other inputs) shuffled and blanked."""
    from mmzoo.evaluation.controls import CONTROLS
    from mmzoo.evaluation.run import evaluate as run_evaluation
    from mmzoo.modalities.reader import plural

    quiet()
    found = run_evaluation(
        model,
        dataset=dataset_of(dataset, data),
        split=split,
        metrics=metric,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        controls=CONTROLS if controls else (),
        samples=samples,
        device=device_of(device),
    )
    if found.unrecorded:
        print(f"warning: {found.unrecorded}", file=sys.stderr)
    if as_json:
        print_json(found.to_dict())
        return
    print(found)
    if found.ignores_images:
        inputs = plural(found.modality)
        print(
            f"warning: it scores no better than with shuffled {inputs}; by this score it does not use its {inputs}",
            file=sys.stderr,
        )


@app.command()
def generate(
    model: ModelFolder,
    files: Inputs = None,
    prompt: Annotated[
        str | None, typer.Option(help="The text to go on from; with several <image> (<audio>) in it, it is about all the files.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the tokenizer's chat template.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show one file's text as it is written.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 32,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Of sampling.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of sampling.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Generate text for images, audio or what else the model takes."""
    import torch

    from mmzoo.models.load import load

    quiet()
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": sample or temperature is not None,
        "chat": chat,
        "stop": stop or (),
    }
    if temperature is not None:
        options["temperature"] = temperature
    files = files or []
    loaded = load(model, device=device_of(device))
    modality = loaded.modality
    torch.manual_seed(seed)
    if stream and not as_json:
        options[modality] = files[0] if len(files) == 1 else files or None
        for piece in loaded.stream(prompt=prompt, **options):
            print(piece, end="", flush=True)
        print()
        return
    options[modality] = files or None
    said = loaded.generate(prompt=prompt, **options)
    together = isinstance(said, str)
    names, texts = ([", ".join(files)], [said]) if together else (files, said)
    if as_json:
        shown: list[Any] = [files] if together else files
        print_json([{modality: file, "text": text} for file, text in zip(shown, texts, strict=True)])
    else:
        for file, text in zip(names, texts, strict=True):
            print(text if len(texts) == 1 else f"{file}: {text}")


@app.command()
def predict(
    model: ModelFolder,
    files: Inputs = None,
    text: Annotated[str | None, typer.Option(help="The question or text that goes with each file.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Predict a label, an answer or a value for images, audio or what else the model takes."""
    from mmzoo.models.load import load

    quiet()
    loaded = load(model, device=device_of(device))
    modality = loaded.modality
    given: dict[str, Any] = {modality: files or None}
    found = loaded.predict(text=text, **given)
    pairs = list(zip(files, found, strict=True)) if files else [(None, found)]
    if as_json:
        print_json([{modality: file, "label": p.label, "score": p.score, "value": p.value} for file, p in pairs])
        return
    for file, prediction in pairs:
        said = prediction.label if prediction.value is None else f"{prediction.value:.4g}"
        sure = "" if prediction.score is None else f" ({prediction.score:.1%})"
        print(f"{said}{sure}" if len(pairs) == 1 else f"{file}: {said}{sure}")
