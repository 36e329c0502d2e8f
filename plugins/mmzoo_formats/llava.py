"""Read and write LLaVA (Liu et al. 2023, https://arxiv.org/abs/2310.03744), as transformers' `LlavaForConditionalGeneration`
has it.

It is a vision tower, one of whose hidden states is used, with or without the class token; Linear, GELU, Linear; and a language
model whose embeddings at ``<image>`` are the image's. Weights are read by their names in transformers 5 and in both earlier
layouts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor

from mmzoo.api import (
    CONFIG_FILE,
    PROCESSORS,
    Clues,
    DoesNotFit,
    Format,
    MultimodalModel,
    Source,
    WeightSource,
    convert_checkpoint,
    explain_errors,
    not_this_format,
    open_source,
    plan_model,
    read_tensors,
)
from mmzoo_formats.llava_export import write

VISION = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}
# Settings by which a causal class changes its logits after the output layer (LLaVA's does not), and values without effect.
AFTER_HEAD: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("logit_scale", "lm_head_multiplier", "logits_scaling"), (None, 1)),
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap"), (None, 0)),
}
HEAD, WORDS = "lm_head.weight", "language_model.embed_tokens.weight"
COMPUTED = re.compile(r".*(rotary_emb\.inv_freq|embeddings\.position_ids)")
FACTS = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")  # without effect on what is computed


class Llava(Format):
    """Read a folder that `LlavaForConditionalGeneration` and its processor saved, or a repository of it; write such a folder."""

    @classmethod
    def recognises(cls, source: Clues) -> bool:
        return source.config.get("model_type") == "llava" and "text_config" in source.config

    def read(self, source: str) -> MultimodalModel:
        files = open_source(source)
        files.need(CONFIG_FILE)
        if not self.recognises(Clues(config=files.json(CONFIG_FILE))):
            raise not_this_format(source, f"its {CONFIG_FILE} is not one of LLaVA's in transformers")
        config = files.config()
        _check(config, source)
        recipe = self._recipe(config, files)
        tokens, kept = (plan_model(_kept(recipe, keep), source).encoder.spec.tokens for keep in (False, True))
        if config.vision_feature_select_strategy == "full":
            recipe = _kept(recipe, True)
        elif kept - tokens != 1:
            raise DoesNotFit(
                f"{source}: vision_feature_select_strategy: default drops the first token, and of this vision tower's {kept} "
                f"tokens {kept - tokens} are not patches"
            )
        state = {_current(name): value for name, value in read_tensors(files.weights("LlavaForConditionalGeneration")).items()}
        head, words = state.get(HEAD), state.get(WORDS)
        # As in the library: if a file has both matrices and they differ, they are not tied, whatever its configuration says.
        tied = config.tie_word_embeddings and (head is None or words is None or torch.equal(head, words))
        recipe["language_model"]["config"]["tie_word_embeddings"] = tied
        return convert_checkpoint(
            recipe,
            state,
            lambda name: _find(name, tied),
            label=source,
            ignore=lambda name: COMPUTED.fullmatch(name) is not None,
            tokenizer=_tokenizer(files),
        )

    def write(self, model: MultimodalModel, folder: Path) -> None:
        write(model, folder)

    def _recipe(self, config: Any, files: Source) -> dict[str, Any]:
        path = next((path for name in PROCESSORS if (path := files.find(name))), None) or files.need(PROCESSORS[0])
        with explain_errors(f"'{files.name}': {path.name} cannot be used"):
            processor = AutoImageProcessor.from_pretrained(str(path.parent), trust_remote_code=False)
        vision, text = _plain(config.vision_config), _plain(config.text_config)
        if vision["model_type"] == "clip_vision_model":
            vision["architectures"] = ["CLIPVisionModel"]  # the tower without the projection to CLIP's embedding
        layer = _layer(config)
        text["tie_word_embeddings"] = config.tie_word_embeddings
        text["eos_token_id"] = _ends(text, files)
        return {
            "name": "llava",
            "source": "LLaVA-1.5, Liu et al. 2023, https://arxiv.org/abs/2310.03744",
            "encoder": {
                "use": VISION.get(vision["model_type"], "hf-vision"),
                "config": vision,
                "processor": json.loads(processor.to_json_string()),
                # The last layer by its number, since -1 means the model's output, which may be normalised.
                "layer": vision.get("num_hidden_layers", -1) if layer == -1 else layer,
            },
            "fusion": {"use": "projector", "layers": "mlp", "bias": config.multimodal_projector_bias},
            "language_model": {"use": "hf-causal", "config": text, "tokenizer": "checkpoint"},
            "task": {"use": "vqa", "template": "{text}", "max_new_tokens": 32},
        }


def _check(config: Any, source: str) -> None:
    """Refuse configurations that no parts here compute.

    Raises:
        DoesNotFit: naming all such settings.
    """
    text = config.text_config
    problems = {
        f"vision_feature_layer: {config.vision_feature_layer}: several layers at once": not isinstance(_layer(config), int),
        f"projector_hidden_act: {config.projector_hidden_act}, where the projector has gelu": config.projector_hidden_act
        != "gelu",
        f"text_config: a {text.model_type} scales its logits, and LLaVA's class does not": any(
            getattr(text, key, None) not in neutral for key, neutral in AFTER_HEAD.items()
        ),
    }
    if present := [problem for problem, is_present in problems.items() if is_present]:
        raise DoesNotFit(f"{source}: {CONFIG_FILE}: " + "; ".join(present))


def _layer(config: Any) -> Any:
    layer = config.vision_feature_layer
    return layer[0] if isinstance(layer, list | tuple) and len(layer) == 1 else layer


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration as data from which an equal one can be made."""
    data = {key: value for key, value in config.to_diff_dict().items() if key not in FACTS}
    return {**data, "model_type": config.model_type}


def _ends(text: dict[str, Any], files: Source) -> list[int]:
    """Return every id that ends a text: generation_config.json's and the configuration's."""
    ids: set[int] = set()
    for value in (files.json("generation_config.json").get("eos_token_id"), text.get("eos_token_id")):
        ids.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
    return sorted(ids)


def _tokenizer(files: Source) -> Any:
    """Return the tokenizer, with the chat template that older processors kept in a file of their own."""
    tokenizer = files.tokenizer()
    if not tokenizer.chat_template:
        tokenizer.chat_template = files.json("chat_template.json").get("chat_template")
    return tokenizer


def _kept(recipe: dict[str, Any], keep: bool) -> dict[str, Any]:
    return {**recipe, "encoder": {**recipe["encoder"], "keep_class_token": keep}}


def _current(name: str) -> str:
    """Return the name in transformers 5, without its ``model.``, of a weight's name in transformers 4."""
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    name = re.sub(r"^language_model\.model\.", "language_model.", name)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)


def _find(name: str, tied: bool) -> WeightSource:
    kind, _, rest = name.partition(".")
    rest = rest.removeprefix("model.")
    if kind == "encoder":
        return WeightSource((f"vision_tower.{rest.removeprefix('vision_model.')}",))
    if kind == "fusion":
        layer, _, leaf = rest.partition(".")
        return WeightSource((f"multi_modal_projector.linear_{1 if layer == '0' else 2}.{leaf}",))
    if rest.startswith("lm_head."):
        return WeightSource((rest,))
    first = f"language_model.{rest.partition('.')[2]}"
    return WeightSource((first, "lm_head.weight") if tied and "embed" in first else (first,))
