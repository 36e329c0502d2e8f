"""Train a recipe with several seeds, a model for each, and sum them up in one card."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mmzoo.checkpoints.folder import CHECKPOINTS, SEEDS, is_checkpoint
from mmzoo.common.processes import is_main, together
from mmzoo.data.mixture import open_sources
from mmzoo.errors import TrainingError
from mmzoo.evaluation.seeds import SeedSummary, folder_of
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.training.data import describe_sources
from mmzoo.training.output import last_checkpoint, remove_checkpoints
from mmzoo.training.run import Run, train


@dataclass
class SeedRuns:
    """Hold the result of training with several seeds."""

    output: Path
    summary: SeedSummary  # of the seeds that are finished
    stopped: Run | None = None  # the run that a signal stopped; --resume continues from it


def train_seeds(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    output: str | Path,
    seeds: int | Sequence[int] = 3,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    after_each: Callable[[int, Run], Any] | None = None,
    **arguments: Any,
) -> SeedRuns:
    """Train a recipe with several seeds, one after the other, and save the models in ``output/seed-0``, ``output/seed-1``, ...

    ``output`` gets a card with the mean of each number and its interval over the seeds, and ``seeds.json`` with the same as data;
    `mmzoo.evaluate_seeds` adds scores.

    Args:
        recipe: as `mmzoo.train` takes it.
        seeds: how many, from ``training.seed`` on, or which.
        resume: keep the seeds that are finished, continue one that was stopped, and start those that are missing.
        overwrite: replace the seeds in ``output``.
        after_each: called with each seed and its run.
        arguments: the other arguments of `mmzoo.train`, such as ``dataset``, and changes of the recipe.

    Raises:
        TrainingError: fewer than two seeds, or one twice; ``output`` holds something else. What `mmzoo.train` raises.
    """
    if output == "":
        raise TrainingError("the output is empty; name a folder")
    output = Path(output).expanduser()
    own = {name: value for name, value in arguments.items() if name in inspect.signature(train).parameters}
    config = read_recipe(recipe, **{name: value for name, value in arguments.items() if name not in own})
    recipes = {seed: read_recipe(config, training={"seed": seed}) for seed in _numbers(seeds, config.training.seed)}
    asked = _describe(config, own)
    with together():  # before one of them writes
        finished = _prepare(output, list(recipes), asked, resume=resume, overwrite=overwrite)
    stopped = None
    with _written(output, asked, finished, overwrite=overwrite):
        for i, (seed, each) in enumerate(recipes.items(), 1):
            if seed in finished:
                continue
            if progress and is_main():
                print(f"seed {seed} ({i} of {len(recipes)})", file=sys.stderr)
            folder = folder_of(output, seed)
            unfinished = resume and last_checkpoint(folder) is not None
            run = train(each, output=folder, resume=unfinished, overwrite=not unfinished, progress=progress, **own)
            if after_each is not None:
                after_each(seed, run)
            if not run.finished:
                stopped = run
                break
            finished.append(seed)
            _write(output, asked, finished)
    return SeedRuns(output, SeedSummary.of(output, **asked, seeds=finished), stopped)


def _numbers(seeds: int | Sequence[int], first: int) -> list[int]:
    numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
    if len(numbers) < 2:
        raise TrainingError("seeds: name at least two, or their number: 3, or 0,7; for a single one set training.seed")
    if twice := [seed for seed in numbers if numbers.count(seed) > 1]:
        raise TrainingError(f"seeds: {twice[0]} is there twice")
    return numbers


def _describe(config: Recipe, own: dict[str, Any]) -> dict[str, Any]:
    """Return recipe and data as plain data without the seed, to tell whether a folder was begun with the same."""
    plain = config.to_dict()
    plain["training"] = {key: value for key, value in plain.get("training", {}).items() if key != "seed"}
    given: Any = next((own[name] for name in ("dataset", "datasets") if own.get(name) is not None), [])
    sources = open_sources(config, given)
    data = describe_sources(sources, own.get("split", "train"))
    if (validation := own.get("validation")) is not None:
        data["validation"] = str(validation) if isinstance(validation, int | float) else validation
    return json.loads(json.dumps({"recipe": plain, "data": data}, default=_name))


def _name(value: Any) -> str:
    """Return a text for what is no plain data, which is the same in another process."""
    return str(value) if isinstance(value, PathLike) else type(value).__name__


def _prepare(output: Path, seeds: list[int], asked: dict[str, Any], *, resume: bool, overwrite: bool) -> list[int]:
    """Return the seeds that are finished.

    Raises:
        TrainingError: the folder holds something else, there is nothing to resume, or recipe or data differ.
    """
    if output.exists() and not output.is_dir():
        raise TrainingError(f"{output} is a file; name a folder")
    if is_checkpoint(output) or (output / CHECKPOINTS).is_dir():
        raise TrainingError(f"{output} holds a single model, or its unfinished training; name another folder for several seeds")
    there = (output / SEEDS).is_file()
    if resume:
        if not there:
            raise TrainingError(f"{output} holds no seeds to resume; leave out --resume to start")
        known = SeedSummary.read(output)
        if different := [name for name, value in asked.items() if getattr(known, name) != value]:
            raise TrainingError(
                f"{output}: its seeds were started with another {' and other '.join(different)}; resume with the same, or start "
                "anew with --overwrite"
            )
        return list(known.runs)
    taken = [seed for seed in seeds if is_checkpoint(folder_of(output, seed)) or last_checkpoint(folder_of(output, seed))]
    if not overwrite and (taken or there):
        held = f"{output} already holds {'the seed ' + str(taken[0]) if taken else 'seeds'}"
        raise TrainingError(f"{held}; --resume finishes them or adds more, --overwrite replaces them, or name another folder")
    return []


@contextmanager
def _written(output: Path, asked: dict[str, Any], finished: list[int], *, overwrite: bool) -> Iterator[None]:
    """Write that the seeds have begun. If the block fails before there is anything to resume, put back what was there."""
    before = (output / SEEDS).read_bytes() if (output / SEEDS).is_file() else None
    new = not output.exists()
    if overwrite and is_main():
        for folder in output.glob("seed-*"):
            remove_checkpoints(folder)
    _write(output, asked, finished)
    try:
        yield
    except BaseException:
        if is_main() and not finished and not any(last_checkpoint(folder) for folder in output.glob("seed-*")):
            with suppress(OSError):
                (output / SEEDS).unlink() if before is None else (output / SEEDS).write_bytes(before)
            if new:
                with suppress(OSError):  # it is not empty
                    output.rmdir()
        raise


def _write(output: Path, asked: dict[str, Any], finished: Sequence[int]) -> None:
    if is_main():
        SeedSummary.of(output, **asked, seeds=finished).write()
