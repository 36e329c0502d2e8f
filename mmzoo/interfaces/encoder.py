"""Define `Encoder`, which turns an input of one modality into features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from mmzoo.interfaces.features import Features, FeatureSpec
from mmzoo.interfaces.part import Part
from mmzoo.modalities.image import ImageReader
from mmzoo.modalities.reader import Reader


class Encoder(Part, ABC):
    """Turn inputs of one modality, such as images or audio clips, into `Features`.

    An instance has ``spec`` (a `FeatureSpec`) and ``transform``, a picklable callable. It takes what ``reader`` returns (for
    images a PIL image in RGB) and returns one float tensor (for images [channels, height, width]); `forward` takes a batch of
    them. An encoder without input has ``transform = None``: no input is opened or needed, and `forward` gets ``inputs`` of shape
    [1, 0].

    Class attributes:
        modality: the modality of its inputs: ``"image"``, ``"audio"``, ``"none"`` for an encoder without input, or another name
            in lower case. The name is then a keyword of ``predict`` and ``generate`` and a key of `Example.inputs`.
        reader: a `mmzoo.modalities.reader.Reader`, which opens the inputs. The default opens images.
        variable_length: whether the tensors from ``transform`` differ in the length of their first axis, as audio clips do.
            Shorter ones are padded with zeros at their end, and `forward` also gets their ``lengths``.
    """

    modality: ClassVar[str] = "image"
    reader: ClassVar[Reader] = ImageReader()
    variable_length: ClassVar[bool] = False
    spec: FeatureSpec
    transform: Callable[[Any], Tensor] | None

    @abstractmethod
    def forward(self, inputs: Tensor) -> Features:
        """Return the features of a batch.

        Args:
            inputs: [batch, ...] float; images are [batch, channels, height, width]. If ``variable_length`` is set, a second
                argument ``lengths`` [batch] (integers) follows. The zeros after each length may change nothing but the number of
                masked tokens.

        Returns:
            tokens [batch, tokens, dim] and pooled [batch, pooled_dim], as ``spec`` states them.
        """
