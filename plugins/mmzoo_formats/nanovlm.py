"""Read nanoVLM's checkpoints (https://github.com/huggingface/nanoVLM, Apache-2.0), as its own code saves them: config.json and
model.safetensors.

Its vision encoder is SigLIP's with queries, keys and values in one matrix; its decoder is a Llama; between them are pixel
shuffle and one linear layer without bias. Its first version puts the image before the text, later ones at ``<|image|>``; the
newest cut large pictures into pieces, which is not done here.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AddedToken

from mmzoo.api import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    Clues,
    DoesNotFit,
    Format,
    MultimodalModel,
    Options,
    Source,
    WeightSource,
    convert_checkpoint,
    explain,
    not_this_format,
    open_source,
    read_tensors,
)

BILINEAR, BICUBIC = 2, 3  # PIL's numbers
SIGLIP = {
    "embeddings.patch_embedding.": "patch_embedding.conv.",
    "embeddings.position_embedding.weight": "patch_embedding.position_embedding",
    "encoder.layers.": "blocks.",
    "layer_norm": "ln",
    "self_attn.": "attn.",
    "post_layernorm.": "layer_norm.",
}
LLAMA = {
    "model.embed_tokens.": "token_embedding.",
    "model.layers.": "blocks.",
    "self_attn.o_proj": "attn.out_proj",
    "self_attn.": "attn.",
    "input_layernorm.": "norm1.",
    "post_attention_layernorm.": "norm2.",
    "model.norm.": "norm.",
    "lm_head.": "head.",
}
QKV = re.compile(r"([qkv])_proj")


class NanoVLMConfig(BaseModel):
    """Hold the keys of its config.json that decide what it computes, of every version; the others describe its training."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    vit_hidden_dim: int = Field(ge=1)
    vit_inter_dim: int = Field(ge=1)
    vit_patch_size: int = Field(ge=1)
    vit_img_size: int = Field(ge=1)
    vit_n_heads: int = Field(ge=1)
    vit_dropout: float = 0.0
    vit_n_blocks: int = Field(ge=1)
    vit_ln_eps: float = 1e-6
    vit_cls_flag: bool = False
    lm_hidden_dim: int = Field(ge=1)
    lm_inter_dim: int = Field(ge=1)
    lm_rms_eps: float = 1e-5
    lm_re_base: float = 100_000
    lm_max_position_embeddings: int = Field(8192, ge=1)
    lm_vocab_size: int = Field(ge=1)
    lm_n_heads: int = Field(ge=1)
    lm_n_kv_heads: int = Field(ge=1)
    lm_dropout: float = 0.0
    lm_n_blocks: int = Field(ge=1)
    lm_attn_scaling: float = 1.0
    lm_use_tokens: bool = False
    lm_tie_weights: bool = True
    lm_tokenizer: str
    lm_chat_template: str | None = None
    mp_pixel_shuffle_factor: int = Field(2, ge=1)
    mp_image_token_length: int | None = None
    max_img_size: int | None = None
    vlm_extra_tokens: dict[str, str] = Field(default_factory=dict)


class NanoVLM(Format):
    """Read a folder that `VisionLanguageModel.save_pretrained` wrote, or a repository of it."""

    class Options(Options):
        tokenizer: str | None = Field(None, description="`id[@revision]` or a folder; empty for the one that config.json names")
        whole_images: bool = Field(
            False,
            description="accept a checkpoint that cuts large pictures into pieces, and read each picture whole",
        )

    @classmethod
    def recognises(cls, source: Clues) -> bool:
        return {"vit_hidden_dim", "lm_hidden_dim"} <= set(source.config)

    def read(self, source: str) -> MultimodalModel:
        files = open_source(source)
        files.need(CONFIG_FILE)
        data = files.json(CONFIG_FILE)
        if not self.recognises(Clues(config=data)):
            raise not_this_format(source, f"its {CONFIG_FILE} is not one of nanoVLM's")
        try:
            config = NanoVLMConfig.model_validate(data)
        except ValidationError as error:
            raise CheckpointError(explain(error, f"{source}: {CONFIG_FILE}")) from None
        self._check(config, source)
        state = read_tensors([files.need(WEIGHTS_FILE)])
        tokenizer = self._tokenizer(config, files)
        return convert_checkpoint(
            _recipe(config, chat=bool(tokenizer.chat_template) and config.mp_image_token_length is not None),
            state,
            lambda name: _find(name, config.lm_tie_weights),
            label=source,
            ignore=lambda name: name == "decoder.rotary_embd.inv_freq",
            tokenizer=tokenizer,
        )

    def _check(self, config: NanoVLMConfig, source: str) -> None:
        """Refuse configurations that no parts here compute.

        Raises:
            DoesNotFit: naming all such settings.
        """
        grid = config.vit_img_size // config.vit_patch_size
        tokens = (grid // config.mp_pixel_shuffle_factor) ** 2
        cuts = "r1c1" in config.vlm_extra_tokens or (config.max_img_size or 0) > config.vit_img_size
        problems = {
            "vit_cls_flag: an encoder that outputs only its class token": config.vit_cls_flag,
            "lm_use_tokens: a decoder that takes only token ids": config.lm_use_tokens,
            f"lm_attn_scaling: {config.lm_attn_scaling}, where Llama has 1": config.lm_attn_scaling != 1,
            f"mp_pixel_shuffle_factor: {config.mp_pixel_shuffle_factor}, where the projector has 1, 2 and 4": (
                config.mp_pixel_shuffle_factor not in (1, 2, 4)
            ),
            f"mp_image_token_length: {config.mp_image_token_length}, where its sizes make {tokens}": (
                config.mp_image_token_length not in (None, tokens)
            ),
            f"max_img_size: {config.max_img_size}: it cuts pictures larger than {config.vit_img_size} into pieces, which is not "
            "done here; --set whole_images=true accepts it, and reads each picture whole": (
                cuts and not self.options.whole_images
            ),
        }
        if present := [problem for problem, is_present in problems.items() if is_present]:
            raise DoesNotFit(f"{source}: {CONFIG_FILE}: " + "; ".join(present))

    def _tokenizer(self, config: NanoVLMConfig, files: Source) -> Any:
        """Make the tokenizer as nanoVLM's get_tokenizer does: the base, its own tokens appended, padded by the end token."""
        chosen = self.options.tokenizer or config.lm_tokenizer
        tokenizer = (
            files if self.options.tokenizer is None and files.find("tokenizer.json") else open_source(chosen)
        ).tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in config.vlm_extra_tokens.values()])
        tokenizer.pad_token = tokenizer.eos_token
        if config.lm_chat_template:
            tokenizer.chat_template = config.lm_chat_template
        return tokenizer


def _recipe(config: NanoVLMConfig, chat: bool) -> dict[str, Any]:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": config.vit_hidden_dim,
        "intermediate_size": config.vit_inter_dim,
        "num_hidden_layers": config.vit_n_blocks,
        "num_attention_heads": config.vit_n_heads,
        "image_size": config.vit_img_size,
        "patch_size": config.vit_patch_size,
        "layer_norm_eps": config.vit_ln_eps,
        "attention_dropout": config.vit_dropout,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": False,
    }
    # torchvision's Resize and ToTensor on PIL images; nothing is normalised.
    size = {"height": config.vit_img_size, "width": config.vit_img_size}
    splits = "r1c1" in config.vlm_extra_tokens
    processor = {
        "image_processor_type": "SiglipImageProcessorPil",
        "size": size,
        "resample": BICUBIC if splits else BILINEAR,
        "do_normalize": False,
    }
    language = {
        "model_type": "llama",
        "vocab_size": config.lm_vocab_size,
        "hidden_size": config.lm_hidden_dim,
        "intermediate_size": config.lm_inter_dim,
        "num_hidden_layers": config.lm_n_blocks,
        "num_attention_heads": config.lm_n_heads,
        "num_key_value_heads": config.lm_n_kv_heads,
        "max_position_embeddings": config.lm_max_position_embeddings,
        "rms_norm_eps": config.lm_rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.lm_re_base},
        "attention_dropout": config.lm_dropout,
        "tie_word_embeddings": config.lm_tie_weights,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    template = "{text}" if config.mp_image_token_length is not None else "Question: {text} Answer:"
    return {
        "name": "nanovlm",
        "source": "nanoVLM, Wiedmann et al. 2025, https://github.com/huggingface/nanoVLM",
        "encoder": {"use": "siglip", "config": vision, "processor": processor},
        "fusion": {
            "use": "projector",
            "layers": "linear",
            "bias": False,
            "pixel_shuffle": config.mp_pixel_shuffle_factor,
        },
        "language_model": {"use": "smollm2", "config": language, "tokenizer": "checkpoint"},
        "task": {"use": "vqa", "template": template, "max_new_tokens": 32, **({"chat": True} if chat else {})},
    }


def _find(name: str, tied: bool) -> WeightSource:
    kind, _, rest = name.partition(".")
    if kind == "fusion":
        return WeightSource(("MP.proj." + rest.removeprefix("model."),))
    rest = rest.removeprefix("model.")
    for own, original in (SIGLIP if kind == "encoder" else LLAMA).items():
        rest = rest.replace(own, original)
    if kind == "language_model":
        # A tied matrix is saved under either name or both.
        also = ("decoder.head.weight",) if tied and rest == "token_embedding.weight" else ()
        return WeightSource((f"decoder.{rest}", *also))
    if match := QKV.search(rest):
        third = "qkv".index(match[1])
        return WeightSource((f"vision_encoder.{QKV.sub('qkv_proj', rest)}",), lambda value: value.unflatten(0, (3, -1))[third])
    if rest.endswith("position_embedding"):
        return WeightSource((f"vision_encoder.{rest}",), lambda value: value.squeeze(0))
    return WeightSource((f"vision_encoder.{rest}",))
