"""Define `TextContext`, what tasks need to know of a model to lay out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmzoo.interfaces.example import PLACEHOLDER_ID, placeholder


@dataclass(frozen=True)
class TextContext:
    """Describe the language model for the layout of text.

    Args:
        tokenizer: a `transformers` tokenizer.
        architecture: `CAUSAL`, `BIDIRECTIONAL` or `SEQ2SEQ`.
        max_length: the context in positions; None if unlimited.
        added: by modality, the positions that the fusions add for each input; None if that depends on the input.
        optional: whether inputs may be missing, so that their positions may all be masked.
    """

    tokenizer: Any
    architecture: str
    max_length: int | None
    added: Mapping[str, int | None]
    optional: bool = False

    @property
    def added_tokens(self) -> int | None:
        """Return the positions that one input of each modality adds; None if that depends on the inputs."""
        known = [count for count in self.added.values() if count is not None]
        return sum(known) if len(known) == len(self.added) else None

    @property
    def placeholders(self) -> dict[str, int]:
        """Return the texts that mark the place of an input, with their ids, by which `Example` texts are encoded."""
        return {placeholder(modality): PLACEHOLDER_ID - number for number, modality in enumerate(self.added)}

    @property
    def modality(self) -> str:
        """Return the first modality."""
        return next(iter(self.added))
