"""Define `Dataset`, a source of examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from mmzoo.interfaces.example import Example
from mmzoo.interfaces.part import Options
from mmzoo.modalities.image import open_image as open_image  # where it was first, and people look for it


class Dataset(ABC):
    """A source of examples. ``Options`` is its schema; a subclass is registered as an entry of kind ``dataset``.

    Class attributes:
        modality: that of its examples' inputs, for suggestions where another is needed.
    """

    Options: ClassVar[type[BaseModel]] = Options
    modality: ClassVar[str] = "image"

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of its splits, e.g. ``["train", "test"]``."""

    @abstractmethod
    def load(self, split: str) -> Sequence[Example] | Iterable[Example]:
        """The examples of a split: a sequence, or an iterable (started anew by each ``iter``) if it is streamed.

        Raises:
            DataError: it is empty or lacks a column; `BadInput` comes only when an input is opened.
        """
