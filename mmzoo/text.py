"""Token ids in rows: encoding, cutting and padding, for tasks and for prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmzoo.errors import DataError
from mmzoo.interfaces import CAUSAL, TextContext


def encode(tokenizer: object, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Token ids of each text, with the tokenizer's special tokens only on request."""
    if not texts:
        return []
    # Half of a UTF-16 pair, as a shell or a JSON file may hold, is no character that a tokenizer takes.
    whole = [text.encode("utf-8", "replace").decode() for text in texts]
    return tokenizer(whole, add_special_tokens=special)["input_ids"]  # type: ignore[operator]


def start_ids(text: TextContext) -> list[int]:
    """What must stand before a text: nothing where the fusion puts tokens there, else the start token, so that a
    causal model always has a state to predict the first token from."""
    if text.kind != CAUSAL or text.added_tokens:
        return []
    tokenizer = text.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if start is None else [start]


def prompt_ids(text: TextContext, prompts: Sequence[str]) -> list[list[int]]:
    """Prompts as ids: what `start_ids` says and the bare text for causal models, the tokenizer's own framing
    ([CLS] ... [SEP], or ... </s>) for the others."""
    if text.kind != CAUSAL:
        return [row or [text.tokenizer.pad_token_id] for row in encode(text.tokenizer, prompts, special=True)]
    start = start_ids(text)
    return [start + row for row in encode(text.tokenizer, prompts)]


def fit_length(rows: list[list[int]], text: TextContext, ids: Sequence[str], reserve: int = 0) -> None:
    """Check that each row fits the context with what the fusion adds and ``reserve`` positions to generate.

    Raises:
        DataError: naming the lengths and the example.
    """
    if text.max_length is None:
        return
    room = text.max_length - text.added_tokens - reserve
    for row, name in zip(rows, ids, strict=True):
        if len(row) > room:
            extra = f" and {reserve} to generate" if reserve else ""
            raise DataError(
                f"example {name}: {len(row)} text tokens, {text.added_tokens} from the fusion{extra} exceed the "
                f"language model's context of {text.max_length}; shorten the text or choose another language model"
            )


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of ids as one tensor [rows, longest]."""
    width = max(1, max(len(row) for row in rows))
    filled = [([value] * (width - len(row)), list(row)) for row in rows]
    return torch.tensor([fill + row if left else row + fill for fill, row in filled], dtype=torch.long)


def padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids and their mask, both [rows, longest]."""
    return pad(rows, value, left=left), pad([[1] * len(row) for row in rows], 0, left=left)
