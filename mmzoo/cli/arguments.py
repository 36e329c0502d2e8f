"""Define the arguments that several commands share, their completion, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmzoo.common.sanitize import one_line
from mmzoo.interfaces.kinds import KINDS
from mmzoo.recipes import catalogue


def complete(kind: str) -> Any:
    def names(incomplete: str) -> list[str]:
        return [entry.name for entry in catalogue.entries(kind) if entry.name.startswith(incomplete)]

    return names


def complete_kind(incomplete: str) -> list[str]:
    return [kind.replace("_", "-") for kind in KINDS if kind.startswith(incomplete.replace("-", "_"))]


def complete_any(incomplete: str) -> list[str]:
    return sorted({entry.name for entry in catalogue.entries() if entry.name.startswith(incomplete)})


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, e.g. training.epochs=3; may be repeated."),
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
        autocompletion=complete("dataset"),
        metavar="DATASET",
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
Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files of the model's modality: images, audio, ...; none for a model without input.",
        metavar="[FILE]...",
    ),
]
ModelFolder = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder, a pack (.mmzoo), or a repository: me/name[@REVISION], file:///folder/me/name, s3://...",
        metavar="MODEL",
    ),
]
Repository = Annotated[str, typer.Argument(help="me/name, file:///folder/me/name, or s3://bucket/me/name.", metavar="REPOSITORY")]


def changes_of(sets: list[str] | None, **parts: str | None) -> dict[str, Any]:
    from mmzoo.recipes.merging import assignments, merge

    return merge({kind: name for kind, name in parts.items() if name is not None}, assignments(sets or []))


def dataset_of(name: str, data: list[str] | None) -> Any:
    from mmzoo.data.open import dataset_part
    from mmzoo.recipes.merging import assignments

    return dataset_part(name, assignments(data or [], "--data"))


def device_of(name: str | None) -> str:
    import torch

    from mmzoo.errors import BadRecipe

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("cannot compute")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadRecipe(f"--device {name}: {one_line(error)}") from None
    return name
