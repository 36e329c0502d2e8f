"""Define `Dataset`, a source of examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from mmzoo.interfaces import Example, Options


class Dataset(ABC):
    """Define a source of examples. A subclass is registered as an entry of kind ``dataset``.

    Class attributes:
        Options: the pydantic schema of its options.
        modality: the modality of its inputs, used in suggestions if a model needs another one.

    Attributes:
        wanted: the names of the targets that the model's tasks read, set before the splits are loaded if there are several;
            empty for the data set's own choice.
        partial: whether it is one of several data sets, so that tasks without targets here are left out of `wanted`.
        exact: whether each of these must have targets of its own; else a single name may stand for the data set's choice.
    """

    Options: ClassVar[type[BaseModel]] = Options
    modality: ClassVar[str] = "image"
    wanted: tuple[str, ...] = ()
    exact: bool = False
    partial: bool = False

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def splits(self) -> list[str]:
        """Return the names of the splits, for example ``["train", "test"]``."""

    @abstractmethod
    def load(self, split: str) -> Sequence[Example] | Iterable[Example]:
        """Return the examples of a split: a sequence, or for streams an iterable that starts again at each ``iter``.

        Raises:
            DataError: the split is empty or lacks a column. `BadInput` is raised only when an input is opened.
        """
