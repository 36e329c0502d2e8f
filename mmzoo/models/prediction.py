"""Turn inputs and texts into examples for prediction and generation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmzoo.common import processes
from mmzoo.common.suggestions import did_you_mean
from mmzoo.data.bad import Bad, none_usable
from mmzoo.data.batching import paired, spans
from mmzoo.data.collate import raise_bad
from mmzoo.errors import BadInput, BadRecipe, DataError
from mmzoo.interfaces import INPUT_KEYWORDS, Example
from mmzoo.modalities.reader import plural

log = logging.getLogger(__name__)

MAX_SHOWN = 10  # skipped examples that a message names


def select_inputs(model: Any, inputs: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs by modality. Those of a plugin's modality are taken out of ``options``.

    Raises:
        DataError: an input of a modality is present that no encoder takes.
    """
    accepted = model.modalities
    own = {modality: options.pop(modality) for modality in accepted if modality not in INPUT_KEYWORDS and modality in options}
    present = {modality: source for modality, source in {**inputs, **own}.items() if source is not None}
    if not model.has_inputs:
        return dict([*present.items()][:1]) or {accepted[0]: None}
    if wrong := [modality for modality in present if modality not in accepted]:
        give = " or ".join(f"{modality}=..." for modality in accepted)
        raise DataError(f"this model takes {' and '.join(map(plural, accepted))}: give {give}, not {wrong[0]}=...")
    return {modality: present.get(modality) for modality in accepted}


def pair_inputs(model: Any, given: Mapping[str, Any], text: Any) -> tuple[list[tuple[dict[str, Any], Any]], bool]:
    """Pair inputs with texts, as `mmzoo.data.batching.paired` does. A model with one encoder needs its input."""
    needed = model.has_inputs and not model.takes_missing_inputs
    return paired(given, text, needs=model.modality if needed else "")


def request(model: Any, inputs: Mapping[str, Any], text: Any, options: dict[str, Any]) -> tuple[list[Example], bool]:
    """Return the examples that `MultimodalModel.predict` is given, and whether it must return a list.

    Inputs of a plugin's modality are taken out of ``options``.
    """
    pairs, is_list = pair_inputs(model, select_inputs(model, inputs, options), text)
    return [make_example(i, row, plain(words)) for i, (row, words) in enumerate(pairs)], is_list


def predict_shared(
    model: Any, inputs: Mapping[str, Any], text: Any, *, batch_size: int = 64, skip_bad: bool = False, **options: Any
) -> list[Any]:
    """Predict as `MultimodalModel.predict` does, and return a list. Several processes share the batches, and each returns all."""
    examples, _ = request(model, inputs, text, options)

    def predict(span: range) -> tuple[list[Any], Bad]:
        skipped: Bad | None = [] if skip_bad else None
        group = [examples[i] for i in span]
        return model.predict_examples(group, batch_size=batch_size, skipped=skipped, **options), skipped or []

    results = processes.share(spans(len(examples), batch_size), predict)
    report_skipped(model, [pair for _, skipped in results for pair in skipped], len(examples))
    return [each for own, _ in results for each in own]


def make_example(number: int, inputs: Mapping[str, Any], text: str) -> Example:
    """Return an example of inputs by modality; several of one modality are a list."""
    return Example(f"#{number}", text=text, inputs=inputs)


def plain(words: Any) -> str:
    """Return the text of `MultimodalModel.predict`; raise `DataError` for a conversation."""
    if isinstance(words, list | tuple):
        raise DataError("predict takes a text; a conversation is for model.generate")
    return words or ""


def check_task(model: Any, task: str | None) -> None:
    """Raise `BadRecipe` if the model has no task of that name."""
    if task is not None and (not isinstance(task, str) or task not in model.tasks):
        advice = did_you_mean(str(task), list(model.tasks)) or f"its tasks are {', '.join(model.tasks)}"
        raise BadRecipe(f"task: this model has no task '{task}'; {advice}")


def takes_options(model: Any, name: str, tasks: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether the options of a prediction are for a task: for the only one, or else for those that generate.

    Raises:
        BadRecipe: no task takes them.
    """
    generating = [other for other in tasks if model.tasks[other].needs_generation]
    if len(tasks) > 1 and options and not generating:
        raise BadRecipe(f"predict: {sorted(options)[0]}: no task of this model has such an option")
    return len(tasks) == 1 or name in generating


def check_readable(model: Any, batch: dict[str, Any]) -> None:
    """Check that every input of a collated batch could be read.

    Raises:
        BadInput: one could not; in the class of the encoder's reader.
    """
    for name, message in raise_bad(batch):
        raise input_error(model)(f"example {name}: {message}")


def report_skipped(model: Any, skipped: Bad, count: int) -> None:
    """Log how many of ``count`` examples were skipped, and why.

    Raises:
        BadInput: all were; in the class of the encoder's reader.
    """
    if skipped and len(skipped) == count:
        raise input_error(model)(none_usable(skipped))
    if skipped:
        shown = "".join(f"\n  {name}: {problem}" for name, problem in skipped[:MAX_SHOWN])
        log.warning("skipped %d of %d examples:%s", len(skipped), count, shown)


def input_error(model: Any) -> type[BadInput]:
    """Return the class of the errors of inputs: that of the reader, if all encoders have the same."""
    kinds = {encoder.reader.error for encoder in model.encoders.values()}
    return kinds.pop() if len(kinds) == 1 else BadInput
