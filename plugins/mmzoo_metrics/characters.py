"""Split captions in scripts without spaces between words (Chinese, Japanese, Thai, ...) into characters.

COCO's tokenizer takes such a caption for one word, so that two captions that differ in one character have nothing in common. The
common unit that needs no dictionary is the character (as in BLEU's tokenizer ``zh`` of sacreBLEU, Post 2018,
https://arxiv.org/abs/1804.08771, and in evaluations of Chinese captions). A character is a letter with its marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmzoo.api import UNSPACED
from mmzoo_metrics.ptb import tokenize

_UNSPACED = re.compile(f"[{UNSPACED}]")


def has_characters(captions: Sequence[str]) -> bool:
    """Return whether most of the words of captions, between spaces, are in scripts without spaces.

    A few foreign words leave an English caption to COCO's tokenizer, and its score as COCO has it.
    """
    words = [word for caption in captions if not caption.isascii() for word in caption.split()]
    others = sum(len(caption.split()) for caption in captions if caption.isascii())
    foreign = sum(bool(_UNSPACED.search(word)) for word in words)
    return foreign > len(words) - foreign + others


def tokenize_characters(captions: Sequence[str]) -> tuple[str, ...]:
    """Return each caption's tokens, joined by spaces: characters of scripts without spaces, and words of COCO's tokenizer
    between them. Punctuation is left out, as there."""
    split = [_pieces(caption) for caption in captions]
    words = iter(tokenize([text for pieces in split for alone, text in pieces if not alone]))
    tokens = [[text if alone else next(words) for alone, text in pieces] for pieces in split]
    return tuple(" ".join(filter(None, caption)) for caption in tokens)


def _pieces(caption: str) -> list[tuple[bool, str]]:
    """Return characters of scripts without spaces, each with True, and the texts between them."""
    pieces: list[tuple[bool, str]] = []
    text = unicodedata.normalize("NFC", caption)
    if not _UNSPACED.search(text):
        return [(False, text)]
    for character in text:
        kind, last = unicodedata.category(character)[0], bool(pieces) and pieces[-1][0]
        if kind == "M" and last:
            pieces[-1] = (True, pieces[-1][1] + character)
        elif not _UNSPACED.match(character):
            before = "" if last or not pieces else pieces.pop()[1]
            pieces.append((False, before + character))
        elif kind in "PZC":  # punctuation ends what is before it
            pieces.append((False, ""))
        else:
            pieces.append((True, character))
    return pieces
