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
    if not isinstance(size, int) or size < 1:
        raise BadRecipe(f"batch_size: must be a whole number of at least 1 (got {size!r})")
    remaining = iter(examples)
    while group := list(islice(remaining, size)):
        yield group


def paired(sources: Any, text: Any, *, modality: str = "image", sees: bool = True) -> tuple[list[tuple[Any, Any]], bool]:
    """Return pairs of input and text, and whether the caller passed a list.

    One input is repeated for many texts, and one text for many inputs. Several inputs of one text are a list within the list; for
    a single text with as many placeholders they are the list itself.

    Args:
        sources: one input of the modality, or several. It may be None if ``sees`` is false, as for an encoder without input.
        text: a string, None, a conversation (a list of mappings), or a list of these.
        modality: the modality of the inputs.
        sees: whether inputs are required.

    Raises:
        DataError: no input, a text of another type, or lists of different lengths.
    """
    if modality == "image" and isinstance(sources, np.ndarray | Tensor) and sources.ndim == 4:
        sources = list(sources)
    if sources is None and sees:
        needed = "an image is needed: a path, a file:// URL, a PIL image, an array, or a list of them"
        other = f"{modality} is needed, as {modality}=: a path, a file:// URL, bytes, an array, or a list of them"
        raise DataError(needed if modality == "image" else other)
    one_text = not isinstance(text, list | tuple) or _is_conversation(text)
    one_input = not isinstance(sources, list | tuple)
    together = one_text and not one_input and not any(isinstance(each, list | tuple) for each in sources)
    if together and _placeholders(text, placeholder(modality)) > 1:
        sources, one_input = list(sources), True
    texts: list[Any] = [text] if one_text else list(text)
    inputs: list[Any] = [sources] * len(texts) if one_input else list(sources)
    if one_text and not one_input:
        texts *= len(inputs)
    if len(inputs) != len(texts):
        raise DataError(f"{len(inputs)} {plural(modality)} and {len(texts)} texts; give one of either, or equally many of both")
    for item in texts:
        if not (item is None or isinstance(item, str) or _is_conversation(item)):
            raise DataError(f"a text must be a string, not {type(item).__name__}")
    return list(zip(inputs, texts, strict=True)), not (one_text and one_input)


def _is_conversation(text: Any) -> bool:
    return isinstance(text, list | tuple) and bool(text) and all(isinstance(turn, Mapping) for turn in text)


def _placeholders(text: Any, mark: str) -> int:
    turns = [str(turn.get("content")) for turn in text] if _is_conversation(text) else [text or ""]
    return sum(turn.count(mark) for turn in turns)
