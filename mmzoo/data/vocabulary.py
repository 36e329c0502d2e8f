"""Learn tokenizers from the training texts, for language models that are trained from scratch.

The vocabulary is a list of WordPiece units (Schuster and Nakajima 2012), stored in the recipe as plain data, so that a checkpoint
can rebuild the tokenizer. Frequent words become one token each. Every character of the training texts is a unit, so every text
with these characters can be encoded.

In scripts that write no spaces between words (Chinese, Japanese, Thai, ...) each character is a token, as in BERT's tokenizer for
Chinese. No space is read between such tokens, so one that the text has is a token of its own (`SPACE`). Words of over 100
characters are cut into pieces, with a token between them (`JOIN`), because WordPiece's search is quadratic in the length.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator

from mmzoo.common.sanitize import whole
from mmzoo.common.scripts import UNSPACED
from mmzoo.interfaces import Options

PAD, BOS, EOS, UNK = SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
SPACE, JOIN = "\ufdd0", "\ufdd1"  # noncharacters, which Unicode reserves for internal use
LONGEST = 100  # characters of a word; the library's own limit


def learn_vocabulary(texts: Iterable[str], size: int, *, verbatim: bool = False) -> list[str]:
    """Return the units of a WordPiece vocabulary of at most ``size``, special tokens first.

    Texts without a character give `default_vocabulary`.
    """
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    _prepare(tokenizer, verbatim=verbatim)
    texts = list(map(whole, texts))
    characters = {c for text in set(texts) for c in tokenizer.normalizer.normalize_str(text) if not c.isspace()} - {SPACE, JOIN}
    if not characters:
        return default_vocabulary(verbatim=verbatim)
    unspaced = {c for c in characters if re.match(f"[{UNSPACED}]", c)}  # never inside a word
    # The trainer breaks ties by id, and numbers the characters inside words in hash order, which differs between processes.
    # Passing them as special tokens gives them the same ids in every run.
    first = SPECIAL + sorted("##" + c for c in characters - unspaced) + [SPACE] * bool(unspaced)
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return SPECIAL + sorted(set(tokenizer.get_vocab()) - set(SPECIAL))


def default_vocabulary(*, verbatim: bool = False) -> list[str]:
    """Return the vocabulary before training: the printable ASCII characters."""
    characters = [c for c in string.printable if not c.isspace() and (verbatim or not c.isupper())]
    return SPECIAL + sorted(characters + ["##" + c for c in characters])


def make_tokenizer(vocabulary: list[str] | None, *, verbatim: bool = False) -> Any:
    """Return a `transformers.PreTrainedTokenizerFast` for a vocabulary; for `default_vocabulary` if it is empty."""
    from tokenizers import Regex, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    units = vocabulary or default_vocabulary(verbatim=verbatim)
    built = Tokenizer(models.WordPiece({unit: i for i, unit in enumerate(units)}, unk_token=UNK))
    _prepare(built, verbatim=verbatim, units=units)
    steps: list[Any] = [decoders.WordPiece(prefix="##", cleanup=not verbatim)]
    if alone := _alone(units):
        steps += [decoders.Fuse(), decoders.Replace(Regex(f"(?<={alone}) | (?={alone})"), "")]
        steps += [decoders.Replace(SPACE, " "), decoders.Replace(JOIN, "")]
    built.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False
    )


def _alone(units: Collection[str]) -> str:
    """Return the class of characters that are a token each, as a regular expression; empty if the vocabulary has none."""
    characters = (UNSPACED + SPACE) * (SPACE in units) + JOIN * (JOIN in units)
    return f"[{characters}]" if characters else ""


def _prepare(tokenizer: Any, *, verbatim: bool, units: Collection[str] = (SPACE, JOIN)) -> None:
    """Set the normalizer and the splitting into words. What is for marks that ``units`` lack is left out, as it takes time."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    # In lower case punctuation ends a word: Unicode's, and ASCII's symbols, as BertPreTokenizer has it.
    ends = r"\s" if verbatim else r"\s\p{P}$+<=>^`|~"
    inside = f"[^{ends}{UNSPACED}]"
    # \K makes the match empty, so that the next one begins behind it.
    normal: list[Any] = [normalizers.NFC(), normalizers.Replace(Regex(rf"{inside}{{{LONGEST}}}\K(?={inside})"), JOIN)]
    words: list[Any] = [pre_tokenizers.WhitespaceSplit() if verbatim else pre_tokenizers.BertPreTokenizer()]
    if not verbatim:
        normal.insert(1, normalizers.Lowercase())
    if SPACE in units:
        spaces = rf"(?<=[{UNSPACED}])\s+(?=\S)|(?<=\S)\s+(?=[{UNSPACED}])"
        normal.append(normalizers.Replace(Regex(spaces), SPACE))
    if JOIN not in units:
        words.append(pre_tokenizers.Split(JOIN, "removed"))
    if alone := _alone(units):
        words.append(pre_tokenizers.Split(Regex(alone), "isolated"))
    tokenizer.normalizer = normalizers.Sequence(normal)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)


class VocabularyOptions(Options):
    """Define the options that all language models from scratch have."""

    dim: int = Field(128, ge=1, le=65536, description="channels of embeddings and states")
    vocabulary: list[str] | None = Field(None, description="WordPiece units; training learns them from the data")
    verbatim: bool = Field(
        False,
        description="keep capitals and split at spaces only, so that texts are reproduced exactly; otherwise texts are in "
        "lower case and punctuation is separate, which needs fewer examples",
    )
    max_vocabulary: int = Field(8000, ge=10, description="largest number of units to learn")

    @field_validator("vocabulary")
    @classmethod
    def _begins_with_special(cls, value: list[str] | None) -> list[str] | None:
        if value and (value[: len(SPECIAL)] != SPECIAL or len(set(value)) != len(value)):
            raise ValueError(f"must be distinct units that begin with {', '.join(SPECIAL)}")
        return value


class LearnedVocabulary:
    """Provide ``tokenizer`` and `learn` to language models from scratch, as a mixin.

    The vocabulary is learned from the training texts. Units 0 to 3 are [PAD], [BOS], [EOS] and [UNK]. The tokenizer adds none of
    them to a text; the task does.
    """

    options: Any
    has_local_tokenizer = False  # a check need not read one that always fits

    @classmethod
    def learn(cls, options: Any, texts: Iterable[str]) -> dict[str, Any]:
        if options.vocabulary:
            return {}
        return {"vocabulary": learn_vocabulary(texts, options.max_vocabulary, verbatim=options.verbatim)}

    @cached_property
    def tokenizer(self) -> Any:
        return make_tokenizer(self.options.vocabulary, verbatim=self.options.verbatim)
