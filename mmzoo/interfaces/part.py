"""Define `Part`, the base of encoders, fusions, language models and tasks, and `Options`, the base of their options.

Every part is built twice: first on the meta device, from its options alone, for the compatibility check; then for real.
So ``__init__`` may read configurations but never weights; weights come in `Part.load_pretrained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

if TYPE_CHECKING:
    pass


class Options(BaseModel):
    """Base of every part's options: unknown keys are errors, and the schema is the documentation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Part(nn.Module):
    """The base of encoders, fusions, language models and tasks.

    Class attributes:
        Options: the pydantic schema of its options (a subclass of `mmzoo.interfaces.part.Options`).
        default_train: the training policy when a recipe names none.
        pretrainable: whether `load_pretrained` has weights to fetch.

    Attributes:
        model_trains: whether the model that it is a part of is in training mode; ``training`` says that of the part, which is
            not if it is frozen.
    """

    Options: ClassVar[type[BaseModel]] = Options
    default_train: ClassVar[str] = "full"
    pretrainable: ClassVar[bool] = False
    model_trains: bool = False

    def load_pretrained(self) -> None:
        """Replace every parameter by its pretrained value, fetching it if need be. Called on a part built on the
        meta device; afterwards nothing of it may be there.

        Raises:
            SourceError: the weights cannot be fetched or read.
        """
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Read what a checkpoint folder holds of it beside weights and options, such as a tokenizer that has no other source.
        Called when the folder is loaded, before the weights."""

    def blocks(self) -> Sequence[nn.Module]:
        """Its repeated blocks, from input to output, for ``last:N`` and ``lora:r``; empty if it has none. Keep them under
        another name: a module that is assigned to ``self.blocks`` is not found."""
        return ()

    def lock(self) -> dict[str, Any]:
        """Where its pretrained weights came from: ``{"source": "hub" | "folder" | "package", "id": str,
        "commit": str | None, "files": {name: sha256}}``; empty if they came from nowhere."""
        return {}
