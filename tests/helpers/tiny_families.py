"""Make a small configuration of any model type of transformers, from the default configuration of its class.

``tiny_config(model_type)`` is plain data, as the option ``config`` of `hf-causal` and its relatives takes it. Attributes are
shrunk by name; `OVERRIDES` holds what a family needs besides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto as auto

VOCABULARY = 264  # the byte tokenizer has 261 tokens
LENGTH = 256
LAYERS = 2
KINDS = 4  # layers at most, where they are of different kinds

Data = dict[str, Any]


def _table(text: str) -> dict[str, int]:
    """Return a number for each name; a line has the number first."""
    lines = (line.split() for line in text.strip().splitlines())
    return {name: int(number) for number, *names in lines for name in names}


SIZES = _table(
    """
    32 hidden_size d_model n_embd dim embedding_size word_embed_proj_dim embed_dim lru_width emb_dim hidden_dim_size
    32 backbone_hidden_size input_embedding_size output_embedding_size pooler_hidden_size prediction_head_size d_hidden
    32 hidden_size_global adapter_out_dim output_dim out_hidden_size vision_output_dim projector_input_dim input_size
    32 adapter_in_dim audio_hidden_size adapter_input_size
    32 embedding_dim
    32 projector_output_dim encoder_hidden_size cross_attention_hidden_size bottleneck_size q_lora_rank kv_lora_rank
    32 true_hidden_size
    32 attention_hidden_size entity_emb_size projection_dim intra_bottleneck_size o_lora_rank d_latents decoder_hidden_size
    64 intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff d_inner dff dim_ff moe_intermediate_size
    64 hidden_dim
    64 index_topk ffn_hidden_size expert_ffn_hidden_size intermediate_size_mlp shared_expert_intermediate_size
    64 shared_intermediate_size mlp_dim
    64 shared_experts_intermediate_size moe_shared_expert_intermediate_size dense_intermediate_size feed_forward_size
    64 speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim prompt_mid_dim dense_ffn_hidden_size
    2 num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers
    2 num_blocks
    2 depth conf_num_hidden_layers speech_encoder_layers t2u_encoder_layers t2u_decoder_layers num_global_layers
    2 num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads attention_heads num_heads
    2 num_encoder_attention_heads num_decoder_attention_heads conf_num_attention_heads num_self_attention_heads
    2 num_cross_attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads
    2 linear_num_heads linear_num_key_heads linear_num_value_heads swa_num_attention_heads index_n_heads num_mem_blocks
    1 num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_query_groups multi_query_group_num
    16 head_dim d_kv kv_channels d_head dim_head attention_head_size swa_head_dim linear_head_dim linear_key_head_dim
    16 linear_value_head_dim attention_head_dim v_head_dim qk_nope_head_dim index_head_dim global_head_dim
    16 qk_rope_head_dim conv_output_size mamba_d_head mamba_head_dim mamba_headdim hc_lowrank
    16 embedding_rank laurel_rank hidden_size_per_layer_input moe_latent_size
    32 qk_head_dim router_hidden_size
    8 state_size mamba_d_state ssm_state_size rotary_dim adapter_rank gated_norm_rank loop_gate_rank
    8 time_step_rank mamba_dt_rank chunk_size mamba_chunk_size block_size d_rel num_latents
    4 mamba_n_heads mamba_num_heads n_mamba_heads
    1 mamba_n_groups mamba_ngroups n_groups n_group topk_group num_expert_group o_groups altup_group_size
    4 num_experts n_routed_experts num_local_experts moe_num_experts n_experts
    2 num_experts_per_tok moe_topk moe_top_k moe_k num_experts_per_token experts_per_token zero_expert_num top_k_experts
    1 n_shared_experts num_shared_experts moe_num_shared_experts num_dense_layers first_k_dense_replace num_codebooks
    0 num_nextn_predict_layers num_kv_shared_layers prompt_length max_window_layers
    8 sliding_window sliding_window_size attention_window_size attention_chunk_size local_attention window_size
    8 attention_window
    32 rel_extent max_source_positions num_mel_bins max_pos_emb keep_window_size compress_window
    256 max_position_embeddings n_positions max_sequence_length max_seq_len n_ctx context_length max_target_positions
    256 max_encoder_position_embeddings max_decoder_position_embeddings t2u_max_position_embeddings
    256 original_max_position_embeddings seq_length max_2d_position_embeddings
    32 image_size crop_size
    8 patch_size
    """
)
NEVER_NONE = {"head_dim": 16}
HEADS = re.compile(r"(^|_)n?u?m?_?heads?$")
PER_LAYER = re.compile(r"layer|intermediate|sparsity|type|pattern|block|heads|theta|idx|stride|rates|kernel|experts")
KEPT = frozenset({"id2label", "label2id", "dtype", "architectures", "transformers_version", "model_type", "problem_type"})

# What a family needs besides. A nested mapping is merged.
_ZAMBA = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 2}
_TWO_KINDS = ["linear_attention", "full_attention"]
_HYBRID = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
_REFORMER = {"attn_layers": ["local", "lsh"], "num_buckets": 4, "axial_pos_shape": [16, 16]}
_REFORMER |= {"axial_pos_embds_dim": [16, 16], "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8}
_DORY = {"num_hidden_layers": 4, "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1}
_DORY |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
_PLE = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16, "indexer_compress_ratio": 4}
_PLE |= {"ngram_vocab_size_base": 64, "split_ngram_parts": 2, "ple_embed_dim": 32, "make_ngram_vocab_size_divisible_by": 1}
_NO_PLE = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
OVERRIDES: dict[str, Data] = {
    "bit": {"hidden_sizes": [128, 128, 128, 128], "embedding_size": 32, "depths": [1, 1, 1, 1]},
    "cvt": {"depth": [1, 2, 3]},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "image_size": 64, "hidden_dim": 320},
    "levit": {"down_ops": [["Subsample", 16, 1, 4, 2, 2], ["Subsample", 16, 2, 4, 2, 2]], "image_size": 64, "patch_size": 16},
    "mobilenet_v1": {"depth_multiplier": 0.125, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "diffllama": {"num_key_value_heads": 2},
    "dory": _DORY,
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {
        "_default": {"text_config": {"model_type": "gemma4_text", **_NO_PLE}},
        "text_config": _NO_PLE,
    },
    "granitemoehybrid": {"layer_types": _TWO_KINDS},
    "jamba": _HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "esm": {"pad_token_id": 0, "mask_token_id": 4, "position_embedding_type": "rotary"},
    "mamba2": {"num_heads": 4},
    "moshi": {"sliding_window": LENGTH},  # the library applies its window to the cache only, which matters beyond it
    "nemotron": {"num_key_value_heads": 1},
    "qwen4_exp_text": _PLE,
    "qwen4_exp": {"text_config": _PLE},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": _REFORMER,
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 32},
    "zamba2": {**_ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, *, dropout: bool = True) -> Data:
    """Return a small configuration of a type as plain data, with its ``model_type``.

    Args:
        dropout: keep the default rates of dropout and of router noise; else they are 0.

    Raises:
        Exception: whatever the library raises where its default configuration cannot be made.
    """
    cls = CONFIG_MAPPING[model_type]
    given = OVERRIDES.get(model_type, {})
    default = cls(**given.get("_default", {}))
    data = merged(shrunk(default), {key: value for key, value in given.items() if key != "_default"})
    if not dropout:
        data = merged(data, _without_dropout(default))
    return {"model_type": model_type, **data}


def _without_dropout(config: PreTrainedConfig) -> Data:
    """Return rates of 0 for each of a configuration that is not."""
    data: Data = {}
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            data[key] = _without_dropout(value)
        elif re.search(r"drop|jitter", key) and isinstance(value, float) and value:
            data[key] = 0.0
    return data


def merged(data: Mapping[str, Any], more: Mapping[str, Any]) -> Data:
    out = dict(data)
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def shrunk(config: PreTrainedConfig) -> Data:
    """Return the attributes of a configuration that must be smaller, as plain data."""
    values = {key: value for key, value in vars(config).items() if not key.startswith("_") and key not in KEPT}
    values = {key: value for key, value in values.items() if not isinstance(getattr(type(config), key, None), property)}
    data: Data = {}
    staged = _staged(values)
    for key, value in values.items():
        if isinstance(value, PreTrainedConfig):
            inner = OVERRIDES.get(value.model_type, {})
            data[key] = merged(shrunk(value), {k: v for k, v in inner.items() if k != "_default"})
            if value.model_type:
                data[key]["model_type"] = value.model_type
        elif key.endswith(("token_id", "token_index", "_index", "_token_ids")) or key in ("eos_token_id", "token_ids"):
            data |= _special(key, value)
        elif key == "vocab_size" or ("vocab" in key and isinstance(value, int) and value > VOCABULARY):
            data[key] = VOCABULARY
        elif value is None and key in NEVER_NONE:
            data[key] = NEVER_NONE[key]
        elif key == "num_key_value_heads" and value is not None and value == values.get("num_attention_heads"):
            data[key] = SIZES["num_attention_heads"]
        elif key == "intermediate_size" and isinstance(value, list | tuple):
            data[key] = [64] * len(value)
        elif key in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            data[key] = min(SIZES[key], value) if key.endswith("groups") or key == "patch_size" else SIZES[key]
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            data[key] = _rope(value)
    data |= _layers({**values, **{k: v for k, v in data.items() if k == "intermediate_size" and isinstance(v, list)}}, data)
    data |= staged
    return data


def _special(key: str, value: Any) -> Data:
    fixed = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "unk_token_id": 3}
    if value is None or isinstance(value, bool):
        return {}
    if key in fixed:
        return {key: fixed[key]}
    if isinstance(value, int):
        return {key: value if 0 <= value < VOCABULARY else 262}
    if isinstance(value, list | tuple):
        return {key: [each if each < VOCABULARY else 262 for each in value if isinstance(each, int)]}
    return {}


def _rope(value: Data) -> Data:
    out: Data = {}
    for key, each in value.items():
        if isinstance(each, dict):
            out[key] = _rope(each)
        elif key == "mrope_section":
            out[key] = [4, 2, 2] if len(each) == 3 else [2] * len(each)
        elif key in ("short_factor", "long_factor") and isinstance(each, list | tuple):
            out[key] = list(each)[:8]
        elif key == "partial_rotary_factor" and "mrope_section" in value:
            out[key] = 1.0
        elif key == "original_max_position_embeddings":
            out[key] = LENGTH // 2
        elif not isinstance(each, PreTrainedConfig):
            out[key] = each
    return out


def _layers(values: Data, data: Data) -> Data:
    """Return lists with an item for each layer, cut to layers of different kinds, and the number of these layers."""
    counts = [key for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in data]
    out: Data = {}
    for count in counts[:1]:
        full = values[count]
        lists = {
            key: list(value)
            for key, value in values.items()
            if isinstance(value, list | tuple) and len(value) == full and full > 1 and PER_LAYER.search(key)
        }
        if not lists:
            continue
        kinds = {key: value for key, value in lists.items() if not all(isinstance(v, int) for v in value) or len(set(value)) <= 3}
        chosen: list[int] = []
        seen = set()
        for index in range(full):
            mark = tuple(str(value[index]) for value in kinds.values())
            if mark not in seen:
                seen.add(mark)
                chosen.append(index)
        chosen = sorted(chosen[:KINDS])
        if len(chosen) < LAYERS:
            chosen = sorted({*chosen, *range(LAYERS)})[:LAYERS] if len(chosen) == 1 else chosen
        for key, value in lists.items():
            own = [value[index] for index in chosen]
            if HEADS.search(key) or "heads" in key:
                own = [SIZES["num_attention_heads"]] * len(own)
            out[key] = own
        for each in counts:
            if values[each] == full:
                out[each] = len(chosen)
    return out


_WIDTHS = ("hidden_sizes", "embed_dims", "neck_hidden_sizes", "encoder_hidden_sizes", "embed_dim", "decoder_hidden_sizes")


def _staged(values: Data) -> Data:
    """Return small lists for models in stages: depths, widths and heads of each."""
    out: Data = {}
    stages = next(
        (
            len(values[key])
            for key in ("depths", "layer_depths", "hidden_sizes", "embed_dims", "embed_dim")
            if _numbers(values.get(key))
        ),
        0,
    )
    if not stages:
        return out
    for key, value in values.items():
        if not _numbers(value) or len(value) != stages:
            continue
        if key in ("depths", "depth"):
            out[key] = [1] * stages
        elif key in _WIDTHS:
            out[key] = [16 * 2**i for i in range(stages)] if value[0] != value[-1] else [16] * stages
        elif "heads" in key:
            out[key] = [min(2**i, 4) for i in range(stages)] if value[0] != value[-1] else [2] * stages
    for key in ("embed_dim", "hidden_size", "embedding_size", "hidden_dim"):
        if isinstance(values.get(key), int) and not isinstance(values.get(key), bool):
            out[key] = 16 if "depths" in values else 32
    if isinstance(values.get("image_size"), int):
        out["image_size"] = 64
    if isinstance(values.get("window_size"), int):
        out["window_size"] = 2
    return out


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(each, int) for each in value)


@cache
def families(kind: str) -> tuple[str, ...]:
    """Return the model types of a kind: causal, bidirectional, seq2seq or vision, sorted."""
    if kind == "causal":
        names = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    elif kind == "seq2seq":
        names = set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    elif kind == "bidirectional":
        names = set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES) | set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
        names = {name for name in names if _is_text_encoder(name)} | set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    else:
        names = {name for name in auto.MODEL_MAPPING_NAMES if _main_input(name) == "pixel_values"}
    return tuple(sorted(name for name in names if name in CONFIG_MAPPING and name != "mmzoo"))


def _class(name: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    try:
        cls = MODEL_MAPPING[CONFIG_MAPPING[name]]
    except Exception:
        return None
    return cls[0] if isinstance(cls, tuple | list) else cls


def _main_input(name: str) -> str | None:
    try:
        return getattr(_class(name), "main_input_name", None)
    except ImportError:  # a class of a library that is not installed
        return None


def _is_text_encoder(name: str) -> bool:
    """Return whether a type without a masked language model is a text encoder: no causal model, and no encoder and decoder."""
    known = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    known |= set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) | {"t5gemma", "mt5", "umt5"}
    return name not in known and name in auto.MODEL_MAPPING_NAMES and _main_input(name) == "input_ids"
