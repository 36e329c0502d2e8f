"""Group examples into batches, and pair inputs with texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import Example, placeholder
from mmzoo.modalities.reader import plural


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Yield lists of ``size`` examples; the last may be shorter. Raise `BadRecipe` if ``size`` is not a whole number from 1."""
    _check_size(size)
    remaining = iter(examples)
    while group := list(islice(remaining, size)):
        yield group


def spans(count: int, size: int) -> list[range]:
    """Return the numbers of ``count`` examples in as few batches of at most ``size`` as possible, of nearly the same size.

    Processes then share equal work, and a batch holds the same examples whatever their number. It raises what `batches` does.
    """
    _check_size(size)
    cuts = -(-count // size)
    return [range(count * i // cuts, count * (i + 1) // cuts) for i in range(cuts)]


def _check_size(size: int) -> None:
    if not isinstance(size, int) or size < 1:
        raise BadRecipe(f"batch_size: must be a whole number of at least 1 (got {size!r})")


def paired(inputs: Mapping[str, Any], text: Any, *, needs: str = "") -> tuple[list[tuple[dict[str, Any], Any]], bool]:
    """Return pairs of inputs (by modality) and text, and whether the caller passed a list.

    One input is repeated for many texts, and one text for many inputs. Several inputs of one text are a list within the list; for
    a single text with as many placeholders they are the list itself. An input may be None: it is missing.

    Args:
        inputs: one input of each modality, or several.
        text: a string, None, a conversation (a list of mappings), or a list of these.
        needs: the modality that must be given; empty if none must.

    Raises:
        DataError: no input, a text of another type, or lists of different lengths.
    """
    if needs and inputs.get(needs) is None:
        needed = "an image is needed: a path, a file:// URL, a PIL image, an array, or a list of them"
        other = f"{needs} is needed, as {needs}=: a path, a file:// URL, bytes, an array, or a list of them"
        raise DataError(needed if needs == "image" else other)
    one_text = not isinstance(text, list | tuple) or _is_conversation(text)
    lists: dict[str, list[Any]] = {} if one_text else {"texts": list(text)}
    single: dict[str, Any] = {}
    for modality, given in inputs.items():
        if modality == "image" and isinstance(given, np.ndarray | Tensor) and given.ndim == 4:
            given = list(given)
        several = isinstance(given, list | tuple)
        together = one_text and several and not any(isinstance(each, list | tuple) for each in given)
        if several and not (together and _placeholders(text, placeholder(modality)) > 1):
            lists[plural(modality)] = list(given)
        else:
            single[modality] = list(given) if several else given
    lengths = {what: len(values) for what, values in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{count} {what}" for what, count in sorted(lengths.items(), key=lambda pair: pair[0] == "texts"))
        raise DataError(f"{counts}; give one of either, or equally many of both")
    count = next(iter(lengths.values()), 1)
    texts = lists.get("texts", [text] * count)
    for item in texts:
        if not (item is None or isinstance(item, str) or _is_conversation(item)):
            raise DataError(f"a text must be a string, not {type(item).__name__}")
    rows = [
        {modality: single[modality] if modality in single else lists[plural(modality)][i] for modality in inputs}
        for i in range(count)
    ]
    return list(zip(rows, texts, strict=True)), bool(lists)


def _is_conversation(text: Any) -> bool:
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(turn, Mapping) for turn in text)


def _placeholders(text: Any, mark: str) -> int:
    turns = [str(turn.get("content")) for turn in text] if _is_conversation(text) else [text or ""]
    return sum(turn.count(mark) for turn in turns)
