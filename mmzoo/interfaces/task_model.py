"""Define `TaskModel`, the part of the model's interface that a task may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from mmzoo.interfaces.features import Features
from mmzoo.interfaces.fusion import Fusion
from mmzoo.interfaces.language_model import LanguageModel

if TYPE_CHECKING:
    from mmzoo.interfaces.task import TextContext


@dataclass
class States:
    """Hold the hidden states of a fused text.

    Args:
        hidden: [batch, positions, dim].
        mask: [batch, text], 1 where a token of the text is real.
        text: the positions of the text's tokens, as in `FusedInput`.
    """

    hidden: Tensor
    mask: Tensor
    text: slice | Tensor


class TaskModel(Protocol):
    """Define the part of `MultimodalModel` that tasks may use: its parts, and the steps from features and text to states and
    text.
    """

    fusion: Fusion
    language_model: LanguageModel

    def text_context(self) -> TextContext:
        """Return what tasks need to lay out text."""

    def states(self, features: Features, ids: Tensor, mask: Tensor, decoder_ids: Tensor | None = None) -> States:
        """Return the hidden states of text ``ids`` [batch, text] under ``mask``, through early and deep fusion."""

    def pooled(self, features: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """Return one fused vector for each example, [batch, dim]."""

    def generate_ids(self, features: Features, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Return new token ids [batch * returned, out] after prompts ``ids`` [batch, text]."""
