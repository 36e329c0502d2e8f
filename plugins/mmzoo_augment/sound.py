"""Change the samples of clips: loudness, noise, place in time, and SpecAugment's masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from mmzoo.api import Augmentation, Options

Share = Annotated[float, Field(ge=0, le=1)]
FRAME = 0.01  # seconds, as SpecAugment counts time
BINS, HIGHEST = 80, 8000.0  # mel bins up to this frequency, as SpecAugment counts frequency


class SoundAugmentation(Augmentation, ABC):
    """Change the samples of each clip: an object, a dataclass, with ``samples`` [samples], float32, and their ``rate``."""

    modality = "audio"

    def opened(self, value: Any) -> Any:
        if not (hasattr(value, "samples") and hasattr(value, "rate")):
            raise TypeError(f"it changes objects with samples and their rate, not {type(value).__name__}")
        if np.random.rand() >= getattr(self.options, "probability", 1.0):
            return value
        return replace(value, samples=self.change(value.samples, value.rate).astype(np.float32))

    @abstractmethod
    def change(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return changed samples, as many, in a new array."""


class Gain(SoundAugmentation):
    """Make clips louder or softer by a random number of decibels. Samples may then lie outside [-1, 1]."""

    class Options(Options):
        decibels: tuple[float, float] = Field((-6.0, 6.0), description="least and greatest change of loudness")
        probability: Share = Field(1.0, description="share of the clips that are changed")

        @model_validator(mode="after")
        def _ordered(self) -> Any:
            return _ordered(self, "decibels")

    def change(self, samples: np.ndarray, rate: int) -> np.ndarray:
        return samples * 10 ** (np.random.uniform(*self.options.decibels) / 20)


class Noise(SoundAugmentation):
    """Add white Gaussian noise whose power is a random number of decibels below that of the clip. Silence stays silent."""

    class Options(Options):
        snr: tuple[float, float] = Field((10.0, 40.0), description="least and greatest signal-to-noise ratio, in decibels")
        probability: Share = Field(1.0, description="share of the clips that are changed")

        @model_validator(mode="after")
        def _ordered(self) -> Any:
            return _ordered(self, "snr")

    def change(self, samples: np.ndarray, rate: int) -> np.ndarray:
        loudness = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        deviation = loudness * 10 ** (-np.random.uniform(*self.options.snr) / 20)
        return samples + deviation * np.random.standard_normal(len(samples))


class Shift(SoundAugmentation):
    """Move clips forward or back in time. They keep their length; silence, or the other end, fills the gap."""

    class Options(Options):
        seconds: float = Field(0.2, ge=0, description="greatest move, in both directions")
        wrap: bool = Field(False, description="fill the gap with what is moved out, not with silence")
        probability: Share = Field(1.0, description="share of the clips that are changed")

    def change(self, samples: np.ndarray, rate: int) -> np.ndarray:
        steps = round(np.random.uniform(-self.options.seconds, self.options.seconds) * rate)
        moved = np.roll(samples, steps)
        if steps and not self.options.wrap:
            moved[slice(steps) if steps > 0 else slice(steps, None)] = 0
        return moved


class SpecAugment(SoundAugmentation):
    """Silence random stretches of time and random bands of frequency, as SpecAugment masks the frames and bins of a spectrogram.

    Widths are counted as there, in frames of 10 ms and in bins of 80 mel bins up to 8 kHz, each drawn evenly from 0 to the
    greatest. The clip itself is changed, because encoders compute their spectrograms themselves, if any. So a mask is silence,
    not the mean. Time is not warped. The defaults are Park et al.'s "Switchboard mild".
    """

    class Options(Options):
        time_masks: int = Field(2, ge=0, le=100, description="stretches of time")
        time_width: int = Field(70, ge=0, description="greatest length of one, in frames of 10 ms")
        time_share: Share = Field(0.2, description="greatest length of one, as a share of the clip")
        frequency_masks: int = Field(2, ge=0, le=100, description="bands of frequency")
        frequency_width: int = Field(15, ge=0, le=BINS, description="greatest width of one, in bins of 80 mel bins up to 8 kHz")

    def change(self, samples: np.ndarray, rate: int) -> np.ndarray:
        options, count = self.options, len(samples)
        if options.frequency_masks and options.frequency_width:
            spectrum, hertz = np.fft.rfft(samples), np.fft.rfftfreq(count, 1 / rate)
            bins = mel(hertz) / mel(HIGHEST) * BINS
            for _ in range(options.frequency_masks):
                start, end = _stretch(options.frequency_width, BINS)
                spectrum[(bins >= start) & (bins < end)] = 0
            samples = np.fft.irfft(spectrum, count)
        samples, longest = samples.copy(), min(options.time_width * FRAME * rate, options.time_share * count)
        for _ in range(options.time_masks):
            start, end = map(round, _stretch(longest, count))
            samples[start:end] = 0
        return samples


def mel(hertz: Any) -> Any:
    """Return frequencies on the mel scale (https://en.wikipedia.org/wiki/Mel_scale), which may be an array."""
    return 2595 * np.log10(1 + hertz / 700)


def _stretch(longest: float, size: float) -> tuple[float, float]:
    """Return the ends of a random stretch within ``size`` that is at most ``longest`` long."""
    width = np.random.uniform(0, min(longest, size))
    start = np.random.uniform(0, size - width)
    return start, start + width


def _ordered(options: Any, name: str) -> Any:
    low, high = getattr(options, name)
    if low > high:
        raise ValueError(f"{name}: two numbers, the smaller one first, not {[low, high]}")
    return options
