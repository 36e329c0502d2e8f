"""Define `Example`, one item of a data set, and the placeholders that mark the place of its inputs in a text."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmzoo.common.sanitize import whole
from mmzoo.errors import DataError
from mmzoo.modalities.reader import NONE, is_missing

INPUT_KEYWORDS = ("image", "audio", "video")  # modalities that are keywords of `Example`, `predict` and `generate`
PLACEHOLDER = "<image>"  # marks the place of an image in a text
# The id of the first modality's placeholder, which no token has (as in LLaVA's original code); further modalities count down.
PLACEHOLDER_ID = -200

Targets = tuple[str, ...] | Mapping[str, tuple[str, ...]]


def placeholder(modality: str) -> str:
    """Return the text that marks the place of an input of the modality: ``<image>``, ``<audio>``."""
    return PLACEHOLDER if modality == NONE else f"<{modality}>"


@dataclass(frozen=True, init=False)
class Example:
    """Represent one item of a data set: its inputs, its text and its targets.

    A model reads the inputs of its encoders' modalities. ``<image>`` or ``<audio>`` in the text marks the place of each input; a
    single input needs none.

    Attributes:
        id: names the example in messages.
        inputs: by modality an input, or a list of inputs: anything that the encoder's `mmzoo.modalities.reader.Reader` opens.
        text: a question or prompt.
        targets: the answers, captions or labels that count as right; or a mapping with those of each task. A tuple serves every
            task. Where they are alternatives, as captions are, training uses one in each epoch: see `drawn`.
        draw: the seed of a training run, the number of the example and the epoch; None outside training.
    """

    id: str
    inputs: Mapping[str, Any]
    text: str
    targets: Targets
    draw: tuple[int, int, int] | None = field(default=None, compare=False, repr=False)

    def __init__(
        self,
        id: str,
        image: Any = None,
        text: str = "",
        targets: Targets = (),
        *,
        audio: Any = None,
        video: Any = None,
        inputs: Mapping[str, Any] | None = None,
        draw: tuple[int, int, int] | None = None,
    ) -> None:
        """Create an example; ``image``, ``audio`` and ``video`` are short for items of ``inputs``. An empty path is no input, and
        a missing text (None, NaN) an empty one."""
        given = {"image": image, "audio": audio, "video": video, **(inputs or {})}
        id, targets = str(id), _as_targets(targets, id)
        if not isinstance(text, str):
            if not is_missing(text):
                raise DataError(f"example {id}: the text must be a string (got {text!r})")
            text = ""
        present = {modality: _present(value) for modality, value in given.items() if not is_missing(value)}
        for name, value in {"id": id, "inputs": present, "text": text, "targets": targets, "draw": draw}.items():
            object.__setattr__(self, name, value)

    def of(self, modality: str) -> list[Any]:
        """Return the inputs of a modality as a list, empty if there are none; for ``"none"`` those of the first modality."""
        value = self.inputs.get(modality if modality != NONE else next(iter(self.inputs), ""))
        return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

    def with_inputs(self, modality: str, inputs: Sequence[Any]) -> Example:
        """Return a copy with other inputs of the modality; none if ``inputs`` is empty."""
        own = modality if modality != NONE else next(iter(self.inputs), "image")
        changed = None if not inputs else inputs[0] if len(inputs) == 1 else list(inputs)
        return replace(self, inputs={**self.inputs, own: changed})

    def for_task(self, target: str, *, default: bool = True) -> Example:
        """Return a copy whose ``targets`` are those of one task.

        Args:
            target: the key of the task's targets.
            default: whether the first targets count if there are none of that key.
        """
        if not isinstance(self.targets, Mapping):
            return self
        first = next(iter(self.targets.values()), ()) if default else ()
        return replace(self, targets=tuple(self.targets.get(target, first)))

    def in_epoch(self, seed: int, number: int, epoch: int) -> Example:
        """Return a copy for an epoch of a training run, in which it is the example of that number."""
        example = copy.copy(self)
        object.__setattr__(example, "draw", (seed, number, epoch))
        return example

    def drawn(self, alternatives: Sequence[str]) -> str:
        """Return the one of the alternatives, such as captions, that training uses in this epoch; blank ones are left out.

        It is the first outside training. In training the alternatives are walked through in a random order, so that n epochs use
        each of n once; which one depends on seed, example and epoch only.

        Raises:
            DataError: all are blank.
        """
        texts = [text for text in alternatives if text.strip()]
        if not texts:
            raise DataError(f"example {self.id} has no target text")
        if self.draw is None or len(texts) == 1:
            return texts[0]
        seed, number, epoch = self.draw
        walk, step = divmod(epoch, len(texts))
        return random.Random(f"{seed} {number} {walk}").sample(texts, len(texts))[step]

    @property
    def modalities(self) -> list[str]:
        """List the modalities that have an input."""
        return list(self.inputs)

    @property
    def image(self) -> Any:
        """Return the image, or the list of images; None if there is none."""
        return self.inputs.get("image")

    @property
    def audio(self) -> Any:
        """Return the clip, or the list of clips; None if there is none."""
        return self.inputs.get("audio")


def _present(value: Any) -> Any:
    """Return an input, or a list of inputs without those that are missing."""
    several = isinstance(value, list | tuple) and any(map(is_missing, value))
    return [each for each in value if not is_missing(each)] if several else value


def _as_targets(targets: Any, name: str) -> Targets:
    """Return targets with a single text as a tuple; raise a `DataError` for what is no text."""
    if isinstance(targets, Mapping):
        return {key: _as_tuple(own, name) for key, own in targets.items()}
    return _as_tuple(targets, name)


def _as_tuple(targets: Any, name: str) -> tuple[str, ...]:
    if isinstance(targets, Iterable) and not isinstance(targets, str):
        several = tuple(targets)
    else:
        several = () if is_missing(targets) and targets != "" else (targets,)
    if not all(isinstance(target, str) for target in several):
        raise DataError(f"example {name}: targets must be texts (got {several!r})")
    if cut := next((target for target in several if not target.isascii() and whole(target) != target), None):
        raise DataError(f"example {name}: the target {cut!r} holds half of a surrogate pair, no character; write it anew")
    return several
