"""Define `Part`, the base of encoders, fusions, language models and tasks, and `Options`, the base of their options.

Every part is built twice: first on the meta device, from its options alone, for the check of compatibility; then with real
tensors. Therefore ``__init__`` may read configurations but must not read weights; `Part.load_pretrained` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn


class Options(BaseModel):
    """Define the base of every part's options: unknown keys are errors, and the schema is the documentation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Part(nn.Module):
    """Define the base of encoders, fusions, language models and tasks.

    Class attributes:
        Options: the pydantic schema of its options (a subclass of `mmzoo.interfaces.part.Options`).
        default_train: the training policy if a recipe names none.
        pretrainable: whether `load_pretrained` can fetch weights.

    Attributes:
        model_trains: whether the whole model is in training mode; ``training`` is about the part alone, and false if it is
            frozen.
    """

    Options: ClassVar[type[BaseModel]] = Options
    default_train: ClassVar[str] = "full"
    pretrainable: ClassVar[bool] = False
    model_trains: bool = False

    def load_pretrained(self) -> None:
        """Replace every parameter and buffer by its pretrained value, and fetch the weights if needed.

        The part was built on the meta device; afterwards none of its tensors may be on it.

        Raises:
            SourceError: the weights cannot be fetched or read.
        """
        raise NotImplementedError

    def restore(self, folder: Path) -> None:
        """Read what a checkpoint folder has for this part besides weights and options, such as a tokenizer.

        It is called when the folder is loaded, before the weights are read, and when the part starts from it (``weights``).
        """

    def blocks(self) -> Sequence[nn.Module]:
        """Return the repeated blocks, from input to output, for ``last:N`` and ``lora:r``; empty if there are none.

        Keep the blocks in an attribute with another name: a module that is assigned to ``self.blocks`` would be hidden by this
        method.
        """
        return ()

    @property
    def runs_all_blocks(self) -> bool:
        """Return whether each pass runs each block, equally often whatever the batch holds. If not, processes that share out its
        weights gather all of them at once."""
        return True

    def uncalled(self, module: nn.Module) -> Collection[str]:
        """Return the names of layers of ``module``, one of this part's, whose weights are read by code that does not call them.

        An adapter (``lora:r``) there would do nothing, so they get none.
        """
        return ("out_proj",) if isinstance(module, nn.MultiheadAttention) else ()

    def standalone_options(self) -> dict[str, Any] | None:
        """Return the options that build the same part without its source, for a checkpoint that holds all weights; None if there
        are none. What `restore` reads is in the checkpoint."""
        return None

    def lock(self) -> dict[str, Any]:
        """Return the source of the pretrained weights; empty if there are none.

        The mapping is ``{"source": "hub" | "folder" | "package", "id": str, "commit": str | None, "files": {name: sha256}}``.
        """
        return {}
