"""Open, transform and batch the inputs of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmzoo.errors import MmzooError, TrainingError
from mmzoo.modalities.reader import Reader, name_of


@dataclass
class InputPipeline:
    """Open, transform and batch the inputs of an encoder. The first fields are those of `Encoder`. Instances can be pickled.

    ``augmentations`` are objects as `mmzoo.interfaces.Augmentation` defines them, of this modality; only training has any.
    """

    modality: str
    reader: Reader
    transform: Callable[[Any], Tensor] | None
    variable_length: bool = False
    augmentations: Sequence[Any] = ()
    _blank: Tensor | None = field(default=None, repr=False)

    def open(self, source: Any) -> Tensor:
        """Open, augment and transform one input.

        Raises:
            BadInput: it is missing or cannot be read. TrainingError: an augmentation cannot change it.
        """
        if self.transform is None:
            return torch.zeros(0)
        value = self.reader.read(source)
        for each in self.augmentations:
            with self._explain(each, source):
                value = each.opened(value)
        tensor = self.transform(value)
        for each in self.augmentations:
            with self._explain(each, source):
                changed = each.transformed(tensor)
                if changed.shape != tensor.shape:
                    raise ValueError(f"it makes {list(changed.shape)} of a tensor {list(tensor.shape)}")
            tensor = changed
        return tensor

    @contextmanager
    def _explain(self, augmentation: Any, source: Any) -> Iterator[None]:
        """Raise an augmentation's errors as a `TrainingError` that names it and the input."""
        try:
            yield
        except MmzooError:
            raise
        except Exception as error:
            name, reason = f"{type(augmentation).__name__} ({augmentation.options})", " ".join(str(error).split())[:200]
            problem = f"data.augment.{self.modality}: {name} cannot change {self.modality} {name_of(source)}: {reason}"
            raise TrainingError(f"{problem}. Change its options, or leave it out") from error

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
