"""Define `Example`, one item of a data set, and the placeholders that mark the place of its inputs in a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmzoo.modalities.reader import NONE

FIELD_MODALITIES = ("image", "audio")  # modalities that are fields of `Example` and parameters of `predict` and `generate`
PLACEHOLDER = "<image>"  # marks the place of an image in a text
PLACEHOLDER_ID = -200  # the id of a placeholder of any modality, which no token has (as in LLaVA's original code)


def placeholder(modality: str) -> str:
    """Return the text that marks the place of an input of the modality: ``<image>``, ``<audio>``."""
    return PLACEHOLDER if modality == NONE else f"<{modality}>"


@dataclass(frozen=True)
class Example:
    """Represent one item of a data set: its inputs, its text and its targets.

    Several modalities may be present in one example; a model reads only the inputs of its encoder's modality. ``<image>`` or
    ``<audio>`` in the text marks the place of each input; a single input needs none.

    Args:
        id: names the example in messages.
        image: an image, or a list of images: anything that `mmzoo.modalities.image.open_image` opens.
        text: a question or prompt.
        targets: the answers, captions or labels that count as right; training uses the first.
        audio: a clip, or a list of clips: anything that the encoder's `mmzoo.modalities.reader.Reader` opens.
        others: inputs of modalities that plugins add, by name: ``Example("1", others={"series": array}, targets=("rising",))``.
    """

    id: str
    image: Any = None
    text: str = ""
    targets: tuple[str, ...] = ()
    audio: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, modality: str) -> list[Any]:
        """Return the inputs of a modality as a list, [None] if there are none; for ``"none"`` of the first that is present."""
        own = self._own(modality)
        value = getattr(self, own) if own in FIELD_MODALITIES else self.others.get(own)
        return list(value) if isinstance(value, list | tuple) else [value]

    def with_inputs(self, modality: str, inputs: Sequence[Any]) -> Example:
        """Return a copy with other inputs of the modality."""
        own, changed = self._own(modality), inputs[0] if len(inputs) == 1 else list(inputs)
        fields: dict[str, Any] = {own: changed} if own in FIELD_MODALITIES else {"others": {**self.others, own: changed}}
        return replace(self, **fields)

    def _own(self, modality: str) -> str:
        return modality if modality != NONE else next(iter(self.modalities), "image")

    @property
    def modalities(self) -> list[str]:
        """List the modalities that have an input."""
        own = [modality for modality in FIELD_MODALITIES if getattr(self, modality) is not None]
        return own + [modality for modality, value in self.others.items() if value is not None]

    @property
    def images(self) -> list[Any]:
        """Return the images as a list; [None] if there are none."""
        return self.inputs("image")
