"""Order the positions of a language model's input: images at their placeholders, padding on one side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmzoo.errors import DataError
from mmzoo.interfaces import PLACEHOLDER_ID, Features, FusedInput, TaskModel
from mmzoo.modalities.reader import plural


def fuse_input(model: TaskModel, features: Features, ids: Tensor, mask: Tensor, *, left: bool = False) -> FusedInput:
    """Build the language model's input through early fusion, and set on the fusion what its deep and late hooks read.

    Args:
        features: one row an example.
        ids, mask: [batch, text]; an id of `PLACEHOLDER_ID` marks the place of an input.
        left: whether the padding of the result is on the left; else it is on the right.

    Raises:
        DataError: the fusion adds tokens by the input, and they exceed the context.
    """
    fusion, latest = model.fusion, None
    placeholders = ids == PLACEHOLDER_ID
    if bool(placeholders.any()):
        ids, mask = ids.masked_fill(placeholders, 0), mask.masked_fill(placeholders, 0)
        features, latest = _place_images(features, placeholders)
    fusion.set_features(features)
    fused = fusion.early(features, model.language_model.embed(ids), mask)
    _check_context(model, fused.mask.shape[1])
    if latest is not None:  # only text attends back to images; tokens that the fusion added (-1) do not
        everywhere = latest.new_full(fused.mask.shape, -1)
        if isinstance(fused.text, slice):
            everywhere[:, fused.text] = latest
        else:
            everywhere.scatter_(1, fused.text, latest)
        latest = everywhere
    fused, order = pad_to_side(fused, left=left)
    fusion.mask = fused.mask
    fusion.latest = latest if latest is None or order is None else latest.gather(1, order)
    return fused


def _place_images(features: Features, placeholders: Tensor) -> tuple[Features, Tensor]:
    """Return the features with the place of each image, and the latest image before each text token, [batch, text]."""
    without = ~placeholders.any(1, keepdim=True)  # the rows with one image, before their text
    places = placeholders.long().argsort(dim=1, descending=True, stable=True)[:, : features.images]
    places = pad(places, (0, features.images - places.shape[1]))
    latest = (placeholders.cumsum(1) - 1).masked_fill(without, 0)
    return replace(features, at=places.masked_fill(without, -1)), latest


def _check_context(model: TaskModel, length: int) -> None:
    """Check the number of positions where it depends on the input; elsewhere it was checked when the text was laid out."""
    context = model.language_model.spec.max_length
    if model.fusion.added_tokens is None and context is not None and length > context:
        modality = model.text_context().modality
        raise DataError(
            f"the text and the {modality}'s tokens fill {length} positions, and the language model's context is "
            f"{context}; shorten the {plural(modality)}, or choose another fusion or language model"
        )


def drop_none(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None: a language model without a decoder need not accept them."""
    return {name: value for name, value in arguments.items() if value is not None}


def insert_features(visual: Tensor, visual_mask: Tensor, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
    """Insert each image's tokens at its placeholder in the text, or before the text.

    Args:
        visual: [batch * images, tokens, dim], the rows of `Features.by_image`.
        visual_mask: [batch * images, tokens].
        features: the batch's features, whose ``at`` holds the place of each image.
        embeddings, mask: those of the text, [batch, text, dim] and [batch, text].
    """
    batch, count = mask.shape[0], visual.shape[1]
    visual = visual.reshape(batch, -1, visual.shape[-1]).to(embeddings.dtype)
    visual_mask = visual_mask.reshape(batch, -1).to(mask.dtype)
    if features.present is not None:
        visual_mask = visual_mask * features.present.repeat_interleave(count, 1).to(mask.dtype)
    added = visual.shape[1]
    joined, joined_mask = torch.cat([visual, embeddings], dim=1), torch.cat([visual_mask, mask], dim=1)
    if features.at is None:
        return FusedInput(joined, joined_mask, slice(added, joined.shape[1]))
    # An image comes right after the (masked) position of its placeholder.
    places = torch.arange(mask.shape[1], device=mask.device).expand(batch, -1) * 2
    keys = torch.cat([features.at.repeat_interleave(count, 1) * 2 + 1, places], dim=1)
    order = keys.argsort(dim=1, stable=True)
    return FusedInput(reorder_positions(joined, order), joined_mask.gather(1, order), order.argsort(1)[:, added:])


def pad_to_side(fused: FusedInput, *, left: bool) -> tuple[FusedInput, Tensor | None]:
    """Move all padding to one side; also return the order [batch, positions] of the old positions, None if nothing moved.

    Models count positions from the left in their own ways (learned, rotary, relative, recurrent, sliding windows). Padding on
    the right affects none of them; padding on the left lets generation continue each row after its last position.
    """
    real = fused.mask.bool()
    first, second = (real[:, :-1], real[:, 1:]) if left else (real[:, 1:], real[:, :-1])
    if not bool((first & ~second).any()):
        return fused, None
    order = (real if left else ~real).long().argsort(dim=1, stable=True)
    new_places = order.argsort(1)
    text = new_places[:, fused.text] if isinstance(fused.text, slice) else new_places.gather(1, fused.text)
    moved = replace(fused, embeddings=reorder_positions(fused.embeddings, order), mask=fused.mask.gather(1, order), text=text)
    return moved, order


def reorder_positions(states: Tensor, order: Tensor) -> Tensor:
    """Return ``states`` [batch, positions, dim] at the positions ``order`` [batch, any]."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


def text_states(states: Tensor, text: slice | Tensor) -> Tensor:
    """Return the text's part, [batch, text, dim], of ``states`` [batch, positions, dim]; ``text`` as in `FusedInput`."""
    return states[:, text] if isinstance(text, slice) else reorder_positions(states, text)


def positions_before(text: slice | Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the positions [n] at which a causal model predicts the text tokens ``columns`` [n] of ``rows`` [n]: one before."""
    return (columns + text.start if isinstance(text, slice) else text[rows, columns]) - 1
