"""Define `Outputs`: what a model computes from the text of one task and the features of a batch, each when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from mmzoo.interfaces.features import Features
from mmzoo.interfaces.language_model import LanguageModel
from mmzoo.interfaces.text import TextContext


class Outputs(Protocol):
    """Define what a task gets in place of the model: a lazy forward pass over the task's text, with one row an example.

    Every value is computed when it is first asked for, and once. A task that asks only for `features` and `text_only` never runs
    the fused pass.

    Attributes:
        features: the features of the examples, by encoder.
        language_model: for its sizes and its output layer.
    """

    features: Mapping[str, Features]
    language_model: LanguageModel

    @property
    def text(self) -> TextContext:
        """Return the tokenizer and the layout of text."""

    @property
    def mask(self) -> Tensor:
        """Return which tokens of the text are real, [batch, text]: neither padding nor placeholders."""

    @property
    def hidden(self) -> Tensor:
        """Return the states of the text's tokens through early and deep fusion, [batch, text, dim]; those of the decoder for a
        batch with ``decoder_ids``."""

    @property
    def pooled(self) -> Tensor:
        """Return one fused vector for each example, [batch, dim]: the language model's pooled state, through late fusion."""

    @property
    def text_only(self) -> Tensor:
        """Return the language model's pooled state of the text without any fusion, [batch, dim]: the text tower."""

    def predicting(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the fused states [n, dim] from which the text's tokens at ``rows`` [n] and ``columns`` [n] are predicted."""

    def logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the logits [n, vocab] of the text's tokens at ``rows`` [n] and ``columns`` [n]."""

    def write(self, **options: Any) -> Tensor:
        """Return generated token ids [batch * returned, out] after the text; ``options`` are those of `transformers`."""

    def with_text(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Return the outputs of another text (``ids``, ``mask``, perhaps ``decoder_ids``) with the same features."""
