"""Register what mmzoo-audio provides. This module imports no torch."""

from mmzoo.api import Entry, hookimpl

MMZOO_API = "1.0"

WHISPER = {"model_type": "whisper", "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}


@hookimpl
def mmzoo_encoders():
    return [
        Entry(
            "encoder",
            "mel-transformer",
            target="mmzoo_audio.mel:MelTransformer",
            summary="from scratch: log-mel spectrogram, two convolutions and a small transformer",
            modality="audio",
            license="Apache-2.0",
            source="Whisper's encoder in the small, Radford et al. 2022, https://arxiv.org/abs/2212.04356",
            tiny={"dim": 16, "layers": 1, "heads": 2, "mels": 16},
        ),
        Entry(
            "encoder",
            "hf-audio",
            target="mmzoo_audio.pretrained:HFAudio",
            summary="an audio encoder of transformers: `hf-audio:openai/whisper-tiny`, `hf-audio:facebook/wav2vec2-base`",
            modality="audio",
            license="varies",
            source="https://huggingface.co/docs/transformers",
            variant="openai/whisper-tiny",
            tiny={"config": {**WHISPER, "max_source_positions": 50, "num_mel_bins": 20}},
        ),
    ]


@hookimpl
def mmzoo_datasets():
    return [
        Entry(
            "dataset",
            "tones",
            target="mmzoo_audio.tones:Tones",
            summary="beeps and their descriptions, generated on demand, with held-out combinations",
            modality="audio",
            license="Apache-2.0",
            source="generated here from a seed",
            tiny={"train_clips": 8, "validation_clips": 4, "test_clips": 4},
        )
    ]


@hookimpl
def mmzoo_recipes():
    return [
        Entry(
            "recipe",
            "audio-prefix-gpt",
            target="mmzoo_audio.recipes:AUDIO_PREFIX_GPT",
            summary="captions of sounds from scratch: a small transformer encodes, a small decoder writes",
            modality="audio",
            license="Apache-2.0",
            source="ClipCap's prefix, Mokady et al. 2021, https://arxiv.org/abs/2111.09734",
        )
    ]
