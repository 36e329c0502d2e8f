"""Import and export checkpoints of other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmzoo.cli.arguments import EncoderName, ModelFolder, changes_of, complete
from mmzoo.cli.printing import quiet
from mmzoo.cli.root import app
from mmzoo.errors import CheckpointError

Option = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the format (mmzoo show FORMAT); may be repeated."),
]
FormatName = Annotated[
    str, typer.Argument(help="A registered format, such as llava.", autocompletion=complete("format"), metavar="FORMAT")
]


@app.command("import")
def import_(
    format: FormatName,
    source: Annotated[str, typer.Argument(help="A file, a folder, or a repository's id[@revision].", metavar="SOURCE")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="The folder to save the model in.")],
    encoder: EncoderName = None,
    sets: Option = None,
) -> None:
    """Convert a checkpoint of other code into a model that computes the same."""
    from mmzoo.formats.format import import_model

    quiet()
    folder = Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):  # it may be a trained model
        raise CheckpointError(f"{folder}: is not empty; an import needs a new folder")
    model = import_model(format, source, **changes_of(sets, encoder=encoder))
    model.save(output)
    print(f"imported {source}; the model is in {output}\n{model.summary()}")


@app.command()
def export(
    format: FormatName,
    model: ModelFolder,
    folder: Annotated[str, typer.Argument(help="A new folder.", metavar="DIR")],
    sets: Option = None,
) -> None:
    """Write a model as a checkpoint of other code that generates the same tokens."""
    from mmzoo.formats.format import export_model

    quiet()
    print(f"exported {model}; the checkpoint is in {export_model(format, model, folder, **changes_of(sets))}")
