"""Make remarks of which a text, a face and a voice decide the sentiment together. One or two of them say nothing about it.

Each of the three is friendly or not: the remark praises or complains ("the soup was really lovely today"), the face smiles or
frowns (a picture of 32 x 32), the voice rises or falls (a tone of 0.5 to 1 s at 16 kHz). The sentiment is positive if an even
number of the three is unfriendly: each contradiction reverses what is meant. This is parity (XOR), so a model without one of the
inputs is right in half of the cases, and so is one that adds up what each input says by itself.

Nothing else tells them apart: other words, place, size, colours, pitch, length, loudness and noise are drawn at random. What an
example is depends only on the seed, its split and its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, Options
from mmzoo_datasets.columns import check_targets

SPLITS = ("train", "validation", "test")
TARGETS = ("sentiment", "topic", "remark", "face", "voice")
TOPICS = {
    "food": ("soup", "bread", "cake", "salad"),
    "film": ("plot", "actor", "scene", "ending"),
    "sport": ("match", "team", "goal", "race"),
    "weather": ("rain", "wind", "sky", "storm"),
}
COMPLAINTS, PRAISE = ("awful", "bad", "boring", "dreadful", "poor", "sad"), ("fine", "good", "great", "lovely", "nice", "superb")
FORMS = (
    "the {noun} was {how} {word} {when}",
    "{when} the {noun} was {how} {word}",
    "{how} {word} was the {noun} {when}",
    "the {noun} {when} seemed {how} {word} to us",
)
HOW, WHEN = ("really", "quite", "so", "very"), ("today", "yesterday", "again", "at last")
SIDE, RATE = 32, 16_000
SINE = np.sin(2 * np.pi * np.arange(4096) / 4096)
PURPOSES = ("case", "missing", "text", "image", "audio")
CASES = 2**3 * len(TOPICS)  # every block of this many examples has each case once


class ThreeSignals(Dataset):
    """Provide a text, a picture and a clip an example.

    The targets are ``sentiment``, for which all three are needed, and ``topic`` and ``remark``, ``face`` and ``voice``, which one
    of them says alone. Splits share no random numbers.
    """

    class Options(Options):
        train_size: int = Field(8000, ge=CASES, multiple_of=CASES, description="examples of `train`")
        validation_size: int = Field(1600, ge=CASES, multiple_of=CASES, description="examples of `validation`")
        test_size: int = Field(1600, ge=CASES, multiple_of=CASES, description="examples of `test`")
        seed: int = Field(0, ge=0, lt=2**32, description="of everything that is drawn")
        noise: float = Field(
            0.05,
            ge=0,
            le=1,
            description="standard deviation of the noise: in pictures of 0 to 1, in clips of the tone's amplitude",
        )
        missing: float = Field(
            0.0,
            ge=0,
            le=1,
            description="share of the examples that lack either the picture or the clip, so that their sentiment cannot be told",
        )
        limit: int | None = Field(None, ge=1, description="only this many examples of each split, from the first")
        without_text: bool = Field(False, description="leave the texts empty, so that the sentiment cannot be told")

    def splits(self) -> list[str]:
        return list(SPLITS)

    def load(self, split: str) -> Sequence[Example]:
        """Return the examples of a split, each made when it is asked for.

        Raises:
            DataError: there is no such split, or a task among several has no targets here.
        """
        if split not in SPLITS:
            raise DataError(f"there is no split '{split}'; there are: {', '.join(SPLITS)}")
        if len(self.wanted) > 1:
            check_targets(self.wanted, TARGETS, "data set 'three-signals'", partial=self.partial)
        return Signals(self.options, split)


class Signals(Sequence[Example]):
    """Make the examples of a split. Can be pickled."""

    def __init__(self, options: Any, split: str) -> None:
        self.options = options
        self.split = split

    def __len__(self) -> int:
        size = int(getattr(self.options, f"{self.split}_size"))
        return min(size, self.options.limit or size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        text, picture, clip, topic = self.case(index)
        noise, missing, chance = self.options.noise, self.options.missing, self._random("missing", index).random()
        return Example(
            f"{self.split}/{index}",
            text="" if self.options.without_text else remark(text, topic, self._random("text", index)),
            image=None if chance < missing / 2 else face(picture, noise, self._random("image", index)),
            audio=None if missing / 2 <= chance < missing else voice(clip, noise, self._random("audio", index)),
            targets={
                "sentiment": ("positive" if text ^ picture ^ clip else "negative",),
                "topic": (topic,),
                "remark": ("praise" if text else "complaint",),
                "face": ("smile" if picture else "frown",),
                "voice": ("rising" if clip else "falling",),
            },
        )

    def case(self, index: int) -> tuple[bool, bool, bool, str]:
        """Return whether the text, the picture and the clip of an example are friendly, and its topic."""
        block, place = divmod(index, CASES)
        topic, bits = divmod(int(self._random("case", block).permutation(CASES)[place]), 2**3)
        return bool(bits & 4), bool(bits & 2), bool(bits & 1), list(TOPICS)[topic]

    def _random(self, purpose: str, index: int) -> np.random.Generator:
        # Always four numbers, because numpy takes (1, 2) and (1, 2, 0) for the same seed.
        return np.random.default_rng((self.options.seed, SPLITS.index(self.split), PURPOSES.index(purpose), index))


def remark(friendly: bool, topic: str, random: np.random.Generator) -> str:
    """Return a sentence about a thing of the topic."""
    choices = (FORMS, TOPICS[topic], PRAISE if friendly else COMPLAINTS, HOW, WHEN)
    form, noun, word, how, when = (options[random.integers(len(options))] for options in choices)
    return form.format(noun=noun, word=word, how=how, when=when)


def face(friendly: bool, noise: float, random: np.random.Generator) -> Image.Image:
    """Return a picture of a disc with two eyes and a mouth, whose ends are up or down."""
    radius = random.uniform(8, 13)
    x, y = random.uniform(radius + 1, SIDE - radius - 1, 2)
    skin, ground = random.uniform(0.4, 1, 3), random.uniform(0.3, 1, 3)
    places = np.arange(SIDE) + 0.5
    across, down = (places - x) / radius, (places[:, None] - y) / radius

    def drawn(inside: np.ndarray) -> np.ndarray:
        """Return the opacity [side, side, 1] of what lies ``inside`` (in radii, positive within), with soft edges."""
        return np.clip(inside * radius + 0.5, 0, 1)[..., None]

    bend = 0.2 if friendly else -0.2
    mouth = np.where(abs(across) < 0.55, 0.11 - abs(down - 0.4 - bend * (1 - 2 * (across / 0.55) ** 2)), -1)
    eyes = 0.15 - np.hypot(abs(across) - 0.35, down + 0.3)
    head = drawn(1 - np.hypot(across, down))
    ink = np.maximum(drawn(mouth), drawn(eyes))
    pixels = (ground * (1 - head) + skin * head) * (1 - ink) + noise * random.standard_normal((SIDE, SIDE, 3))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def voice(friendly: bool, noise: float, random: np.random.Generator) -> dict[str, Any]:
    """Return a clip of a tone that rises or falls by 0.5 to 1 octave, about a random pitch."""
    count, octaves = random.integers(RATE // 2, RATE), random.uniform(0.5, 1) * (1 if friendly else -1)
    middle = 200 * 2 ** random.uniform(0, 2)
    # The pitch is middle * 2 ** (octaves * t), with t from -0.5 to 0.5; this is its integral, in periods.
    passed = middle * count / RATE / octaves / np.log(2) * np.exp2(octaves * np.linspace(-0.5, 0.5, count)) + random.random()
    wave = (SINE + random.uniform(0, 0.5) * np.tile(SINE[::2], 2)).astype(np.float32)  # with an overtone
    tone = wave[(passed * len(SINE)).astype(np.int32) & (len(SINE) - 1)]
    tone += np.float32(noise) * random.standard_normal(count, np.float32)
    fade = np.linspace(0, 1, RATE // 50, dtype=np.float32)
    tone[: len(fade)] *= fade
    tone[-len(fade) :] *= fade[::-1]
    return {"array": np.float32(random.uniform(0.1, 0.5)) * tone.clip(-2, 2), "sampling_rate": RATE}
