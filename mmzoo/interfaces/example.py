"""Define `Example`, one item of a data set, and the placeholders that say where its inputs stand in a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mmzoo.modalities.reader import NONE

if TYPE_CHECKING:
    pass

FIELD_MODALITIES = ("image", "audio")  # modalities that are fields of `Example` and parameters of `predict` and `generate`
PLACEHOLDER = "<image>"  # where in a text an image stands
PLACEHOLDER_ID = -200  # the id of a placeholder of any modality; no token has it (as in LLaVA's original code)


def placeholder(modality: str) -> str:
    """What marks in a text where an input of the modality stands: ``<image>``, ``<audio>``."""
    return PLACEHOLDER if modality == NONE else f"<{modality}>"


@dataclass(frozen=True)
class Example:
    """One example: its input, ``image`` or ``audio`` (anything that the encoder's `mmzoo.modalities.reader.Reader` opens, such as
    `mmzoo.modalities.image.open_image`, or a list of such), ``text`` (a question or prompt) and ``targets``, the answers, captions or
    labels that count as right; training uses the first. ``id`` names it in messages. An example may hold inputs of several
    modalities: a model sees those of its encoder's. ``others`` has the inputs of a modality that a plugin brings, by its name:
    ``Example("1", others={"series": array}, targets=("rising",))``.

    ``<image>`` or ``<audio>`` in the text says where each input stands; a single one needs none."""

    id: str
    image: Any = None
    text: str = ""
    targets: tuple[str, ...] = ()
    audio: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, modality: str) -> list[Any]:
        """Its inputs of a modality, one or more; [None] if it has none. Of the modality ``"none"``, the first that it has."""
        own = self._own(modality)
        given = getattr(self, own) if own in FIELD_MODALITIES else self.others.get(own)
        return list(given) if isinstance(given, list | tuple) else [given]

    def with_inputs(self, modality: str, inputs: Sequence[Any]) -> Example:
        """The same with other inputs."""
        own, changed = self._own(modality), inputs[0] if len(inputs) == 1 else list(inputs)
        if own in FIELD_MODALITIES:
            known: dict[str, Any] = {own: changed}
            return replace(self, **known)
        return replace(self, others={**self.others, own: changed})

    def _own(self, modality: str) -> str:
        return modality if modality != NONE else next(iter(self.modalities), "image")

    @property
    def modalities(self) -> list[str]:
        """Those that it has inputs of."""
        own = [modality for modality in FIELD_MODALITIES if getattr(self, modality) is not None]
        return own + [modality for modality, given in self.others.items() if given is not None]

    @property
    def images(self) -> list[Any]:
        """Its images, one or more."""
        return self.inputs("image")
