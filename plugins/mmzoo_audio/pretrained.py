"""Wrap audio encoders of the transformers library (Apache-2.0; each checkpoint has its own licence).

Whisper: Radford et al. 2022, https://arxiv.org/abs/2212.04356, its encoder only. wav2vec 2.0: Baevski et al. 2020,
https://arxiv.org/abs/2006.11477, and those that are built like it: HuBERT, WavLM, UniSpeech-SAT, data2vec-audio.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import MODEL_MAPPING, Wav2Vec2FeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmzoo.api import (
    BadRecipe,
    DoesNotFit,
    Encoder,
    Features,
    FeatureSpec,
    Options,
    Source,
    SourceError,
    class_for,
    config_of,
    construct_model,
    explain_errors,
    load_backbone,
)
from mmzoo_audio.clips import RATE, Clip, ClipReader, Waveform
from mmzoo_audio.mel import HOP, LogMel, frames, mean, within

CARRIED = Path(__file__).with_name("known")  # configurations of the entry's default variant
WAVEFORM = ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio")
STRIDE = 2  # frames to a token, by Whisper's second convolution


class HFAudio(Encoder):
    """Turn clips [batch, samples] into the last hidden states of the checkpoint's audio encoder, [batch, tokens, dim].

    Pooled is the mean of those within the clip. Whisper reads a fixed time, most often 30 s, the rest of which is silence; the
    tokens of that rest are left out. The other encoders read each clip as if it were alone in the batch: those with norms over
    time (wav2vec2-base) run once for each length, the rest run a batch under its mask.
    """

    modality = "audio"
    reader = ClipReader()
    variable_length = True
    default_train = "frozen"
    pretrainable = True

    class Options(Options):
        variant: str = Field("", description="id on the Hub, or a local folder")
        revision: str | None = Field(None, description="branch, tag or commit; empty for the main branch")
        config: dict[str, Any] | None = Field(
            None, description="build from this configuration (with its `model_type`) and fetch nothing; random weights only"
        )
        max_seconds: float = Field(30.0, gt=0, le=600, description="longer clips are refused; Whisper also has its own limit")

        @model_validator(mode="after")
        def _some_source(self) -> Any:
            if self.config is None and not self.variant:
                raise ValueError("needs a variant ('hf-audio:owner/model', or 'hf-audio:./folder') or a config")
            return self

    def __init__(self, options: Any) -> None:
        """Build the encoder from its configuration, with random weights.

        Raises:
            SourceError: the configuration cannot be fetched or read.
            DoesNotFit: it is not of an audio encoder that is known here.
            BadRecipe: ``config`` is not a configuration.
        """
        super().__init__()
        self.options = options
        self.source = None if options.config is not None else Source(options.variant, options.revision, carried=CARRIED)
        self._config = config_of(options.config) if self.source is None else self.source.config()
        kind = self._config.model_type
        name = options.variant or f"a {kind}"
        if kind != "whisper" and kind not in WAVEFORM:
            raise DoesNotFit(f"'{name}' is a {kind} model; hf-audio takes whisper, {', '.join(WAVEFORM)}")
        self._class = WhisperEncoder if kind == "whisper" else class_for(self._config, MODEL_MAPPING)
        with explain_errors(f"'{name}' cannot be built", BadRecipe if self.source is None else SourceError):
            self.model: Any = construct_model(self._class, self._config)
        self._loaded = False
        adapted = kind != "whisper" and getattr(self._config, "add_adapter", False)
        dim = self._config.output_hidden_size if adapted else self._config.hidden_size
        self.spec = FeatureSpec(dim=dim, pooled_dim=dim, tokens=None, modality=self.modality)
        self.mel: LogMel | None = None
        if kind == "whisper":
            self._samples = self._config.max_source_positions * STRIDE * HOP
            self.mel = LogMel(self._config.num_mel_bins)
            self.transform: Any = Waveform(RATE, 1, min(options.max_seconds, self._samples / RATE))
        else:
            self.transform = self._waveform(name)

    @property
    def has_pretrained(self) -> bool:
        return self.source is not None

    def load_pretrained(self) -> None:
        """Replace the model by one with the pretrained weights.

        Raises:
            SourceError: the weights cannot be fetched or read, or are another model's.
        """
        if self.source is None:
            raise SourceError("config: it has no pretrained weights; set pretrained: false, or give a variant instead")
        self.model = load_backbone(
            self._class, self._config, self.source, within="encoder." if self.mel is not None else ""
        ).eval()
        self._loaded = True

    def lock(self) -> dict[str, Any]:
        return self.source.lock() if self.source is not None and self._loaded else {}

    def standalone_options(self) -> dict[str, Any] | None:
        plain = self.mel is not None or self.transform.extractor.to_dict() == Wav2Vec2FeatureExtractor().to_dict()
        if self.source is None or not plain:  # no option has the extractor's settings
            return None
        own = self.options.model_dump(exclude_defaults=True, exclude={"variant", "revision"})
        return {**own, "config": self.source.portable_config()}

    def uncalled(self, module: nn.Module) -> Collection[str]:
        own = ("q_proj", "k_proj", "v_proj", "out_proj")
        return own if type(module).__name__ == "WavLMAttention" else super().uncalled(module)

    def blocks(self) -> Sequence[nn.Module]:
        return tuple(self.model.layers if self.mel is not None else self.model.encoder.layers)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Features:
        """Turn waveforms ``inputs`` [batch, samples], of which ``lengths`` [batch] samples are real, into features."""
        tokens, mask = self._whisper(inputs, lengths) if self.mel is not None else self._waves(inputs, lengths)
        return Features(tokens, mean(tokens, mask), mask.long())

    def _whisper(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert self.mel is not None
        whole = nn.functional.pad(inputs, (0, self._samples - inputs.shape[1]))
        mel = self.mel(whole, pad="reflect").to(self.model.conv1.weight.dtype)
        count = (frames(lengths) + STRIDE - 1) // STRIDE
        tokens = self.model(mel).last_hidden_state[:, : int(count.max())]
        return tokens, within(count, tokens.shape[1])

    def _waves(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        config, inputs = self._config, inputs.to(next(self.model.parameters()).dtype)
        if getattr(config, "feat_extract_norm", "") == "layer" and not getattr(config, "add_adapter", False):
            tokens = self.model(inputs, attention_mask=within(lengths, inputs.shape[1]).long()).last_hidden_state
            return tokens, within(_conv_frames(lengths, config), tokens.shape[1])
        by_row: dict[int, Tensor] = {}
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            by_row.update(zip(rows.tolist(), self.model(inputs[rows, :length]).last_hidden_state, strict=True))
        states = [by_row[i] for i in range(len(inputs))]
        tokens = pad_sequence(states, batch_first=True)
        return tokens, within(torch.tensor([len(row) for row in states], device=tokens.device), tokens.shape[1])

    def _waveform(self, name: str) -> Normalised:
        path = self.source and self.source.find("preprocessor_config.json")
        extractor = Wav2Vec2FeatureExtractor()
        if path is not None:
            with explain_errors(f"'{name}': {path.name} cannot be used"):
                extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(path.parent))
        shortest = _shortest(self._config)
        return Normalised(Waveform(extractor.sampling_rate, shortest, self.options.max_seconds), extractor)


@dataclass(frozen=True)
class Normalised:
    """Turn a clip into its samples, scaled by the checkpoint's own feature extractor."""

    waveform: Waveform
    extractor: Any

    def __call__(self, clip: Clip) -> Tensor:
        samples = self.waveform(clip).numpy()
        inputs = self.extractor(samples, sampling_rate=self.waveform.rate, return_tensors="pt")
        return inputs["input_values"][0].float()


def _conv_frames(lengths: Tensor, config: Any) -> Tensor:
    """Return how many frames the convolutions make of ``lengths`` samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        lengths = (lengths - kernel) // stride + 1
    return lengths


def _shortest(config: Any) -> int:
    """Return the number of samples that the convolutions need for one frame."""
    needed = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        needed = (needed - 1) * stride + kernel
    return needed
