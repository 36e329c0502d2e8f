"""Encoders and language models of the transformers library."""

from __future__ import annotations

from mmzoo.api import Entry, hookimpl

VISION = "mmzoo_transformers.vision:HFVision"
CAUSAL = "mmzoo_transformers.language:HFCausal"
DECODER = "mmzoo_transformers.decoder:HFDecoder"
ENCODER = "mmzoo_transformers.language:HFEncoder"
SEQ2SEQ = "mmzoo_transformers.language:HFSeq2Seq"

_VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT_32 = {**_VIT, "image_size": 32, "patch_size": 8}
_TEXT = {**_VIT, "vocab_size": 264, "max_position_embeddings": 256}
_LLAMA = {**_TEXT, "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return [
        Entry(
            "encoder",
            "hf-vision",
            target=VISION,
            summary="any vision model of transformers, from the Hub or a folder: hf-vision:owner/model",
            modality="image",
            license="varies",
            source="https://huggingface.co/models?pipeline_tag=image-feature-extraction",
            tiny={
                "config": {
                    "model_type": "convnext",
                    "hidden_sizes": [8, 16, 16, 16],
                    "depths": [1, 1, 1, 1],
                    "image_size": 64,
                }
            },
        ),
        Entry(
            "encoder",
            "clip",
            target=VISION,
            summary="CLIP's image tower with its projected embedding (ViT-B/32 unless a variant is named)",
            modality="image",
            license="MIT",
            source="https://arxiv.org/abs/2103.00020",
            variant="openai/clip-vit-base-patch32",
            tiny={"config": {"model_type": "clip_vision_model", **_VIT_32, "projection_dim": 24}},
        ),
        Entry(
            "encoder",
            "siglip",
            target=VISION,
            summary="SigLIP's image tower, without a class token (ViT-B/16 at 224 unless a variant is named)",
            modality="image",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2303.15343",
            variant="google/siglip-base-patch16-224",
            tiny={"config": {"model_type": "siglip_vision_model", **_VIT_32}},
        ),
        Entry(
            "encoder",
            "vit",
            target=VISION,
            summary="Vision Transformer trained on ImageNet (ViT-B/16 at 224 unless a variant is named)",
            modality="image",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2010.11929",
            variant="google/vit-base-patch16-224",
            tiny={"config": {"model_type": "vit", **_VIT_32}},
        ),
        Entry(
            "encoder",
            "dinov2",
            target=VISION,
            summary="self-supervised DINOv2 (ViT-B/14 unless a variant is named)",
            modality="image",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2304.07193",
            variant="facebook/dinov2-base",
            tiny={"config": {"model_type": "dinov2", **_VIT_32}},
        ),
    ]


@hookimpl
def mmzoo_language_models() -> list[Entry]:
    return [
        Entry(
            "language_model",
            "gpt-mini",
            target="mmzoo_transformers.mini:GPTMini",
            summary="a small transformer decoder with a tokenizer trained on the data, from scratch",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2302.13971",
            tiny={"dim": 32, "layers": 2, "heads": 2, "context": 512},
        ),
        Entry(
            "language_model",
            "hf-causal",
            target=CAUSAL,
            summary="any causal language model of transformers, from the Hub or a folder: hf-causal:owner/model",
            modality="text",
            license="varies",
            source="https://huggingface.co/models?pipeline_tag=text-generation",
            tiny={"config": {"model_type": "gpt_neox", **_TEXT, "bos_token_id": 1, "eos_token_id": 2}},
        ),
        Entry(
            "language_model",
            "gpt2",
            target=CAUSAL,
            summary="GPT-2 (124 M parameters unless a variant is named)",
            modality="text",
            license="MIT",
            source="https://openai.com/index/better-language-models/",
            variant="openai-community/gpt2",
            tiny={
                "config": {
                    "model_type": "gpt2",
                    "vocab_size": 264,
                    "n_positions": 256,
                    "n_embd": 32,
                    "n_layer": 2,
                    "n_head": 2,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                }
            },
        ),
        Entry(
            "language_model",
            "smollm2",
            target=CAUSAL,
            summary="SmolLM2, a small Llama (135 M parameters unless a variant is named)",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2502.02737",
            variant="HuggingFaceTB/SmolLM2-135M",
            tiny={"config": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": True}},
        ),
        Entry(
            "language_model",
            "qwen3",
            target=CAUSAL,
            summary="Qwen3 (0.6 B parameters, tuned for chat, unless a variant is named)",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/2505.09388",
            variant="Qwen/Qwen3-0.6B",
            tiny={"config": {"model_type": "qwen3", **_LLAMA, "tie_word_embeddings": True}},
        ),
        Entry(
            "language_model",
            "opt",
            target=CAUSAL,
            summary="OPT (125 M parameters unless a variant is named); its licence is for research only",
            modality="text",
            license="LicenseRef-OPT-175B",
            source="https://arxiv.org/abs/2205.01068",
            variant="facebook/opt-125m",
            tiny={
                "config": {
                    "model_type": "opt",
                    "vocab_size": 264,
                    "hidden_size": 32,
                    "word_embed_proj_dim": 32,
                    "ffn_dim": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 256,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                    "pad_token_id": 0,
                }
            },
        ),
        Entry(
            "language_model",
            "hf-encoder",
            target=ENCODER,
            summary="any bidirectional text encoder of transformers, from the Hub or a folder: hf-encoder:owner/model",
            modality="text",
            license="varies",
            source="https://huggingface.co/models?pipeline_tag=fill-mask",
            tiny={"config": {"model_type": "roberta", **_TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}},
        ),
        Entry(
            "language_model",
            "bert",
            target=ENCODER,
            summary="BERT (base, uncased, unless a variant is named); reads text and generates none",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/1810.04805",
            variant="google-bert/bert-base-uncased",
            tiny={"config": {"model_type": "bert", **_TEXT}},
        ),
        Entry(
            "language_model",
            "bert-decoder",
            target=DECODER,
            summary="BERT (base, uncased, unless a variant is named) or another masked model as a decoder: it writes",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/1907.12461",
            variant="google-bert/bert-base-uncased",
            tiny={"config": {"model_type": "bert", **_TEXT}},
        ),
        Entry(
            "language_model",
            "hf-seq2seq",
            target=SEQ2SEQ,
            summary="any encoder-decoder language model of transformers, from the Hub or a folder: hf-seq2seq:owner/model",
            modality="text",
            license="varies",
            source="https://huggingface.co/models?pipeline_tag=text2text-generation",
            tiny={
                "config": {
                    "model_type": "bart",
                    "vocab_size": 264,
                    "max_position_embeddings": 256,
                    "d_model": 32,
                    "encoder_layers": 2,
                    "decoder_layers": 2,
                    "encoder_attention_heads": 2,
                    "decoder_attention_heads": 2,
                    "encoder_ffn_dim": 64,
                    "decoder_ffn_dim": 64,
                    "pad_token_id": 0,
                    "bos_token_id": 1,
                    "eos_token_id": 2,
                    "decoder_start_token_id": 2,
                    "forced_eos_token_id": 2,
                }
            },
        ),
        Entry(
            "language_model",
            "t5",
            target=SEQ2SEQ,
            summary="T5 (small, 60 M parameters, unless a variant is named)",
            modality="text",
            license="Apache-2.0",
            source="https://arxiv.org/abs/1910.10683",
            variant="google-t5/t5-small",
            tiny={
                "config": {
                    "model_type": "t5",
                    "vocab_size": 264,
                    "d_model": 32,
                    "d_kv": 16,
                    "d_ff": 64,
                    "num_layers": 2,
                    "num_heads": 2,
                    "pad_token_id": 0,
                    "eos_token_id": 2,
                    "decoder_start_token_id": 0,
                }
            },
        ),
    ]
