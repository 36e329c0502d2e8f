"""Encode, cut and pad token ids, for tasks and for prompts."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AddedToken

from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import CAUSAL, INPUT_KEYWORDS, PLACEHOLDER, Example, TextContext, placeholder
from mmzoo.modalities.reader import plural


def encode_texts(tokenizer: object, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Return the token ids of each text. Special tokens are added only if ``special`` is set."""
    if not texts:
        return []
    # Tokenizers reject lone surrogates, which a shell or a JSON file may contain.
    whole = [text.encode("utf-8", "replace").decode() for text in texts]
    return tokenizer(whole, add_special_tokens=special)["input_ids"]  # type: ignore[operator]


def start_ids(text: TextContext, image: bool = False) -> list[int]:
    """Return the ids that must precede a text: the tokenizer's own ([CLS], <s>), else a start token, else nothing.

    With ``image``, an input's tokens come first and no start token is added, unless inputs may be missing. Otherwise one is, so
    that a causal model has a state from which to predict the first token. Other architectures need none.
    """
    if text.architecture != CAUSAL:
        return []
    tokenizer = text.tokenizer
    own = tokenizer("")["input_ids"][:1]
    if own and own[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        return own
    if image and not text.optional:
        return []
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if i is not None), None)
    return [] if start is None else [start]


def prompt_ids(text: TextContext, prompts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
    """Return the ids of prompts, with the modality's id (`TextContext.placeholders`) at each placeholder.

    A causal model's prompt begins with `start_ids`. Other architectures get the tokenizer's own frame ([CLS] ... [SEP], or ...
    </s>). ``framed`` means that the prompts already contain their special tokens.
    """
    tokenizer = text.tokenizer
    rows = _with_inputs(tokenizer, prompts, text.placeholders)
    if text.architecture != CAUSAL:
        ids = tokenizer("", add_special_tokens=True)["input_ids"]
        head, tail = ([], ids) if ids[:1] == [tokenizer.eos_token_id] else (ids[:1], ids[1:])
        return [[*head, *row, *tail] or [tokenizer.pad_token_id] for row in rows]
    if framed:
        return rows
    visual = text.added_tokens != 0
    start, own = start_ids(text, visual), start_ids(replace(text, optional=False), True)
    # The tokenizer's own start token stays first, before inputs without a placeholder.
    ids = [id for id, added in zip(text.placeholders.values(), text.added.values(), strict=True) if added != 0 and own]
    return [start + [id for id in ids if id not in row] + row for row in rows]


_WITH_PLACEHOLDERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # copies that have the placeholders, by tokenizer


def with_placeholder(tokenizer: Any, *marks: str) -> Any:
    """Return the tokenizer if it has each placeholder (`PLACEHOLDER` if none is given) as one token, else a copy that has."""
    new = [mark for mark in marks or (PLACEHOLDER,) if mark not in tokenizer.get_added_vocab()]
    if not new:
        return tokenizer
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in new])
    return extended


def _with_inputs(tokenizer: Any, prompts: Sequence[str], placeholders: Mapping[str, int]) -> list[list[int]]:
    """Return ids with those of ``placeholders`` at the placeholders.

    Each prompt is encoded as a whole, because some tokenizers encode text after a token differently from text at the start.
    """
    marks = [mark for mark in placeholders if any(mark in prompt for prompt in prompts)]
    if not marks:
        return encode_texts(tokenizer, prompts)
    extended = with_placeholder(_WITH_PLACEHOLDERS.get(tokenizer, tokenizer), *marks)
    if extended is not tokenizer:
        _WITH_PLACEHOLDERS[tokenizer] = extended
    own = {extended.convert_tokens_to_ids(mark): placeholders[mark] for mark in marks}
    return [[own.get(i, i) for i in row] for row in encode_texts(extended, prompts)]


def render_chat(text: TextContext, messages: Sequence[Mapping[str, str]], inputs: Mapping[str, int]) -> str:
    """Render a conversation with the tokenizer's own template, up to the start of the assistant's turn.

    If the fusions insert inputs of a modality into the text and the conversation has no placeholder of it, one for each input is
    put at the start of the user's first turn.

    Args:
        messages: ``[{"role": "user", "content": "<image> What is it?"}, ...]``.
        inputs: the number of inputs by modality.

    Raises:
        BadRecipe: the tokenizer has no template, or the template fails.
    """
    if not getattr(text.tokenizer, "chat_template", None):
        raise BadRecipe("this language model's tokenizer has no chat template; choose an instruct model, or omit chat")
    turns = [dict(turn) for turn in messages]
    implicit = ""
    for modality, added in text.added.items():
        if added != 0 and not any(placeholder(modality) in turn["content"] for turn in turns):
            implicit += placeholder(modality) * inputs.get(modality, 0)
    first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
    first["content"] = implicit + first["content"]
    marks = re.compile(f"({'|'.join(map(re.escape, text.placeholders))})")
    try:
        rendered = text.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if all(piece.strip() in rendered for turn in turns for piece in marks.split(turn["content"])[::2]):
            return rendered
        # Templates of multimodal models expect parts and drop plain text.
        parts = [{**turn, "content": _parts(marks.split(turn["content"]))} for turn in turns]
        return text.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise BadRecipe(f"the chat template rejects these messages: {error}") from None


def _parts(pieces: Sequence[str]) -> list[dict[str, str]]:
    """Return a turn in the parts that multimodal templates expect, from its texts (at even places) and placeholders."""
    parts = [{"type": "text", "text": piece} if i % 2 == 0 else {"type": piece.strip("<>")} for i, piece in enumerate(pieces)]
    return [part for part in parts if part.get("text") != ""]


def check_placeholders(row: Sequence[int], text: TextContext, example: Example) -> None:
    """Check that the ids of an example's text have one placeholder for each of its inputs, or none for a single input.

    A missing input may have a placeholder.

    Raises:
        DataError: the numbers differ, or there is a placeholder of a modality that no encoder takes.
    """
    _check_counts({m: sum(i == id for i in row) for m, id in zip(text.added, text.placeholders.values(), strict=True)}, example)


def check_marks(example: Example, modalities: Sequence[str]) -> None:
    """Check the placeholders in an example's text as `check_placeholders` does, without a tokenizer."""
    _check_counts({modality: example.text.count(placeholder(modality)) for modality in modalities}, example)


def _check_counts(counts: Mapping[str, int], example: Example) -> None:
    """Check the numbers of placeholders by modality."""
    for modality in INPUT_KEYWORDS:
        if modality not in counts and (mark := placeholder(modality)) in example.text:
            takes = " and ".join(map(plural, counts))
            fix = f"add an encoder of {modality}"
            raise DataError(f"example {example.id}: the text has '{mark}', and this model takes {takes}; {fix}")
    for modality, count in counts.items():
        given = len(example.of(modality))
        if count != given and (count or given > 1) and (count, given) != (1, 0):
            amount = f"{given} {modality if given == 1 else plural(modality)}"
            raise DataError(
                f"example {example.id}: {count} placeholders '{placeholder(modality)}' in the text and {amount}; give one "
                f"placeholder for each {modality}" + (", or none for a single one" if given == 1 else "")
            )


def check_length(rows: list[list[int]], text: TextContext, ids: Sequence[str], reserve: int = 0) -> None:
    """Raise a `DataError` if a row, the positions that the fusion adds and ``reserve`` for generation exceed the context."""
    if text.max_length is None:
        return
    for row, name in zip(rows, ids, strict=True):
        counts = [sum(i == id for i in row) for id in text.placeholders.values()]
        length = len(row) - sum(counts)
        added = sum((own or 0) * max(1, count) for own, count in zip(text.added.values(), counts, strict=True))
        if length + added + reserve > text.max_length:
            extra = f" and {reserve} to generate" if reserve else ""
            raise DataError(
                f"example {name}: {length} text tokens, {added} from the fusion{extra} exceed the "
                f"language model's context of {text.max_length}; shorten the text or choose another language model"
            )


def pad_rows(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return rows of ids as one tensor [rows, longest], padded with ``value`` on the right, or on the ``left``."""
    width = max(1, max(len(row) for row in rows))
    filled = [([value] * (width - len(row)), list(row)) for row in rows]
    return torch.tensor([fill + row if left else row + fill for fill, row in filled], dtype=torch.long)


def pad_with_mask(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return padded rows of ids and their mask, both [rows, longest]."""
    return pad_rows(rows, value, left=left), pad_rows([[1] * len(row) for row in rows], 0, left=left)
