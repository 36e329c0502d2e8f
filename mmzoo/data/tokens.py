"""Encode, cut and pad token ids, for tasks and for prompts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AddedToken

from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import CAUSAL, PLACEHOLDER, PLACEHOLDER_ID, TextContext
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

    With ``image``, an input's tokens come first and no start token is added. Otherwise one is, so that a causal model has a state
    from which to predict the first token. Other architectures need none.
    """
    if text.architecture != CAUSAL:
        return []
    tokenizer = text.tokenizer
    own = tokenizer("")["input_ids"][:1]
    if own and own[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        return own
    if image:
        return []
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if i is not None), None)
    return [] if start is None else [start]


def prompt_ids(text: TextContext, prompts: Sequence[str], *, framed: bool = False) -> list[list[int]]:
    """Return the ids of prompts, with `PLACEHOLDER_ID` at each placeholder.

    A causal model's prompt begins with `start_ids`. Other architectures get the tokenizer's own frame ([CLS] ... [SEP], or ...
    </s>). ``framed`` means that the prompts already contain their special tokens.
    """
    tokenizer = text.tokenizer
    rows = _with_inputs(tokenizer, prompts, text.placeholder)
    if text.architecture != CAUSAL:
        ids = tokenizer("", add_special_tokens=True)["input_ids"]
        head, tail = ([], ids) if ids[:1] == [tokenizer.eos_token_id] else (ids[:1], ids[1:])
        return [[*head, *row, *tail] or [tokenizer.pad_token_id] for row in rows]
    if framed:
        return rows
    visual = text.added_tokens != 0
    start, own = start_ids(text, visual), start_ids(text, True)
    # The tokenizer's own start token stays first, before an image without a placeholder.
    implicit = [PLACEHOLDER_ID] if visual and own else []
    return [start + ([] if PLACEHOLDER_ID in row else implicit) + row for row in rows]


_WITH_PLACEHOLDER: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # copies that have the placeholder, by tokenizer


def with_placeholder(tokenizer: Any, mark: str = PLACEHOLDER) -> Any:
    """Return the tokenizer if it has the placeholder as one token, else a copy that has it."""
    if mark in tokenizer.get_added_vocab():
        return tokenizer
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens([AddedToken(mark, special=True, normalized=False)])
    return extended


def _with_inputs(tokenizer: Any, prompts: Sequence[str], mark: str) -> list[list[int]]:
    """Return ids with `PLACEHOLDER_ID` at the placeholders.

    Each prompt is encoded as a whole, because some tokenizers encode text after a token differently from text at the start.
    """
    if not any(mark in prompt for prompt in prompts):
        return encode_texts(tokenizer, prompts)
    extended = _WITH_PLACEHOLDER.get(tokenizer)
    if extended is None or mark not in extended.get_added_vocab():  # a tokenizer may be shared by models of two modalities
        extended = with_placeholder(tokenizer, mark)
        if extended is not tokenizer:
            _WITH_PLACEHOLDER[tokenizer] = extended
    own = extended.convert_tokens_to_ids(mark)
    return [[PLACEHOLDER_ID if i == own else i for i in row] for row in encode_texts(extended, prompts)]


def render_chat(text: TextContext, messages: Sequence[Mapping[str, str]], inputs: int) -> str:
    """Render a conversation with the tokenizer's own template, up to the start of the assistant's turn.

    If the fusion inserts inputs into the text and the conversation has no placeholder, one for each input is put at the start of
    the user's first turn.

    Args:
        messages: ``[{"role": "user", "content": "<image> What is it?"}, ...]``.
        inputs: the number of inputs.

    Raises:
        BadRecipe: the tokenizer has no template, or the template fails.
    """
    if not getattr(text.tokenizer, "chat_template", None):
        raise BadRecipe("this language model's tokenizer has no chat template; choose an instruct model, or omit chat")
    turns = [dict(turn) for turn in messages]
    if text.added_tokens != 0 and not any(text.placeholder in turn["content"] for turn in turns):
        first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
        first["content"] = text.placeholder * inputs + first["content"]
    try:
        rendered = text.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if all(piece.strip() in rendered for turn in turns for piece in turn["content"].split(text.placeholder)):
            return rendered
        # Templates of multimodal models expect parts and drop plain text.
        parts = [{**turn, "content": _parts(turn["content"], text)} for turn in turns]
        return text.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise BadRecipe(f"the chat template rejects these messages: {error}") from None


def _parts(content: str, text: TextContext) -> list[dict[str, str]]:
    """Return the content of a turn in the parts that multimodal templates expect."""
    parts = []
    for piece in content.split(text.placeholder):
        parts += [{"type": text.modality}, *([{"type": "text", "text": piece}] if piece else [])]
    return parts[1:]  # the first piece has no placeholder before it


def check_placeholders(row: Sequence[int], text: TextContext, inputs: int, name: str) -> None:
    """Check that a text has one placeholder for each of its inputs, or none for a single input; else raise a `DataError`."""
    count = sum(i == PLACEHOLDER_ID for i in row)
    if count != inputs and (count or inputs > 1):
        amount = f"{inputs} {text.modality if inputs == 1 else plural(text.modality)}"
        raise DataError(
            f"example {name}: {count} placeholders '{text.placeholder}' in the text and {amount}; give one placeholder for each "
            f"{text.modality}" + (", or none for a single one" if inputs == 1 else "")
        )


def check_length(rows: list[list[int]], text: TextContext, ids: Sequence[str], reserve: int = 0) -> None:
    """Raise a `DataError` if a row, the positions that the fusion adds and ``reserve`` for generation exceed the context."""
    if text.max_length is None:
        return
    for row, name in zip(rows, ids, strict=True):
        placeholders = sum(i == PLACEHOLDER_ID for i in row)
        length, added = len(row) - placeholders, (text.added_tokens or 0) * max(1, placeholders)
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
