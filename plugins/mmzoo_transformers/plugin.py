"""Register encoders and language models of the transformers library."""

from __future__ import annotations

from typing import Any

from mmzoo.api import Entry, hookimpl

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {**_SMALL, "intermediate_size": 64}
_VIT_32 = {**_VIT, "image_size": 32, "patch_size": 8}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_PADDED = {**_ENDS, "pad_token_id": 0}
_WORDS = {"vocab_size": 264, "max_position_embeddings": 256}
_TEXT = {**_VIT, **_WORDS}
_LLAMA = {**_TEXT, **_PADDED, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
_OPT = {**_SMALL, **_WORDS, **_PADDED, "word_embed_proj_dim": 32, "ffn_dim": 64}
_CONVNEXT = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64}
_GPT2 = {**_ENDS, "vocab_size": 264, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2}
_T5 = {"vocab_size": 264, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
_T5_IDS = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
_BART = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
_BART |= {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
_BART_IDS = {**_PADDED, "decoder_start_token_id": 2, "forced_eos_token_id": 2}


def _tiny(model_type: str, *settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the options that build a small random model of ``model_type``."""
    config: dict[str, Any] = {"model_type": model_type}
    for part in (*settings, more):
        config |= part
    return {"config": config}


def _encoder(name: str, license: str, source: str, variant: str | None, summary: str, tiny: dict[str, Any]) -> Entry:
    """Return the entry of a vision model."""
    return Entry("encoder", name, "mmzoo_transformers.vision:HFVision", summary, "image", license, source, variant, tiny)


def _language(
    name: str, target: str, license: str, source: str, variant: str | None, summary: str, tiny: dict[str, Any]
) -> Entry:
    """Return the entry of a language model."""
    return Entry("language_model", name, f"mmzoo_transformers.{target}", summary, "text", license, source, variant, tiny)


# One row an entry: what it is called and where it comes from, what it is, and its tiny form for tests.
# fmt: off
_ENCODERS = (
    _encoder("hf-vision", "varies", "https://huggingface.co/models?pipeline_tag=image-feature-extraction", None,
             "any vision model of transformers, from the Hub or a folder: hf-vision:owner/model", _tiny("convnext", _CONVNEXT)),
    _encoder("clip", "MIT", "https://arxiv.org/abs/2103.00020", "openai/clip-vit-base-patch32",
             "CLIP's image tower with its projected embedding (ViT-B/32 unless a variant is named)",
             _tiny("clip_vision_model", _VIT_32, projection_dim=24)),
    _encoder("siglip", "Apache-2.0", "https://arxiv.org/abs/2303.15343", "google/siglip-base-patch16-224",
             "SigLIP's image tower, without a class token (ViT-B/16 at 224 unless a variant is named)",
             _tiny("siglip_vision_model", _VIT_32)),
    _encoder("vit", "Apache-2.0", "https://arxiv.org/abs/2010.11929", "google/vit-base-patch16-224",
             "Vision Transformer trained on ImageNet (ViT-B/16 at 224 unless a variant is named)", _tiny("vit", _VIT_32)),
    _encoder("dinov2", "Apache-2.0", "https://arxiv.org/abs/2304.07193", "facebook/dinov2-base",
             "self-supervised DINOv2 (ViT-B/14 unless a variant is named)", _tiny("dinov2", _VIT_32)),
)

_LANGUAGE_MODELS = (
    _language("gpt-mini", "mini:GPTMini", "Apache-2.0", "https://arxiv.org/abs/2302.13971", None,
              "a small transformer decoder with a tokenizer trained on the data, from scratch",
              {"dim": 32, "layers": 2, "heads": 2, "context": 512}),
    _language("hf-causal", "language:HFCausal", "varies", "https://huggingface.co/models?pipeline_tag=text-generation", None,
              "any causal language model of transformers, from the Hub or a folder: hf-causal:owner/model",
              _tiny("gpt_neox", _TEXT, _ENDS)),
    _language("gpt2", "language:HFCausal", "MIT", "https://openai.com/index/better-language-models/", "openai-community/gpt2",
              "GPT-2 (124 M parameters unless a variant is named)", _tiny("gpt2", _GPT2)),
    _language("smollm2", "language:HFCausal", "Apache-2.0", "https://arxiv.org/abs/2502.02737", "HuggingFaceTB/SmolLM2-135M",
              "SmolLM2, a small Llama (135 M parameters unless a variant is named)", _tiny("llama", _LLAMA)),
    _language("qwen3", "language:HFCausal", "Apache-2.0", "https://arxiv.org/abs/2505.09388", "Qwen/Qwen3-0.6B",
              "Qwen3 (0.6 B parameters, tuned for chat, unless a variant is named)", _tiny("qwen3", _LLAMA)),
    _language("opt", "language:HFCausal", "LicenseRef-OPT-175B", "https://arxiv.org/abs/2205.01068", "facebook/opt-125m",
              "OPT (125 M parameters unless a variant is named); its licence is for research only", _tiny("opt", _OPT)),
    _language("hf-encoder", "language:HFEncoder", "varies", "https://huggingface.co/models?pipeline_tag=fill-mask", None,
              "any bidirectional text encoder of transformers, from the Hub or a folder: hf-encoder:owner/model",
              _tiny("roberta", _TEXT, _PADDED)),
    _language("bert", "language:HFEncoder", "Apache-2.0", "https://arxiv.org/abs/1810.04805", "google-bert/bert-base-uncased",
              "BERT (base, uncased, unless a variant is named); reads text and generates none", _tiny("bert", _TEXT)),
    _language("bert-decoder", "decoder:HFDecoder", "Apache-2.0", "https://arxiv.org/abs/1907.12461",
              "google-bert/bert-base-uncased",
              "BERT (base, uncased, unless a variant is named) or another masked model as a decoder: it writes",
              _tiny("bert", _TEXT)),
    _language("hf-seq2seq", "language:HFSeq2Seq", "varies", "https://huggingface.co/models?pipeline_tag=text2text-generation",
              None, "any encoder-decoder language model of transformers, from the Hub or a folder: hf-seq2seq:owner/model",
              _tiny("bart", _WORDS, _BART, _BART_IDS)),
    _language("t5", "language:HFSeq2Seq", "Apache-2.0", "https://arxiv.org/abs/1910.10683", "google-t5/t5-small",
              "T5 (small, 60 M parameters, unless a variant is named)", _tiny("t5", _T5, _T5_IDS)),
)
# fmt: on


@hookimpl
def mmzoo_encoders() -> list[Entry]:
    return list(_ENCODERS)


@hookimpl
def mmzoo_language_models() -> list[Entry]:
    return list(_LANGUAGE_MODELS)
