"""Encode log-mel frames with gated recurrent units (GRU, Cho et al. 2014, https://arxiv.org/abs/1406.1078), in both directions
(Schuster and Paliwal 1997, https://doi.org/10.1109/78.650093).

The second direction reads each clip from its last real frame, so that neither reads padding before a frame. Unlike packed
sequences, this needs no lengths on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmzoo.api import DoesNotFit, Encoder, Features, FeatureSpec, Options
from mmzoo_audio.clips import RATE, ClipReader, Waveform
from mmzoo_audio.mel import LogMel, frames, within


class LogMelGRU(Encoder):
    """Turn clips [batch, samples] into a token every ``every`` frames of 10 ms, [batch, tokens, dim].

    A token is the state at the last frame of its group. Pooled is the state after the last frame, joined with that of the other
    direction after the first: in two short trials on `tones`, it named more of the held-out combinations (0.81 and 0.40) than the
    mean of the states (0.51 and 0.35).
    """

    modality = "audio"
    reader = ClipReader()
    variable_length = True

    class Options(Options):
        mels: int = Field(64, ge=8, le=256, description="mel bands")
        dim: int = Field(128, ge=2, le=4096, description="channels of a token; each of two directions has half of them")
        layers: int = Field(2, ge=1, le=16, description="stacked layers")
        bidirectional: bool = Field(True, description="whether the frames are also read from the last to the first")
        every: int = Field(8, ge=1, le=1000, description="frames of 10 ms to a token")
        max_seconds: float = Field(30.0, gt=0, le=3600, description="longer clips are refused")

    def __init__(self, options: Any) -> None:
        """Build the encoder.

        Raises:
            DoesNotFit: the two directions cannot have the same number of channels.
        """
        super().__init__()
        self.options = options
        if options.bidirectional and options.dim % 2:
            raise DoesNotFit(f"encoder.dim: {options.dim} is odd, and two directions share it; choose an even one")
        self.mel = LogMel(options.mels)
        widths = [options.mels] + [options.dim] * (options.layers - 1)
        self.layers = nn.ModuleList(Layer(width, options.dim, options.bidirectional) for width in widths)
        self.spec = FeatureSpec(dim=options.dim, pooled_dim=options.dim, tokens=None, modality=self.modality)
        self.transform = Waveform(RATE, 1, options.max_seconds)

    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.layers)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Features:
        """Turn waveforms ``inputs`` [batch, samples], of which ``lengths`` [batch] samples are real, into features."""
        states = self.mel(inputs, lengths).transpose(1, 2).to(next(self.parameters()).dtype)
        count, every = frames(lengths)[:, None], self.options.every
        places = torch.arange(states.shape[1], device=states.device)
        backwards = torch.where(places < count, count - 1 - places, places)  # padding stays behind
        for layer in self.layers:
            states = layer(states, backwards)
        groups = (count[:, 0] + every - 1) // every
        mask = within(groups, -(-states.shape[1] // every))
        ends = (torch.arange(1, mask.shape[1] + 1, device=states.device) * every).minimum(count) - 1
        tokens = select(states, ends) * mask[..., None]
        pooled = select(states, count - 1)[:, 0]
        if self.options.bidirectional:
            half = self.options.dim // 2
            pooled = torch.cat([pooled[:, :half], states[:, 0, half:]], 1)
        return Features(tokens, pooled, mask.long())


class Layer(nn.Module):
    """Apply a GRU, or two in opposite directions whose states are joined."""

    def __init__(self, width: int, dim: int, bidirectional: bool) -> None:
        super().__init__()
        self.forwards = nn.GRU(width, dim // 2 if bidirectional else dim, batch_first=True)
        self.backwards = nn.GRU(width, dim // 2, batch_first=True) if bidirectional else None

    def forward(self, states: Tensor, backwards: Tensor) -> Tensor:
        """Return new states [batch, frames, dim]; ``backwards`` [batch, frames] are the frames in opposite order."""
        ahead = self.forwards(states)[0]
        if self.backwards is None:
            return ahead
        return torch.cat([ahead, select(self.backwards(select(states, backwards))[0], backwards)], 2)


def select(states: Tensor, places: Tensor) -> Tensor:
    """Return the states [batch, places, dim] at ``places`` [batch, places]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))
