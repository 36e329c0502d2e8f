"""Open audio clips: files through libsndfile (https://github.com/bastibe/python-soundfile, BSD-3-Clause), resampled from any
rate to an encoder's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from mmzoo.api import BadInput, Reader, file_of, name_of, one_line

RATE = 16_000
SILENCE = 1.0  # seconds
PIECE = 2**20  # products of resampling that are in memory at once


class BadAudio(BadInput):
    """Report a clip that is missing, truncated, empty or not audio."""


@dataclass(frozen=True)
class Clip:
    """Hold one channel of sound: ``samples`` [samples], float32, most often in [-1, 1], ``rate`` of them a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def at(self, rate: int) -> np.ndarray:
        """Return the samples [seconds * rate] at another rate."""
        return self.samples if rate == self.rate else resample(self.samples, self.rate, rate)


class ClipReader(Reader):
    """Read a clip from a path, a ``file://`` URL or bytes of a WAV, FLAC, OGG or MP3 file, or from a mapping ``{"array":
    samples, "sampling_rate": 16000}``, as `datasets` decodes audio.

    Arrays are [samples], [channels, samples] or [samples, channels] of at most 8 channels, whose mean is taken; floats, or
    integers, which are scaled by the range of their type.
    """

    error = BadAudio

    def read(self, source: Any) -> Clip:
        """Open a clip.

        Raises:
            BadAudio: the clip is missing, truncated, empty or not audio.
        """
        name = name_of(source)
        try:
            clip = _open(source)
        except FileNotFoundError:
            raise BadAudio(f"audio {name} does not exist") from None
        except Exception as error:  # a damaged file makes libsndfile raise more than its own errors
            raise BadAudio(f"audio {name} cannot be read: {one_line(error)}") from None
        if not len(clip.samples):
            raise BadAudio(f"audio {name} holds no samples")
        if not np.isfinite(clip.samples).all():
            raise BadAudio(f"audio {name} holds samples that are NaN or infinite")
        return clip

    def blank(self, transform: Callable[[Any], Tensor]) -> Tensor:
        """Return a second of silence."""
        return transform(Clip(np.zeros(int(SILENCE * RATE), np.float32), RATE))

    def probes(self) -> list[Clip]:
        random = np.random.default_rng(0)
        sizes = ((8_000, 16_000), (16_000, 16_000), (30_000, 44_100))
        return [Clip(random.uniform(-0.5, 0.5, count).astype(np.float32), rate) for count, rate in sizes]


def resample(samples: np.ndarray, rate: int, new: int) -> np.ndarray:
    """Return float32 samples [samples] at the rate ``new`` instead of ``rate``.

    The low-pass filter is a sinc in a Kaiser window, at the samples that it reads only, as in `scipy.signal.resample_poly`
    (https://docs.scipy.org/doc/scipy/reference/generated/scipy.signal.resample_poly.html).
    """
    up, down = new // gcd(rate, new), rate // gcd(rate, new)
    half = 10 * max(up, down)  # of the filter, in the steps of a grid that holds the samples of both rates
    grid = np.arange(-half, half + 1)
    low = np.sinc(grid / max(up, down)) * np.kaiser(len(grid), 5.0)
    low = np.append(low * up / low.sum(), np.zeros(up)).astype(np.float32)
    taps = 2 * half // up + 1
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (half // up, taps + down)), taps)
    at = np.arange(-(-len(samples) * up // down)) * down  # where the new samples are
    result = np.empty(len(at), np.float32)
    for begin in range(0, len(at), size := max(1, PIECE // taps)):
        middle = at[begin : begin + size]
        first = -((half - middle) // up)
        weights = low[(first * up - middle + half)[:, None] + up * np.arange(taps)]
        result[begin : begin + size] = np.einsum("st,st->s", windows[first + half // up], weights)
    return result


def _open(source: Any) -> Clip:
    file = None if isinstance(source, Mapping) and "array" in source else file_of(source)
    if file is not None:
        if hasattr(file, "stat"):
            file.stat()  # libsndfile does not report a missing file as such
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        return Clip(samples.mean(1), int(rate))
    if isinstance(source, Clip):
        return source
    if not isinstance(source, Mapping) or "array" not in source or "sampling_rate" not in source:
        raise TypeError("a clip is a path, a file:// URL, bytes, or {'array': samples, 'sampling_rate': samples a second}")
    rate = source["sampling_rate"]
    if isinstance(rate, bool) or int(rate) != rate or not 1_000 <= rate <= 1_000_000:
        raise ValueError(f"a sampling rate is a whole number from 1,000 to 1,000,000, not {rate!r}")
    return Clip(_mono(source["array"]), int(rate))


def _mono(array: Any) -> np.ndarray:
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if array.dtype.kind in "iu":
        half = 2.0 ** (8 * array.dtype.itemsize - 1)
        array = (array - half if array.dtype.kind == "u" else array) / half
    elif array.dtype.kind != "f":
        raise ValueError(f"an array of type {array.dtype} holds no samples")
    if array.ndim == 2 and min(array.shape) <= 8:
        array = array.mean(int(array.shape[0] > array.shape[1]))
    if array.ndim != 1:
        raise ValueError(f"an array of shape {array.shape} is not [samples] or [channels, samples]")
    return np.ascontiguousarray(array, np.float32)


@dataclass(frozen=True)
class Waveform:
    """Turn a clip into its samples [samples] at ``rate``."""

    rate: int
    shortest: int
    longest: float

    def __call__(self, clip: Clip) -> Tensor:
        """Return the samples, resampled.

        Raises:
            BadAudio: the clip is longer than the encoder takes, or shorter than its window.
        """
        if clip.seconds > self.longest:
            raise BadAudio(
                f"the clip lasts {clip.seconds:.1f} s and the encoder takes {self.longest:g} s at most: cut it, or raise "
                "encoder.max_seconds where that is an option"
            )
        samples = clip.at(self.rate)
        if len(samples) < self.shortest:
            raise BadAudio(f"the clip has {len(samples)} samples at {self.rate} a second; the encoder needs {self.shortest}")
        return torch.tensor(samples)
