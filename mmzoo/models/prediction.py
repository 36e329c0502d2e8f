"""Predict with a model: read inputs and texts, collate them, and let the task predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmzoo.data.batching import batches, paired
from mmzoo.data.collate import raise_bad, tensors
from mmzoo.errors import DataError
from mmzoo.interfaces import FIELD_MODALITIES, Example, Prediction
from mmzoo.modalities.reader import NONE, plural

if TYPE_CHECKING:
    from mmzoo.models.model import MultimodalModel


def select_input(model: MultimodalModel, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
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


def pair_inputs(model: MultimodalModel, source: Any, text: Any) -> tuple[list[tuple[Any, Any]], bool]:
    """Pair inputs with texts, as `mmzoo.data.batching.paired` does for the encoder's modality."""
    return paired(source, text, modality=model.modality, sees=model.encoder.transform is not None)


def make_example(model: MultimodalModel, number: int, source: Any, text: str) -> Example:
    """Return an example of one input of the encoder's modality, or of several in a list."""
    inputs = source if isinstance(source, list | tuple) else [source]
    return Example(f"#{number}", text=text).with_inputs(model.modality, inputs)


def predict(model: MultimodalModel, inputs: dict[str, Any], text: Any, batch_size: int, options: dict[str, Any]) -> Any:
    """Predict inputs by modality and texts, one or many; see `MultimodalModel.predict`."""
    pairs, is_list = pair_inputs(model, select_input(model, inputs, options), text)
    if any(isinstance(words, list | tuple) for _, words in pairs):
        raise DataError("predict takes a text; a conversation is for model.generate")
    examples = [make_example(model, i, source, words or "") for i, (source, words) in enumerate(pairs)]
    predictions = model.predict_examples(examples, batch_size=batch_size, **options)
    return predictions if is_list else predictions[0]


def predict_examples(
    model: MultimodalModel, examples: Sequence[Example], batch_size: int, blank: bool, options: dict[str, Any]
) -> list[Prediction]:
    """Predict examples in batches, in evaluation mode."""
    collate = model.collator(training=False, blank=blank)
    predictions: list[Prediction] = []
    with model.evaluating():
        for group in batches(examples, batch_size):
            predictions += model.predict_batch(collate(group), **options)
    return predictions


def predict_batch(model: MultimodalModel, batch: dict[str, Any], options: dict[str, Any]) -> list[Prediction]:
    """Predict one collated batch.

    Raises:
        BadInput: an input of the batch could not be read.
    """
    for name, message in raise_bad(batch):
        raise model.encoder.reader.error(f"example {name}: {message}")
    on_device = tensors(batch, model.device)
    try:
        return model.task.predict(model, model.batch_features(on_device), on_device, **options)
    finally:
        model.fusion.set_features(None)
