"""Define the command: options, headings and exit codes. The steps themselves are in `mmzoo_demo.steps`.

This module is imported by ``mmzoo --help``, so nothing here imports torch before the command runs.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmzoo.api import MmzooError

if TYPE_CHECKING:
    from mmzoo_demo.steps import Demo

RECIPE = "cnn-product-lstm"
NEEDED = {"easy_vqa": "easy-vqa", "jinja2": "jinja2", "matplotlib": "matplotlib"}


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for all files of the demo.")] = Path(
        "mmzoo-demo"
    ),
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="What to train.")] = RECIPE,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training split; the recipe's own number if not given.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use a small part of the data and a few steps: everything runs, with poor answers.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a demo that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a demo that is in DIR.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; everything else goes to stderr.")] = False,
) -> None:
    """Train, measure, reload and use a model on easy-VQA, in about two minutes."""
    check_needed()
    import transformers

    from mmzoo_demo.steps import Demo, Settings, Stopped

    transformers.logging.set_verbosity_error()
    out = sys.stderr if as_json else sys.stdout
    run = Demo(output.expanduser(), Settings(recipe, epochs, quick), lambda text="": print(text, file=out, flush=True))
    try:
        run.begin(resume=resume, overwrite=overwrite)
        run.train()
        run.measure()
        run.reload()
        run.report()
    except Stopped as stop:
        _say_how_to_resume(run, f"stopped at step {stop.step}, where a checkpoint was saved")
        raise typer.Exit(128 + stop.signal) from None
    except KeyboardInterrupt:
        _say_how_to_resume(run, "stopped")
        raise typer.Exit(130) from None
    except OSError as error:
        raise MmzooError(f"{output}: {error.strerror or error}") from None
    if as_json:
        print(json.dumps(run.record, indent=2, ensure_ascii=False))
    else:
        _say_what_next(run)
    if not run.record["reload"]["equal"]:
        print("error: the answers of the reloaded model differ from those of the trained one", file=sys.stderr)
        raise typer.Exit(1)


def check_needed() -> None:
    """Refuse to start if a package is missing that a later step needs.

    Raises:
        MmzooError: a package of the ``demo`` extra is missing.
    """
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MmzooError(f'{", ".join(missing)} {verb} not installed, and the demo needs it: pip install "mmzoo[demo]"')


def _say_how_to_resume(run: Demo, outcome: str) -> None:
    print(f"{outcome}; continue with:  {run.settings.command(run.output)} --resume", file=sys.stderr)


def _say_what_next(run: Demo) -> None:
    paths: dict[str, Any] = run.record["paths"]
    print()
    print("What the demo wrote")
    rows = [
        ("report", "everything on one page; open it in a browser"),
        ("model", "the model: weights, recipe, card, record"),
        ("blind", "its blind control"),
        ("images", "test pictures to try"),
        ("record", "scores and seconds, as data"),
    ]
    width = max(len(paths[key]) for key, _ in rows)
    for key, description in rows:
        print(f"  {paths[key].ljust(width)}  {description}")
    print()
    print("What to try next")
    for command in next_commands(run.record):
        print(f"  {command}")


def next_commands(record: dict[str, Any]) -> list[str]:
    """Return commands that work as they are, in the folder where the demo was run."""
    paths = record["paths"]
    model, images = shlex.quote(paths["model"]), Path(paths["images"])
    first = record["pictures"][0]
    product = shlex.quote(str(Path(paths["model"]).with_name("product")))
    return [
        f"mmzoo predict {model} {shlex.quote(str(images / first['file']))} --text {shlex.quote(first['question'])}",
        f"mmzoo evaluate {model} --dataset easy-vqa",
        f"mmzoo train cnn-product-lstm --dataset easy-vqa --output {product}",
        "mmzoo list",
        "mmzoo check clip-prefix-gpt2",
    ]
