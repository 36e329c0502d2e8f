"""Provide the commands that work with a model: ``train``, ``evaluate``, ``generate``, ``predict``."""

from __future__ import annotations

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
from mmzoo.cli.root import app

if TYPE_CHECKING:
    from mmzoo.training.run import Run

SHOWN_SKIPPED = 10  # unreadable examples that are named


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
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out examples whose input cannot be read.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe on a data set. Ctrl-C saves a checkpoint; --resume continues from it."""
    from mmzoo.training.output import is_main_process
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
    if not is_main_process():
        return
    _print_skipped(run)
    if not run.finished:
        print(f"stopped at step {run.steps}; the checkpoint is {run.stopped_at}", file=sys.stderr)
        print("to continue: the same command with --resume", file=sys.stderr)
        raise typer.Exit(128 + run.signal)
    if as_json:
        print_json({"output": str(run.output), "steps": run.steps, "seconds": run.seconds, "history": run.history})
    else:
        loss = f", loss {run.history[-1]['loss']:.4f}" if run.history else ""
        print(f"trained {run.steps} steps in {run.seconds:.0f} s{loss}; the model is in {run.output}")
        print("measure it: ", shlex.join(["mmzoo", "evaluate", str(run.output), "--dataset", dataset, *_repeat_data(data)]))
        _warn_about_large_batch(run)


def _print_skipped(run: Run) -> None:
    """Print the first examples that could not be read."""
    if errors := dict(run.skipped):
        print(f"skipped {len(errors)} examples whose {run.model.modality} cannot be read:", file=sys.stderr)
        for name, message in list(errors.items())[:SHOWN_SKIPPED]:
            print(f"  {name}: {message}", file=sys.stderr)


def _repeat_data(data: list[str] | None) -> list[str]:
    """Return the options of the data set as words of a command."""
    return [word for pair in data or [] for word in ("--data", pair)]


def _warn_about_large_batch(run: Run) -> None:
    """Warn if one batch held all examples: a recipe's batch size suits its own data, and few steps learn little."""
    options = run.model.recipe.training
    examples = run.model.provenance.run["training"]["examples"]
    if examples and run.steps > 1 and options.max_steps is None and examples < options.batch_size:
        smaller = max(1, examples // 8)
        print(
            f"note: a batch of {options.batch_size} holds all {examples} examples, so each epoch was one step; "
            f"for more steps: --set training.batch_size={smaller}, or raise training.epochs",
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
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only the first LIMIT examples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch; changes speed and memory, not scores.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffled control and the bootstrap.")] = 0,
    controls: Annotated[bool, typer.Option(help="Also measure with images (or other inputs) shuffled and blanked.")] = True,
    samples: Annotated[
        int, typer.Option(min=0, max=20, help="Examples that are recorded with their predictions, for the card.")
    ] = 5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the best available.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Measure a model: each score with a 95% interval, beside the same with images (or other inputs) shuffled and blanked."""
    from mmzoo.evaluation.controls import CONTROLS
    from mmzoo.evaluation.run import evaluate as run_evaluation
    from mmzoo.modalities.reader import plural

    quiet()
    evaluation = run_evaluation(
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
    if evaluation.unrecorded:
        print(f"warning: {evaluation.unrecorded}", file=sys.stderr)
    if as_json:
        print_json(evaluation.to_dict())
        return
    print(evaluation)
    if evaluation.ignores_images:
        inputs = plural(evaluation.modality)
        print(
            f"warning: the model scores no better than with shuffled {inputs}, so it does not seem to use its {inputs}",
            file=sys.stderr,
        )


@app.command()
def generate(
    model: ModelFolder,
    files: Inputs = None,
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue; with several <image> (<audio>) in it, it is about all the files.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the tokenizer's chat template.")] = False,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show one file's text as it is written.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 32,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Temperature of sampling.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of sampling.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the best available.")] = None,
    as_json: Json = False,
) -> None:
    """Generate text for images, audio, or whatever else the model takes."""
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
    generated = loaded.generate(prompt=prompt, **options)
    together = isinstance(generated, str)
    names, texts = ([", ".join(files)], [generated]) if together else (files, generated)
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
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the best available.")] = None,
    as_json: Json = False,
) -> None:
    """Predict a label, an answer or a value for images, audio, or whatever else the model takes."""
    from mmzoo.models.load import load

    quiet()
    loaded = load(model, device=device_of(device))
    modality = loaded.modality
    inputs: dict[str, Any] = {modality: files or None}
    predictions = loaded.predict(text=text, **inputs)
    pairs = list(zip(files, predictions, strict=True)) if files else [(None, predictions)]
    if as_json:
        print_json([{modality: file, "label": p.label, "score": p.score, "value": p.value} for file, p in pairs])
        return
    for file, prediction in pairs:
        answer = prediction.label if prediction.value is None else f"{prediction.value:.4g}"
        score = "" if prediction.score is None else f" ({prediction.score:.1%})"
        print(f"{answer}{score}" if len(pairs) == 1 else f"{file}: {answer}{score}")
