"""Define `Augmentation`, a random change of the inputs that a model is trained on."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor

from mmzoo.interfaces.part import Options


class Augmentation:
    """Change inputs of one modality at random, in training only. Register a subclass as an entry of kind ``augmentation``.

    Random numbers come from the global generators of torch, NumPy or Python only. Training seeds them for each batch by its place
    in the run, so that data workers and a resumed run draw the same. It runs in data workers, so it can be pickled, and it keeps
    nothing of an input.

    Class attributes:
        Options: the pydantic schema of its options.
        modality: the modality of the inputs that it changes.
    """

    Options: ClassVar[type[BaseModel]] = Options
    modality: ClassVar[str] = "image"

    def __init__(self, options: Any) -> None:
        self.options = options

    def opened(self, value: Any) -> Any:
        """Return what the modality's reader opened, changed, as the same type; ``value`` itself must stay as it is.

        For images it is an RGB image of PIL; for audio an object with ``samples`` [samples], float32, and their ``rate``.
        """
        return value

    def transformed(self, tensor: Tensor) -> Tensor:
        """Return the encoder's input, after its transform, changed: of the same type and shape.

        It is [channels, height, width] of most images, and [tiles, channels, height, width] where the fusion cuts them.
        """
        return tensor
