"""Register encoders and language models that start from scratch and learn everything from the data."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl


def _entry(kind: str, name: str, target: str, modality: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return the entry of a part; ``tiny`` has the options that make it small."""
    return Entry(kind, name, f"mmzoo_scratch.{target}", summary, modality, "Apache-2.0", source, tiny=tiny)


# fmt: off
_ENCODERS = (
    _entry("encoder", "cnn", "cnn:CNN", "image", "LeCun et al. 1998, https://doi.org/10.1109/5.726791",
           "a small convolutional network for small pictures, from scratch", image_size=16, channels=[8, 16]),
    _entry("encoder", "none", "nothing:NoEncoder", "",
           "prompt tuning, Lester et al. 2021, https://arxiv.org/abs/2104.08691, for its use with a prefix",
           "has no input: with fusion 'none' for text alone, with a prefix for a learned constant prompt"),
)

_LANGUAGE_MODELS = (
    _entry("language_model", "lstm", "lstm:LSTM", "text",
           "Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735",
           "a long short-term memory network that reads and writes, its vocabulary learned from the data", dim=16),
    _entry("language_model", "bag-of-words", "bag:BagOfWords", "text",
           "Joulin et al. 2017 (fastText), https://arxiv.org/abs/1607.01759",
           "the mean of learned word vectors, from scratch", dim=16),
)
# fmt: on


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return list(_ENCODERS)


@hookimpl
def mmzoo_language_models() -> list[Entry]:
    return list(_LANGUAGE_MODELS)
