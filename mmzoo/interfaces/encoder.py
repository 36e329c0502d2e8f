"""Define `Encoder`: an input of one modality to features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from mmzoo.modalities.image import ImageReader
from mmzoo.modalities.reader import Reader

if TYPE_CHECKING:
    pass
from mmzoo.interfaces.features import Features, FeatureSpec
from mmzoo.interfaces.part import Part


class Encoder(Part, ABC):
    """An input of a modality, such as an image or a clip, to `Features`.

    An instance has ``spec`` (a `FeatureSpec`) and ``transform``: a picklable callable from what the ``reader`` gives (of images a
    PIL image in RGB) to the float tensor that `forward` takes batched (of images [channels, height, width]); None if it looks
    at nothing, so that no input is opened or needed and ``inputs`` is [1, 0].

    Class attributes:
        modality: what it takes: ``"image"``, ``"audio"``, ``"none"`` if it looks at nothing, or any other name in small letters,
            which is then a keyword of ``predict`` and ``generate`` and a key of `Example.others`.
        reader: how an input of that modality is opened, a `mmzoo.modalities.reader.Reader`; that of images if it says nothing.
        variable_length: whether the tensors that ``transform`` gives differ in the length of their first axis, as those of clips do. They
            are then batched with zeros at the end of the shorter ones, and `forward` is given their ``lengths``.
    """

    modality: ClassVar[str] = "image"
    reader: ClassVar[Reader] = ImageReader()
    variable_length: ClassVar[bool] = False
    spec: FeatureSpec
    transform: Callable[[Any], Tensor] | None

    @abstractmethod
    def forward(self, inputs: Tensor) -> Features:
        """``inputs`` [batch, ...], of images [batch, channels, height, width], to features. An encoder that ``variable_length`` takes
        ``lengths`` [batch] as second argument; the zeros beyond them must change nothing but the number of masked tokens."""
