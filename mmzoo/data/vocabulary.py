"""Learn tokenizers from the training texts, for language models that are trained from scratch.

The vocabulary is a list of WordPiece units (Schuster and Nakajima 2012), stored in the recipe as plain data, so that a checkpoint
can rebuild the tokenizer. Frequent words become one token each. Every character of the training texts is a unit, so every text
with these characters can be encoded.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator

from mmzoo.interfaces import Options

PAD, BOS, EOS, UNK = SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]


def learn_vocabulary(texts: Iterable[str], size: int, *, verbatim: bool = False) -> list[str]:
    """Return the units of a WordPiece vocabulary of at most ``size``, special tokens first."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    _prepare(tokenizer, verbatim=verbatim)
    texts = list(texts)
    characters = {c for text in texts for c in tokenizer.normalizer.normalize_str(text) if not c.isspace()}
    # The trainer breaks ties by id, and numbers the characters inside words in hash order, which differs between processes.
    # Passing them as special tokens gives them the same ids in every run.
    first = SPECIAL + sorted("##" + c for c in characters)
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return SPECIAL + sorted(set(tokenizer.get_vocab()) - set(SPECIAL))


def default_vocabulary(*, verbatim: bool = False) -> list[str]:
    """Return the vocabulary before training: the printable ASCII characters."""
    characters = [c for c in string.printable if not c.isspace() and (verbatim or not c.isupper())]
    return SPECIAL + sorted(characters + ["##" + c for c in characters])


def make_tokenizer(vocabulary: list[str] | None, *, verbatim: bool = False) -> Any:
    """Return a `transformers.PreTrainedTokenizerFast` for a vocabulary; for `default_vocabulary` if it is empty."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    units = vocabulary or default_vocabulary(verbatim=verbatim)
    built = Tokenizer(models.WordPiece({unit: i for i, unit in enumerate(units)}, unk_token=UNK))
    _prepare(built, verbatim=verbatim)
    built.decoder = decoders.WordPiece(prefix="##", cleanup=not verbatim)
    return PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False
    )


def _prepare(tokenizer: Any, *, verbatim: bool) -> None:
    from tokenizers import normalizers, pre_tokenizers

    if verbatim:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


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

    @classmethod
    def learn(cls, options: Any, texts: Iterable[str]) -> dict[str, Any]:
        if options.vocabulary:
            return {}
        return {"vocabulary": learn_vocabulary(texts, options.max_vocabulary, verbatim=options.verbatim)}

    @cached_property
    def tokenizer(self) -> Any:
        return make_tokenizer(self.options.vocabulary, verbatim=self.options.verbatim)
