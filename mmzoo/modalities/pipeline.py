"""Open, transform and batch the inputs of an encoder."""

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
    """Open, transform and batch the inputs of an encoder. The fields are those of `Encoder`. Instances can be pickled."""

    modality: str
    reader: Reader
    transform: Callable[[Any], Tensor] | None
    variable_length: bool = False
    _blank: Tensor | None = field(default=None, repr=False)

    def open(self, source: Any) -> Tensor:
        """Open and transform one input; raise `BadInput` if it is missing or cannot be read."""
        if self.transform is None:
            return torch.zeros(0)
        return self.transform(self.reader.read(source))

    def blank(self) -> Tensor:
        if self._blank is None:
            self._blank = torch.zeros(0) if self.transform is None else self.reader.blank(self.transform)
        return self._blank

    def batch(self, opened: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``inputs`` [inputs, ...]; with ``variable_length`` padded with zeros, and ``lengths`` [inputs]."""
        if not self.variable_length:
            return {"inputs": torch.stack(list(opened))}
        lengths = torch.tensor([len(each) for each in opened])
        return {"inputs": pad_sequence(list(opened), batch_first=True), "lengths": lengths}
