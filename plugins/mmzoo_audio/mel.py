"""Compute log-mel spectrograms, and encode them with a small transformer.

Both are Whisper's (Radford et al. 2022, https://arxiv.org/abs/2212.04356; https://github.com/openai/whisper, MIT): two
convolutions with GELU, sinusoidal positions, pre-norm blocks, a norm at the end. Both convolutions have stride 2 here, for a
token every 40 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from mmzoo.api import DoesNotFit, Encoder, Features, FeatureSpec, Options
from mmzoo_audio.clips import RATE, ClipReader, Waveform

WINDOW, HOP = 400, 160  # samples: 25 ms and 10 ms
FLOOR = 1e-10
RANGE = 8.0  # powers of ten below the loudest that are kept apart


class LogMel(nn.Module):
    """Turn waveforms [batch, samples] into log-mel frames [batch, mels, frames], one every `HOP` samples, normalised as in
    Whisper."""

    def __init__(self, mels: int) -> None:
        super().__init__()
        filters = mel_filter_bank(1 + WINDOW // 2, mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        # Arrays, not buffers: they stay float32 in a bfloat16 model, and have values in one that is made on the meta device.
        self.filters, self.hann = filters.T.astype(np.float32), np.hanning(WINDOW + 1)[:-1].astype(np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None, *, pad: str = "constant") -> Tensor:
        """Return the frames.

        Args:
            lengths: [batch], the samples that are real; frames beyond them become zeros, and no frame depends on them.
            pad: the padding before and after the waveform: ``"constant"``, zeros, or ``"reflect"``, as in Whisper.
        """
        filters, hann = (torch.from_numpy(array).to(waveform.device) for array in (self.filters, self.hann))
        with torch.autocast("cpu" if waveform.is_meta else waveform.device.type, enabled=False):
            spectrum = torch.stft(waveform.float(), WINDOW, HOP, window=hann, pad_mode=pad, return_complex=True)
            power = spectrum[..., : frames(waveform.shape[1])].abs() ** 2
            mel = (filters @ power).clamp(min=FLOOR).log10()
            real = None if lengths is None else within(frames(lengths), mel.shape[2])[:, None]
            loudest = (mel if real is None else mel.masked_fill(~real, -torch.inf)).amax((1, 2), keepdim=True)
            mel = (torch.maximum(mel, loudest - RANGE) + 4) / 4
        return mel if real is None else mel * real


def frames(samples: Any) -> Any:
    """Return how many frames have their middle in a number of samples, which may be a tensor."""
    return (samples + HOP - 1) // HOP


def within(lengths: Tensor, count: int) -> Tensor:
    """Return a mask [batch, count] that is true at the first ``lengths`` [batch] places."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [batch, dim] of the tokens [batch, tokens, dim] that are real."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class MelTransformer(Encoder):
    """Turn clips [batch, samples] into a token every 40 ms, [batch, tokens, dim]; pooled is their mean."""

    modality = "audio"
    reader = ClipReader()
    variable_length = True

    class Options(Options):
        mels: int = Field(64, ge=8, le=256, description="mel bands")
        dim: int = Field(128, ge=8, le=4096, description="channels")
        layers: int = Field(2, ge=1, le=48, description="transformer blocks")
        heads: int = Field(4, ge=1, description="attention heads; must divide dim")
        max_seconds: float = Field(30.0, gt=0, le=3600, description="longer clips are refused")

    def __init__(self, options: Any) -> None:
        """Build the encoder.

        Raises:
            DoesNotFit: the heads do not divide the channels.
        """
        super().__init__()
        self.options = options
        if options.dim % options.heads or options.dim % 2:
            raise DoesNotFit(f"encoder.heads: {options.heads} heads do not divide dim {options.dim}, which must be even")
        self.mel = LogMel(options.mels)
        self.conv1 = nn.Conv1d(options.mels, options.dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(options.dim, options.dim, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(Block(options.dim, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.dim)
        self.spec = FeatureSpec(dim=options.dim, pooled_dim=options.dim, tokens=None, modality=self.modality)
        self.transform = Waveform(RATE, 1, options.max_seconds)

    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.layers)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Features:
        """Turn waveforms ``inputs`` [batch, samples], of which ``lengths`` [batch] samples are real, into features."""
        hidden = self.mel(inputs, lengths).to(self.conv1.weight.dtype)
        count = frames(lengths)
        for convolution in (self.conv1, self.conv2):
            count = (count + 1) // 2
            hidden = F.gelu(convolution(hidden))
            hidden = hidden * within(count, hidden.shape[2])[:, None]  # else the next would read the padding
        mask = within(count, hidden.shape[2])
        tokens = hidden.transpose(1, 2)
        tokens = tokens + positions(tokens.shape[1], tokens.shape[2], tokens)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        tokens = self.norm(tokens) * mask[..., None]
        return Features(tokens, mean(tokens, mask), mask.long())


class Block(nn.Module):
    """Apply pre-norm self-attention and an MLP of ratio 4."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return new ``tokens`` [batch, tokens, dim] under ``mask`` [batch, tokens]."""
        parts = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None, None])
        tokens = tokens + self.project(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


def positions(count: int, dim: int, like: Tensor) -> Tensor:
    """Return sinusoids [count, dim], sines before cosines."""
    rates = 10_000.0 ** (-torch.arange(dim // 2, device=like.device) / (dim // 2 - 1))
    angles = torch.arange(count, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)
