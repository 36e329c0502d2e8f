"""Turn inputs and texts into examples for prediction and generation."""

from __future__ import annotations

from typing import Any

from mmzoo.data.batching import paired
from mmzoo.data.collate import raise_bad
from mmzoo.errors import DataError
from mmzoo.interfaces import FIELD_MODALITIES, Example
from mmzoo.modalities.reader import NONE, plural


def select_input(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the input whose modality the encoder accepts. The input of a plugin's modality is taken out of ``options``.

    Raises:
        DataError: an input of another modality is present.
    """
    accepted = model.encoder.modality
    if accepted not in FIELD_MODALITIES and accepted in options:
        inputs = {**inputs, accepted: options.pop(accepted)}
    present = {modality: source for modality, source in inputs.items() if source is not None}
    if accepted == NONE:
        return next(iter(present.values()), None)
    if wrong := [modality for modality in present if modality != accepted]:
        raise DataError(f"this model takes {plural(accepted)}: give {accepted}=..., not {wrong[0]}=...")
    return present.get(accepted)


def pair_inputs(model: Any, source: Any, text: Any) -> tuple[list[tuple[Any, Any]], bool]:
    """Pair inputs with texts, as `mmzoo.data.batching.paired` does for the encoder's modality."""
    return paired(source, text, modality=model.modality, sees=model.encoder.transform is not None)


def make_example(model: Any, number: int, source: Any, text: str) -> Example:
    """Return an example of one input of the encoder's modality, or of several in a list."""
    inputs = source if isinstance(source, list | tuple) else [source]
    return Example(f"#{number}", text=text).with_inputs(model.modality, inputs)


def check_readable(model: Any, batch: dict[str, Any]) -> None:
    """Check that every input of a collated batch could be read.

    Raises:
        BadInput: one could not; in the class of the encoder's reader.
    """
    for name, message in raise_bad(batch):
        raise model.encoder.reader.error(f"example {name}: {message}")
