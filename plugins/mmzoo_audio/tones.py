"""Generate beeps and their descriptions: clips that are made when they are asked for, by a seed, so that there is nothing to
download.

A clip holds one to four beeps of one length, pitch and timbre; its caption says so: "three short high hissing beeps". What the
caption does not say differs from clip to clip: the pitch within its band, the lengths within theirs, gaps, loudness, where the
first begins, noise.

The splits measure generalisation to new combinations: of the 72, 14 are never in training (`HELD_OUT`), while each pair of
their properties is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field

from mmzoo.api import Dataset, Example, Options
from mmzoo_audio.clips import RATE

COUNTS = ("one", "two", "three", "four")
LENGTHS = {"short": (0.06, 0.09), "long": (0.18, 0.25)}  # seconds
PITCHES = {"low": (200, 300), "middle": (500, 700), "high": (1200, 1700)}  # Hz
TIMBRES = ("pure", "bright", "hissing")  # a sine, a sawtooth, noise of an octave
GAPS = (0.06, 0.12)
FADE = 0.005

Combination = tuple[str, str, str, str]
COMBINATIONS: list[Combination] = list(product(COUNTS, LENGTHS, PITCHES, TIMBRES))


def _is_held_out(combination: Combination) -> bool:
    """Choose a diagonal through the properties, so that every pair of them stays in training."""
    values = (COUNTS, tuple(LENGTHS), tuple(PITCHES), TIMBRES)
    places = [names.index(name) for names, name in zip(values, combination, strict=True)]
    return (places[0] + places[1] + 2 * places[2] + places[3]) % 5 == 1


HELD_OUT = [combination for combination in COMBINATIONS if _is_held_out(combination)]
SEEN = [combination for combination in COMBINATIONS if not _is_held_out(combination)]
SPLITS = {"train": SEEN, "validation": SEEN, "test": HELD_OUT}


class Tones(Dataset):
    """Provide clips without text; the target is the caption. An example's id is ``test/12``.

    ``validation`` has new clips of the combinations of ``train``, ``test`` has the combinations that are not in it.
    """

    modality = "audio"

    class Options(Options):
        train_clips: int = Field(1440, ge=1, le=1_000_000, description="clips to train on")
        validation_clips: int = Field(288, ge=1, le=1_000_000, description="new clips of the same combinations")
        test_clips: int = Field(280, ge=1, le=1_000_000, description="clips of combinations that are not in training")
        seed: int = Field(0, ge=0, description="decides what varies between clips")

    def splits(self) -> list[str]:
        return list(SPLITS)

    def load(self, split: str) -> Clips:
        return Clips(split, getattr(self.options, f"{split}_clips"), self.options.seed)


class Clips(Sequence[Example]):
    """Hold the examples of a split; each is made anew when it is asked for, and is always the same."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.split, self.count, self.seed = split, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        i = range(self.count)[index]
        combinations = SPLITS[self.split]
        combination = combinations[i % len(combinations)]
        random = np.random.default_rng([self.seed, list(SPLITS).index(self.split), i])
        audio = {"array": beeps(combination, random), "sampling_rate": RATE}
        return Example(f"{self.split}/{i}", targets=(caption(combination),), audio=audio)


def caption(combination: Combination) -> str:
    count, length, pitch, timbre = combination
    return f"{count} {length} {pitch} {timbre} beep{'s' if count != 'one' else ''}"


def beeps(combination: Combination, random: np.random.Generator) -> np.ndarray:
    """Return a clip, int16 [samples] at `RATE`."""
    count, length, pitch, timbre = combination
    frequency = random.uniform(*PITCHES[pitch])
    seconds = random.uniform(*LENGTHS[length])
    times = np.arange(int(seconds * RATE)) / RATE
    envelope = np.clip(np.minimum(times, times[::-1]) / FADE, 0, 1)
    pieces = [np.zeros(int(random.uniform(0, 0.1) * RATE))]
    for _ in range(COUNTS.index(count) + 1):
        pieces += [envelope * wave(timbre, frequency, times, random), np.zeros(int(random.uniform(*GAPS) * RATE))]
    clip = random.uniform(0.1, 0.8) * np.concatenate(pieces)
    clip += random.uniform(0.002, 0.01) * random.standard_normal(len(clip))
    return np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16)


def wave(timbre: str, frequency: float, times: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a sound [samples] of that frequency, or around it, in [-1, 1]."""
    if timbre == "hissing":
        spectrum = np.fft.rfft(random.standard_normal(len(times)))
        pitches = np.fft.rfftfreq(len(times), 1 / RATE) / frequency
        noise = np.fft.irfft(spectrum * ((pitches > 2**-0.5) & (pitches < 2**0.5)), len(times))
        return noise / np.abs(noise).max()
    turns = frequency * times + random.uniform()
    return 2 * (turns % 1) - 1 if timbre == "bright" else np.sin(2 * np.pi * turns)
