"""Encode, cut and pad token ids, for tasks and for prompts."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AddedToken

from mmzoo.common.sanitize import one_line, whole
from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import CAUSAL, INPUT_KEYWORDS, PLACEHOLDER, Example, TextContext, placeholder
from mmzoo.modalities.reader import plural


def encode_texts(tokenizer: object, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """Return the token ids of each text. Special tokens are added only if ``special`` is set."""
    if not texts:
        return []
    return tokenizer(list(map(whole, texts)), add_special_tokens=special)["input_ids"]  # type: ignore[operator]


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
    if framed:
        return [row or [tokenizer.pad_token_id] for row in rows]
    if text.architecture != CAUSAL:
        ids = tokenizer("", add_special_tokens=True)["input_ids"]
        head, tail = ([], ids) if ids[:1] == [tokenizer.eos_token_id] else (ids[:1], ids[1:])
        return [[*head, *row, *tail] or [tokenizer.pad_token_id] for row in rows]
    visual = text.added_tokens != 0
    start, own = start_ids(text, visual), start_ids(replace(text, optional=False), True)
    # The tokenizer's own start token stays first, before inputs without a placeholder.
    ids = [id for id, added in zip(text.placeholders.values(), text.added.values(), strict=True) if added != 0 and own]
    rows = [row[len(start) :] if row[: len(start)] == start else row for row in rows]  # a rendered conversation may have it
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


def render_chat(
    text: TextContext, messages: Sequence[Mapping[str, str]], inputs: Mapping[str, int], *, add_generation_prompt: bool = True
) -> str:
    """Render a conversation with the tokenizer's own template.

    If the fusions insert inputs of a modality into the text and the conversation has no placeholder of it, one for each input is
    put at the start of the user's first turn. The result is the template's own, which may drop the reasoning of earlier answers.

    Args:
        messages: ``[{"role": "user", "content": "<image> What is it?"}, ...]``.
        inputs: the number of inputs by modality.
        add_generation_prompt: end with the start of the assistant's turn.

    Raises:
        BadRecipe: the tokenizer has no template; or the template fails, or drops words of the user or placeholders.
    """
    tokenizer = text.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise BadRecipe("this language model's tokenizer has no chat template; choose an instruct model, or omit chat")
    turns = [dict(turn) for turn in messages]
    implicit = ""
    for modality, added in text.added.items():
        if added != 0 and not any(placeholder(modality) in turn["content"] for turn in turns):
            implicit += placeholder(modality) * inputs.get(modality, 0)
    first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
    first["content"] = implicit + first["content"]
    counts = {mark: sum(turn["content"].count(mark) for turn in turns) for mark in text.placeholders}
    marks = tuple(mark for mark, count in counts.items() if count)
    forms = {role: _content_form(tokenizer, role, marks) for role in dict.fromkeys(turn["role"] for turn in turns)}
    try:
        formed = [{**turn, "content": forms[turn["role"]](turn["content"], marks)} for turn in turns]
        rendered = tokenizer.apply_chat_template(formed, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template may raise anything
        raise BadRecipe(f"the chat template rejects these messages: {error}") from None
    _check_turns(tokenizer, [(turn["role"], forms[turn["role"]]) for turn in turns], add_generation_prompt)
    whole = _squeezed(rendered)
    for number, turn in enumerate(turns, 1):
        # Of an answer a template may drop the reasoning, in any notation.
        pieces = _pieces(turn["content"], marks)[::2] if turn["role"] != "assistant" else []
        if lost := next((piece for piece in pieces if _squeezed(piece) not in whole), None):
            where = f"turn {number}, {turn['role']!r}"
            raise BadRecipe(f"the chat template drops or changes words of {where}: {one_line(lost, 200)!r}; {_FIX}")
    for mark, count in counts.items():
        if (written := rendered.count(mark)) != count:
            raise BadRecipe(f"the chat template writes '{mark}' {written} times for {count} in the conversation; {_FIX}")
    return rendered


_FIX = "change the conversation, or the tokenizer's chat_template, or omit chat"
_PROBE = "mmzooprobe"


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _pieces(text: str, marks: Sequence[str]) -> list[str]:
    """Return the texts of a turn, at even places, and the placeholders between them."""
    return re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]


def _as_text(text: str, marks: Sequence[str]) -> Any:
    return text


def _as_parts(text: str, marks: Sequence[str]) -> Any:
    """Return a turn's content as templates of multimodal models take it, where they write the placeholders themselves."""
    pieces = enumerate(_pieces(text, marks))
    parts = [{"type": "text", "text": piece} if i % 2 == 0 else {"type": piece.strip("<>")} for i, piece in pieces]
    return [part for part in parts if part.get("text") != ""] or parts


def _as_text_part(text: str, marks: Sequence[str]) -> Any:
    """Return a turn's content as one part, for templates that write tokens of their own for an input."""
    return [{"type": "text", "text": text}]


Form = Callable[[str, Sequence[str]], Any]
_FORMS: WeakKeyDictionary[Any, dict[tuple[Any, ...], Form]] = WeakKeyDictionary()  # that templates take, by tokenizer


def _content_form(tokenizer: Any, role: str, marks: tuple[str, ...]) -> Form:
    """Return the first of the forms of content in which the template writes a turn of ``role`` with its placeholders.

    A conversation with words of its own tells. What a template drops of a real one, such as reasoning, is then its intention.

    Raises:
        BadRecipe: it drops the words, or the placeholders, in every form.
    """
    known = _FORMS.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), role, marks)
    if key in known:
        return known[key]
    if role not in ("user", "system", "assistant"):  # such as tools; their order in a conversation is the template's own
        return _content_form(tokenizer, "user", marks)
    failed = False
    for form in (_as_text, _as_parts, _as_text_part):
        users = form if role == "user" else _content_form(tokenizer, "user", marks)
        user = {"role": "user", "content": users("".join(marks) + _PROBE + "user", marks)}
        other = {"role": role, "content": form(_PROBE + role, ())}
        try:
            turns = {"user": [user], "system": [other, user], "assistant": [user, other, user]}[role]
            written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:
            failed = failed or form is _as_text
            continue
        if _PROBE + role in written and (role != "user" or all(written.count(mark) == 1 for mark in marks)):
            return known.setdefault(key, form)
    if failed:  # so will the real conversation, and the template says why
        return known.setdefault(key, _as_text)
    lost = "".join(f" or '{mark}'" for mark in marks) if role == "user" else ""
    raise BadRecipe(f"the chat template drops every word of a turn of {role!r}{lost}; {_FIX}")


_WHOLE: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()  # orders of turns that templates keep, by tokenizer


def _check_turns(tokenizer: Any, turns: Sequence[tuple[str, Form]], add_generation_prompt: bool) -> None:
    """Check that the template writes each of these turns, given by role and form of content.

    A conversation with words of its own tells, for the words of a real turn may be in another one or in the template, too.

    Raises:
        BadRecipe: it drops a turn.
    """
    known = _WHOLE.setdefault(tokenizer, set())
    key = (str(tokenizer.chat_template), add_generation_prompt, *turns)
    if key in known:
        return
    words = [f"{_PROBE}{number}." for number, _ in enumerate(turns)]
    messages = [{"role": role, "content": form(word, ())} for (role, form), word in zip(turns, words, strict=True)]
    try:
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception:  # it takes no such words
        return
    if lost := [number for number, word in enumerate(words) if word not in written]:
        raise BadRecipe(f"the chat template drops turn {lost[0] + 1} of {len(turns)}, {turns[lost[0]][0]!r}; {_FIX}")
    known.add(key)


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
