"""Provide the commands that work with a model: ``train``, ``evaluate``, ``generate``, ``predict``."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmzoo.checkpoints.screening import CARD
from mmzoo.cli import arguments as arg
from mmzoo.cli.printing import print_json, quiet
from mmzoo.cli.root import app
from mmzoo.common import processes
from mmzoo.common.sanitize import sanitize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmzoo.evaluation.run import Evaluation
    from mmzoo.training.run import Run
    from mmzoo.training.seeds import SeedRuns

SHOWN_SKIPPED = 10  # examples that are named


@app.command()
def train(
    recipe: arg.RecipeName = None,
    *,
    dataset: arg.DatasetNames,
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="The folder that the model is saved in.")],
    split: Annotated[str, typer.Option(help="The split to train on.")] = "train",
    validation: arg.Validation = None,
    encoder: arg.EncoderName = None,
    fusion: arg.FusionName = None,
    language_model: arg.LanguageName = None,
    task: arg.TaskName = None,
    sets: arg.Set = None,
    data: arg.Data = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N|SEED,SEED,...", help="Train a model for each of so many seeds, or of these; one card sums them up."
        ),
    ] = None,
    skip_bad: arg.SkipBad = False,
    as_json: arg.Json = False,
) -> None:
    """Train a recipe on a data set. Ctrl-C saves a checkpoint; --resume continues from it."""
    import mmzoo

    quiet()
    arguments: dict[str, Any] = {
        **arg.datasets_of(dataset, data),
        "output": output,
        "split": split,
        "validation": arg.validation_of(validation),
        "resume": resume,
        "overwrite": overwrite,
        "skip_bad": skip_bad,
        **arg.changes_of(sets, encoder=encoder, fusion=fusion, language_model=language_model, task=task),
    }
    measure = arg.measuring(dataset, data)
    if seeds is not None:
        numbers = arg.seeds_of(seeds)
        several = mmzoo.train_seeds(recipe, seeds=numbers, after_each=lambda _, run: _print_notes(run), **arguments)
        _report_seeds(several, measure, as_json=as_json)
        return
    run = mmzoo.train(recipe, **arguments)
    _print_notes(run)
    if as_json:
        facts = {"output": str(run.output), "steps": run.steps, "seconds": run.seconds, "history": run.history}
        print_json({**facts, **({"validation": run.validation} if run.validation else {})})
    else:
        loss = f", loss {run.history[-1]['loss']:.4f}" if run.history else ""
        print(f"trained {run.steps} steps in {run.seconds:.0f} s{loss}; the model is in {run.output}")
        if run.validation:
            print(_describe_best(run.validation))
        print("measure it: ", shlex.join(["mmzoo", "evaluate", str(run.output), *measure]))
        _warn_about_large_batch(run)


def _describe_best(validation: dict[str, Any]) -> str:
    """Return which step the model is from."""
    best, metric = validation["best"], validation["metric"]
    stopped = f" (stopped early, after {validation['history'][-1]['step']})" if validation["stopped_early"] else ""
    if best is None:
        return f"no validation has a {metric} that is a number, so the model is that of the last step"
    return (
        f"the best is step {best['step']}{stopped}: {metric} {best['score']:.4f} on {validation['examples']} validation examples"
    )


def _print_notes(run: Run) -> None:
    """Print what was left out of a training.

    Raises:
        typer.Exit: a signal stopped it; how it is continued is printed.
    """
    from mmzoo.evaluation.scoring import describe_outside_labels

    _print_skipped(len(run.skipped), run.skipped)
    for task, targets in run.outside_labels.items():
        print(f"note: {describe_outside_labels(task, targets)}; the loss leaves these targets out", file=sys.stderr)
    if run.validation and (count := run.validation.get("deduplicated")):
        print(f"note: {count} training examples were left out, which are among the validation examples", file=sys.stderr)
    for task, count in (run.validation or {}).get("outside_labels", {}).items():
        print(
            f"note: {count} validation examples have a target outside the labels of '{task}': counted as wrong", file=sys.stderr
        )
    if not run.finished:
        print(f"stopped at step {run.steps}; the checkpoint is {run.stopped_at}", file=sys.stderr)
        print("to continue: the same command with --resume", file=sys.stderr)
        raise typer.Exit(128 + run.signal)


def _report_seeds(several: SeedRuns, measure: Sequence[str], *, as_json: bool) -> None:
    """Print what several seeds have in common."""
    summary = several.summary
    if as_json:
        print_json({"output": str(several.output), **summary.to_dict()})
        return
    print(summary.tables()[0])
    print(f"trained {len(summary.runs)} seeds; their card is {several.output / CARD}")
    print("measure them: ", shlex.join(["mmzoo", "evaluate", str(several.output), *measure]))


def _print_skipped(count: int, skipped: Sequence[tuple[str, str]]) -> None:
    """Print how many examples were skipped, and the first of them."""
    if count:
        print(f"skipped {count} example{'s' * (count > 1)}:", file=sys.stderr)
        for name, message in skipped[:SHOWN_SKIPPED]:
            print(sanitize(f"  {name}: {message}"), file=sys.stderr)


def _warn_about_large_batch(run: Run) -> None:
    """Warn if one batch held all examples: a recipe's batch size suits its own data, and few steps learn little."""
    options = run.model.recipe.training
    examples = run.model.provenance.run["training"]["examples"]
    if examples and run.steps > 1 and options.max_steps is None and examples < options.batch_size:
        advice = f"for more steps: --set training.batch_size={max(1, examples // 8)}, or raise training.epochs"
        problem = f"a batch of {options.batch_size} holds all {examples} examples, so each epoch was one step"
        print(f"note: {problem}; {advice}", file=sys.stderr)


@app.command()
def evaluate(
    model: arg.ModelFolder,
    dataset: arg.DatasetName,
    split: Annotated[str | None, typer.Option(help="The split to measure on: test, or the only one, if not given.")] = None,
    metric: arg.Metrics = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only the first LIMIT examples.")] = None,
    batch_size: arg.BatchSize = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffled control and the bootstrap.")] = 0,
    controls: Annotated[bool, typer.Option(help="Also measure with images (or other inputs) shuffled and blanked.")] = True,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Only this control, e.g. shuffled:audio, missing:image or blanked:text; may be repeated."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, max=20, help="Examples whose predictions are recorded, for the card.")] = 5,
    skip_bad: arg.SkipBad = False,
    device: arg.Device = None,
    data: arg.Data = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Measure a model: each score with a 95% interval, beside the same with images (or other inputs) shuffled and blanked."""
    import mmzoo
    from mmzoo.checkpoints.folder import SEEDS

    quiet()
    options: dict[str, Any] = {
        "dataset": next(iter(arg.datasets_of([dataset], data).values())),
        "split": split,
        "metrics": metric,
        "limit": limit,
        "batch_size": batch_size,
        "seed": seed,
        "controls": control or (None if controls else ()),
        "samples": samples,
        "skip_bad": skip_bad,
        "device": arg.device_of(device),
        "bases": arg.bases_of(bases),
    }
    if os.path.isfile(os.path.join(os.path.expanduser(model), SEEDS)):
        table, evaluations = mmzoo.evaluate_seeds(model, **options)
        _print_problems({f"seed {number}: ": evaluation for number, evaluation in evaluations.items()})
        if as_json:
            by_seed = {number: evaluation.to_dict() for number, evaluation in evaluations.items()}
            print_json({**table.to_dict(), "seeds": by_seed})
        else:
            print(table)
        return
    evaluation = mmzoo.evaluate(model, **options)
    _print_problems({"": evaluation})
    print_json(evaluation.to_dict()) if as_json else print(evaluation)


def _print_problems(evaluations: Mapping[str, Evaluation]) -> None:
    """Print to stderr what was skipped or not recorded, and which inputs seem to be ignored."""
    for name, evaluation in evaluations.items():
        _print_skipped(evaluation.skipped, [(example["id"], example["error"]) for example in evaluation.skipped_examples])
        if evaluation.unrecorded:
            print(f"warning: {name}{evaluation.unrecorded}", file=sys.stderr)
        for problem in evaluation.ignored:
            print(f"warning: {name}{problem}, so it does not seem to use them", file=sys.stderr)


@app.command()
def generate(
    model: arg.ModelFolder,
    files: arg.Inputs = None,
    image: arg.Images = None,
    audio: arg.Clips = None,
    video: arg.Videos = None,
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
    device: arg.Device = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Generate text for images, audio, or whatever else the model takes."""
    import torch

    from mmzoo.models.load import load

    quiet()
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "chat": chat, "stop": stop or ()}
    options["do_sample"] = sample or temperature is not None
    if temperature is not None:
        options["temperature"] = temperature
    loaded = load(model, device=arg.device_of(device), bases=arg.bases_of(bases))
    inputs = arg.inputs_of(loaded.modality, files, image=image, audio=audio, video=video)
    torch.manual_seed(seed)
    if stream and not as_json:
        options |= {modality: given[0] if len(given) == 1 else given for modality, given in inputs.items()}
        for piece in loaded.stream(prompt=prompt, **options):
            print(piece, end="", flush=True)
        print()
        return
    generated = loaded.generate(prompt=prompt, **inputs, **options)
    if isinstance(generated, str):
        print_json([{**inputs, "text": generated}]) if as_json else print(generated)
        return
    rows = arg.rows_of(inputs, len(generated))
    if as_json:
        print_json([{**row, "text": text} for row, text in zip(rows, generated, strict=True)])
    else:
        for row, text in zip(rows, generated, strict=True):
            print(text if len(rows) == 1 else f"{next(iter(row.values()))}: {text}")


@app.command()
def predict(
    model: arg.ModelFolder,
    files: arg.Inputs = None,
    image: arg.Images = None,
    audio: arg.Clips = None,
    video: arg.Videos = None,
    text: Annotated[str | None, typer.Option(help="The question or text that goes with each file.")] = None,
    task: Annotated[str | None, typer.Option(help="Predict only with this task of a model of several.")] = None,
    skip_bad: arg.SkipBad = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Also the probability of each text that is written; takes one more pass.")
    ] = False,
    device: arg.Device = None,
    bases: arg.Bases = None,
    as_json: arg.Json = False,
) -> None:
    """Predict a label, an answer or a value for images, audio, or whatever else the model takes."""
    from mmzoo.models.load import load
    from mmzoo.models.prediction import predict_shared
    from mmzoo.sharing.locations import local_folder

    quiet()
    with processes.together():
        with processes.main_first():
            folder = local_folder(model)
        loaded = load(folder, device=arg.device_of(device), bases=arg.bases_of(bases))
        inputs = arg.inputs_of(loaded.modality, files, image=image, audio=audio, video=video)
        predictions = predict_shared(loaded, inputs, text, task=task, scores=scores, skip_bad=skip_bad)
    given = arg.rows_of(inputs, len(predictions))
    rows = [row for row, prediction in zip(given, predictions, strict=True) if prediction is not None]
    predictions = [prediction for prediction in predictions if prediction is not None]
    if as_json:
        absent = dict.fromkeys(loaded.modalities)
        print_json([{**absent, **row, **_as_data(own)} for row, own in zip(rows, predictions, strict=True)])
        return
    for row, prediction in zip(rows, predictions, strict=True):
        head = "" if len(given) == 1 else f"{next(iter(row.values()))}: "
        if isinstance(prediction, dict):
            print(head + ", ".join(f"{name}: {_as_text(own)}" for name, own in prediction.items()))
        else:
            print(head + _as_text(prediction))


def _as_data(prediction: Any) -> dict[str, Any]:
    """Return a prediction, or those of several tasks, as plain data."""
    if isinstance(prediction, dict):
        return {name: _as_data(own) for name, own in prediction.items()}
    data: dict[str, Any] = {"label": prediction.label, "score": prediction.score, "value": prediction.value}
    if prediction.scores:
        data["scores"] = prediction.scores
    if prediction.labels is not None:
        data["labels"] = list(prediction.labels)
    return {**data, "values": list(prediction.values)} if prediction.values else data


def _as_text(prediction: Any) -> str:
    numbers = prediction.values or (() if prediction.value is None else (prediction.value,))
    answer = ", ".join(f"{number:.4g}" for number in numbers) or prediction.text or "none"
    if prediction.vectors:
        return f"similarity {prediction.score:.3f}"
    return answer if prediction.score is None else f"{answer} ({prediction.score:.1%})"
