"""Order the positions of a language model's input: inputs at their placeholders, padding on one side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmzoo.errors import DataError
from mmzoo.interfaces import CrossAttentionStates, Features, FusedInput, Fusion, FusionCall, ModelPass, running
from mmzoo.modalities.reader import plural
from mmzoo.models.precision import cast, dtype_of


def fuse_input(
    model: Any, features: Mapping[str, Features], ids: Tensor, mask: Tensor, *, left: bool = False
) -> tuple[FusedInput, dict[Fusion, FusionCall]]:
    """Build the language model's input through early fusion; also return what each fusion's deep and late hooks read.

    The tokens of several encoders stand in the order of the encoders, each at the placeholder of its modality or before the text.

    Args:
        features: by encoder, one row an example; empty for the text alone.
        ids, mask: [batch, text]; the ids of ``TextContext.placeholders`` mark the places of inputs.
        left: whether the padding of the result is on the left; else it is on the right.

    Raises:
        DataError: a fusion adds tokens by the input, and they exceed the context.
    """
    places = {id: ids == id for id in model.text_context().placeholders.values()}
    places = {id: marked for id, marked in places.items() if bool(marked.any())}
    for marked in places.values():
        ids, mask = ids.masked_fill(marked, 0), mask.masked_fill(marked, 0)
    fused = FusedInput(model.language_model.embed(ids), mask, slice(0, ids.shape[1]))
    dtype = fused.embeddings.dtype
    calls: dict[Fusion, FusionCall] = {}
    latest: dict[Fusion, tuple[Tensor, Tensor]] = {}
    # Each fusion inserts before what is there, so the last encoder's comes first.
    for fusion, names in reversed(model.fused_encoders() if features else []):
        placed = {}
        for name in names:
            placed[name] = features[name]
            marked = places.get(model.placeholder_id(name))
            if marked is not None:
                placed[name], latest[fusion] = _place_inputs(features[name], marked, fused.text)
        fusion_dtype = dtype_of(fusion)
        given = cast(placed if fusion.joint else placed[names[0]], fusion_dtype)
        calls[fusion] = FusionCall(fusion.prepare(given), given)
        with running(ModelPass(calls)):
            fused = _join(fused, fusion.early(given, cast(fused.embeddings, fusion_dtype), fused.mask), dtype)
    before, width = fused.text, fused.mask.shape[1]
    fused, order = pad_to_side(fused, left=left)
    _check_context(model, fused.mask.shape[1])
    for fusion, call in calls.items():
        call.mask = fused.mask
        if fusion in latest:  # only text attends back to placed inputs; tokens that fusions added (-1) do not
            own, without = latest[fusion]
            everywhere = (without.long() - 1).repeat(1, width)
            if isinstance(before, slice):
                everywhere[:, before] = own
            else:
                everywhere.scatter_(1, before, own)
            call.latest = everywhere if order is None else everywhere.gather(1, order)
    return fused, calls


def _place_inputs(features: Features, placeholders: Tensor, text: slice | Tensor) -> tuple[Features, tuple[Tensor, Tensor]]:
    """Return the features with the place of each input in the sequence so far, and the latest input before each text token with
    the rows [batch, 1] that have no placeholder.

    Args:
        placeholders: [batch, text], where the text has one.
        text: the positions of the text in the sequence.
    """
    without = ~placeholders.any(1, keepdim=True)  # the rows with one input, before their text
    places = placeholders.long().argsort(dim=1, descending=True, stable=True)[:, : features.images]
    places = places + text.start if isinstance(text, slice) else text.gather(1, places)
    places = pad(places, (0, features.images - places.shape[1]))
    latest = (placeholders.cumsum(1) - 1).masked_fill(without, 0)
    return replace(features, at=places.masked_fill(without, -1)), (latest, without)


def _join(before: FusedInput, after: FusedInput, dtype: torch.dtype) -> FusedInput:
    """Return ``after``, which was made of the sequence ``before``, with the places of the text in it, and both memories, in the
    type of the language model."""
    if isinstance(after.text, slice):
        start = after.text.start
        text = (
            slice(before.text.start + start, before.text.stop + start) if isinstance(before.text, slice) else before.text + start
        )
    else:
        text = after.text[:, before.text] if isinstance(before.text, slice) else after.text.gather(1, before.text)
    memory = after.memory
    if memory is not None:
        memory = replace(memory, states=cast(memory.states, dtype))
    if memory is not None and before.memory is not None:
        states = torch.cat([memory.states, before.memory.states], 1)
        memory = CrossAttentionStates(states, torch.cat([memory.mask, before.memory.mask], 1))
    return replace(after, embeddings=cast(after.embeddings, dtype), text=text, memory=memory or before.memory)


def _check_context(model: Any, length: int) -> None:
    """Check the number of positions; where it does not depend on the input it was checked when the text was laid out."""
    text = model.text_context()
    if text.max_length is not None and length > text.max_length:
        modality = next((modality for modality, added in text.added.items() if added is None), text.modality)
        raise DataError(
            f"the text and the {modality}'s tokens fill {length} positions, and the language model's context is "
            f"{text.max_length}; shorten the {plural(modality)}, or choose another fusion or language model"
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
    # Rows with many inputs and rows with long texts may leave a side that is padding in all of them.
    width, longest = real.shape[1], max(1, int(real.sum(1).max()))
    order = order[:, width - longest :] if left else order[:, :longest]
    text = (text - (width - longest if left else 0)).clamp(0, longest - 1)  # only padding is moved by this
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
