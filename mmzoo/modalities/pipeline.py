"""Turn an encoder's inputs into a batch: open, transform, stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmzoo.modalities.reader import Reader


@dataclass
class InputPipeline:
    """What becomes of an encoder's inputs before it sees them: they are read, transformed and batched. Picklable.

    ``transform`` is None for an encoder that looks at nothing; ``variable_length`` as `mmzoo.interfaces.encoder.Encoder` has it.
    """

    modality: str
    reader: Reader
    transform: Callable[[Any], Tensor] | None
    variable_length: bool = False
    _blank: Tensor | None = field(default=None, repr=False)

    def open(self, source: Any) -> Tensor:
        """One input, opened and transformed.

        Raises:
            BadInput: there is none, or it cannot be read.
        """
        if self.transform is None:
            return torch.zeros(0)
        if source is None:
            raise self.reader.error(f"there is no {self.modality}")
        return self.transform(self.reader.read(source))

    def blank(self) -> Tensor:
        """The input for nothing at all."""
        if self.transform is None:
            return torch.zeros(0)
        if self._blank is None:
            self._blank = self.reader.blank(self.transform)
        return self._blank

    def batch(self, opened: Sequence[Tensor]) -> dict[str, Tensor]:
        """``inputs`` [inputs, ...], and if they vary ``input_lengths`` [inputs]: shorter ones have zeros at their end."""
        if not self.variable_length:
            return {"inputs": torch.stack(list(opened))}
        lengths = torch.tensor([len(each) for each in opened])
        return {"inputs": pad_sequence(list(opened), batch_first=True), "input_lengths": lengths}
