"""Define the arguments that several commands share, their completion, and how their values are read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from mmzoo.common import processes
from mmzoo.common.sanitize import one_line
from mmzoo.errors import BadRecipe
from mmzoo.recipes import catalogue
from mmzoo.recipes.shape import PART_NAME


def complete_from(names: Callable[[], Iterable[str]]) -> Any:
    """Return a function that completes names for a shell."""
    return lambda incomplete: sorted({name for name in names() if name.startswith(incomplete)})


def complete(kind: str | None = None) -> Any:
    return complete_from(lambda: [entry.name for entry in catalogue.entries(kind)])


SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip, count and name examples that cannot be used.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, e.g. training.epochs=3; may be repeated."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="[NAME.]KEY=VALUE",
        help="An option of the data set, e.g. text_column=question; of one of several with its name or task; may be repeated.",
    ),
]
_DATASET_HELP = "A registered name, a folder or file, or an id such as org/name."


def _dataset_option(task: str) -> Any:
    """Return the option that names a data set; ``task`` says what TASK=NAME does."""
    text = f"{_DATASET_HELP} NAME:SPLIT names the split, TASK=NAME {task}"
    return typer.Option("--dataset", help=text, autocompletion=complete("dataset"), metavar="[TASK=]DATASET")


DatasetName = Annotated[str, _dataset_option("the only task to measure.")]
DatasetNames = Annotated[list[str], _dataset_option("the task that it is for; may be repeated.")]
Validation = Annotated[
    list[str] | None,
    typer.Option(
        "--validation",
        help="Validate while training: on a split of the data set, another data set, or a held-out share such as 0.1; "
        "may be repeated.",
        metavar="[TASK=]SPLIT|DATASET|SHARE",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Argument(help="A registered recipe or a YAML or JSON file.", autocompletion=complete("recipe"), metavar="RECIPE"),
]
EncoderName = Annotated[str | None, typer.Option("--encoder", help="Use this encoder.", autocompletion=complete("encoder"))]
FusionName = Annotated[str | None, typer.Option("--fusion", help="Use this fusion.", autocompletion=complete("fusion"))]
LanguageName = Annotated[
    str | None, typer.Option("--language-model", help="Use this language model.", autocompletion=complete("language_model"))
]
TaskName = Annotated[str | None, typer.Option("--task", help="Use this task.", autocompletion=complete("task"))]
_INPUTS_HELP = "Files of the model's (first) modality: images, audio, ...; none for a model without input."
Inputs = Annotated[list[str] | None, typer.Argument(help=_INPUTS_HELP, metavar="[FILE]...")]
Images = Annotated[list[str] | None, typer.Option("--image", help="An image, if there are several modalities; may be repeated.")]
Clips = Annotated[list[str] | None, typer.Option("--audio", help="A clip, likewise.")]
Videos = Annotated[list[str] | None, typer.Option("--video", help="A video, likewise.")]
ModelFolder = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder, a pack (.mmzoo), or a repository: me/name[@REVISION], file:///folder/me/name, s3://...",
        metavar="MODEL",
    ),
]
Bases = Annotated[
    list[str] | None,
    typer.Option(
        "--base",
        metavar="OLD=NEW",
        help="Use the folder or repository NEW where the model is built on OLD; its files must be the same. May be repeated.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples in a batch; changes speed and memory, not scores.")]
Metrics = Annotated[list[str] | None, typer.Option(help="A metric; may be repeated.", autocompletion=complete("metric"))]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the best available.")]
Repository = Annotated[str, typer.Argument(help="me/name, file:///folder/me/name, or s3://bucket/me/name.", metavar="REPOSITORY")]


def changes_of(sets: list[str] | None, **parts: str | None) -> dict[str, Any]:
    from mmzoo.recipes.merging import assignments, merge

    return merge({kind: name for kind, name in parts.items() if name is not None}, assignments(sets or []))


def bases_of(bases: list[str] | None) -> dict[str, str]:
    """Return what replaces the bases of a model, by their recorded names."""
    pairs = [pair.partition("=") for pair in bases or []]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise BadRecipe(f"--base {wrong[0]}: write OLD=NEW, such as ./my-lm=owner/name")
    return {old: new for old, _, new in pairs}


def inputs_of(modality: str, files: list[str] | None, **others: list[str] | None) -> dict[str, Any]:
    """Return the files by modality; those that are given without one are of the model's first ``modality``."""
    inputs = {**others, modality: [*(files or []), *(others.get(modality) or [])]}
    return {name: given for name, given in inputs.items() if given}


def rows_of(inputs: Mapping[str, list[str]], count: int) -> list[dict[str, str]]:
    """Return the files of each of ``count`` results; one file may serve all."""
    return [{name: given[i if len(given) > 1 else 0] for name, given in inputs.items()} for i in range(count)]


def dataset_of(given: str, data: list[str] | None) -> Any:
    """Return a data set with its options; by its task if it is for one."""
    pairs = read_datasets([given])
    part = _part_of(pairs[0], pairs, data)
    return part if pairs[0][0] is None else {pairs[0][0]: part}


def read_datasets(given: Sequence[str]) -> list[tuple[str | None, str]]:
    """Return task and name of each data set; ``TASK=NAME`` is for a task, unless there is such a file."""
    pairs = [re.fullmatch(rf"({PART_NAME})=(.+)", name) for name in given]
    return [
        (found[1], found[2]) if found and not os.path.exists(name) else (None, name)
        for name, found in zip(given, pairs, strict=True)
    ]


def datasets_of(given: Sequence[str], data: list[str] | None) -> dict[str, Any]:
    """Return the arguments of `mmzoo.train` that name its data."""
    pairs = read_datasets(given)
    if len(pairs) == 1 and pairs[0][0] is None:
        return {"dataset": dataset_of(given[0], data)}
    by_task: dict[str | None, list[Any]] = {}
    for pair in pairs:
        by_task.setdefault(pair[0], []).append(_part_of(pair, pairs, data))
    return {"datasets": by_task}


def _part_of(pair: tuple[str | None, str], pairs: Iterable[tuple[str | None, str]], data: list[str] | None) -> Any:
    from mmzoo.data.open import dataset_part
    from mmzoo.recipes.merging import assignments

    return dataset_part(pair[1], assignments(_data_of(pair, pairs, data or []), "--data"))


def measuring(given: Sequence[str], data: list[str] | None) -> list[str]:
    """Return the options of `mmzoo evaluate` for the first data set of a training."""
    from mmzoo.data.mixture import split_of

    pairs = read_datasets(given)
    task, name = pairs[0]
    use, _ = split_of(name)
    options = (word for pair in _data_of(pairs[0], pairs, data or []) for word in ("--data", pair))
    return ["--dataset", str(use) if task is None else f"{task}={use}", *options]


def _data_of(pair: tuple[str | None, str], pairs: Iterable[tuple[str | None, str]], data: Iterable[str]) -> list[str]:
    """Return the options of one of several data sets: ``TASK.KEY=VALUE``, ``NAME.KEY=VALUE``, and ``KEY=VALUE`` for all."""
    names = [name for each in pairs for name in each if name]
    own = []
    for option in data:
        named = max((name for name in names if option.startswith(f"{name}.")), key=len, default=None)
        if named is None:
            own.append(option)
        elif named in pair:
            own.append(option.removeprefix(f"{named}."))
    return own


def validation_of(given: Sequence[str] | None) -> Any:
    """Return the argument of `mmzoo.train` that names its validation data."""
    pairs = read_datasets(given or [])
    if not pairs:
        return None
    if all(task is None for task, _ in pairs):
        return pairs[0][1] if len(pairs) == 1 else [name for _, name in pairs]
    if any(task is None for task, _ in pairs):
        raise BadRecipe("--validation: write TASK=NAME for each data set, or for none")
    return {task: [name for other, name in pairs if other == task] for task, _ in pairs}


def seeds_of(given: str) -> int | list[int]:
    """Return the number of seeds, or the seeds themselves, which are separated by commas."""
    if not re.fullmatch(r"\d+(,\d+)*", given):
        raise BadRecipe(f"--seeds {given}: write how many, such as 3, or which: 0,7")
    return [int(seed) for seed in given.split(",")] if "," in given else int(given)


def device_of(name: str | None) -> str:
    import torch

    processes.count()  # connects several, which gives each its own GPU
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("cannot compute")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadRecipe(f"--device {name}: {one_line(error)}") from None
    return name
