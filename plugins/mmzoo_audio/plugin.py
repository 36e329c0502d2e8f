"""Register encoders of audio, a data set of tones and a recipe."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl


def _entry(kind: str, name: str, target: str, source: str, summary: str, **tiny: Any) -> Entry:
    """Return an entry of this plugin; ``tiny`` has the options that make it small."""
    return Entry(kind, name, f"mmzoo_audio.{target}", summary, "audio", "Apache-2.0", source, tiny=tiny)


# fmt: off
_WHISPER = {"model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}

_ENCODERS = (
    _entry("encoder", "mel-transformer", "mel:MelTransformer",
           "Whisper's encoder in the small, Radford et al. 2022, https://arxiv.org/abs/2212.04356",
           "from scratch: log-mel spectrogram, two convolutions and a small transformer", dim=16, layers=1, heads=2, mels=16),
    _entry("encoder", "log-mel-gru", "recurrent:LogMelGRU", "GRU, Cho et al. 2014, https://arxiv.org/abs/1406.1078",
           "from scratch: log-mel spectrogram and gated recurrent units in both directions", dim=16, layers=1, mels=16),
    Entry("encoder", "hf-audio", "mmzoo_audio.pretrained:HFAudio",
          "an audio encoder of transformers: `hf-audio:openai/whisper-tiny`, `hf-audio:facebook/wav2vec2-base`",
          "audio", "varies", "https://huggingface.co/docs/transformers", "openai/whisper-tiny",
          {"config": {**_WHISPER, "max_source_positions": 50, "num_mel_bins": 20}}),
)

_DATASET = _entry("dataset", "tones", "tones:Tones", "generated here from a seed",
                  "beeps and their descriptions, generated on demand, with held-out combinations",
                  train_clips=8, validation_clips=4, test_clips=4)

_RECIPE = _entry("recipe", "audio-prefix-gpt", "recipes:AUDIO_PREFIX_GPT",
                 "ClipCap's prefix, Mokady et al. 2021, https://arxiv.org/abs/2111.09734",
                 "captions of sounds from scratch: a small transformer encodes, a small decoder writes")
# fmt: on


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return list(_ENCODERS)


@hookimpl
def mmzoo_datasets() -> list[Entry]:
    return [_DATASET]


@hookimpl
def mmzoo_recipes() -> list[Entry]:
    return [_RECIPE]
