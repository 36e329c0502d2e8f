"""The order of positions: images at their placeholders, padding to one side."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmzoo.interfaces.features import Features
from mmzoo.interfaces.fusion import FusedInput


def insert_features(visual: Tensor, visual_mask: Tensor, features: Features, embeddings: Tensor, mask: Tensor) -> FusedInput:
    """Each image's tokens at its place in the text, or before it.

    Args:
        visual: [batch * images, tokens, dim], the rows of `Features.by_image`.
        visual_mask: [batch * images, tokens].
        features: the batch's, which say where each image stands.
        embeddings, mask: the text's, [batch, text, dim] and [batch, text].
    """
    batch = mask.shape[0]
    count = visual.shape[1]
    visual = visual.reshape(batch, -1, visual.shape[-1]).to(embeddings.dtype)
    visual_mask = visual_mask.reshape(batch, -1).to(mask.dtype)
    if features.present is not None:
        visual_mask = visual_mask * features.present.repeat_interleave(count, 1).to(mask.dtype)
    added = visual.shape[1]
    joined = torch.cat([visual, embeddings], dim=1)
    joined_mask = torch.cat([visual_mask, mask], dim=1)
    if features.at is None:
        return FusedInput(joined, joined_mask, slice(added, joined.shape[1]))
    # An image comes right after the (masked) position of its placeholder.
    places = torch.arange(mask.shape[1], device=mask.device).expand(batch, -1) * 2
    keys = torch.cat([features.at.repeat_interleave(count, 1) * 2 + 1, places], dim=1)
    order = keys.argsort(dim=1, stable=True)
    return FusedInput(reorder_positions(joined, order), joined_mask.gather(1, order), order.argsort(1)[:, added:])


def pad_to_side(sequence: FusedInput, *, left: bool = False) -> tuple[FusedInput, Tensor | None]:
    """The sequence with all its padding on one side, and the order [batch, positions] that did it; None if it was so.

    Models count positions from the left in their own ways (learned, rotary, relative, recurrent, sliding windows); with
    padding on the right alone none of them sees it, and generation continues each row after its last position.
    """
    real = sequence.mask.bool()
    first, second = (real[:, :-1], real[:, 1:]) if left else (real[:, 1:], real[:, :-1])
    if not bool((first & ~second).any()):
        return sequence, None
    order = (real if left else ~real).long().argsort(dim=1, stable=True)
    back = order.argsort(1)
    text = back[:, sequence.text] if isinstance(sequence.text, slice) else back.gather(1, sequence.text)
    moved = replace(
        sequence, embeddings=reorder_positions(sequence.embeddings, order), mask=sequence.mask.gather(1, order), text=text
    )
    return moved, order


def reorder_positions(states: Tensor, order: Tensor) -> Tensor:
    """[batch, positions, dim] with its positions in ``order`` [batch, any]."""
    return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))


def text_states(states: Tensor, text: slice | Tensor) -> Tensor:
    """[batch, positions, dim] to those of the text, [batch, text, dim]."""
    return states[:, text] if isinstance(text, slice) else reorder_positions(states, text)


def positions_before(text: slice | Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Where a causal model predicts the text tokens ``columns`` [n] of ``rows`` [n]: the positions [n] before theirs."""
    return (columns + text.start if isinstance(text, slice) else text[rows, columns]) - 1
