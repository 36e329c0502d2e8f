"""Write a model as transformers' `LlavaForConditionalGeneration` with its processor.

Before anything is kept, the logits of the library's class with the weights are compared with those of the model here, so that a
family of language models that it would run differently is refused.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

from mmzoo.api import PLACEHOLDER, PLACEHOLDER_ID, DoesNotFit, MultimodalModel, first_names, one_line, with_placeholder

POOLER, PROJECTION = "vision_tower.pooler.", "vision_tower.visual_projection."
TOLERANCE = 1e-3  # of the largest logit


def write(model: MultimodalModel, folder: Path) -> None:
    """Write a model to a folder, as `mmzoo.formats.format.Format.write` defines it."""
    _check(model)
    patches, extra, strategy = _tokens(model)
    tokenizer = copy.deepcopy(with_placeholder(model.language_model.tokenizer))
    image_id = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    config = _config(model, image_id, strategy)
    llava = _llava(model, config, image_id)
    _compare(model, llava, image_id, (patches + extra) - (strategy == "default"))
    llava.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.language_model.end_ids or None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=[image_id] if image_id >= model.language_model.spec.vocab_size else None,  # a row that was added
    )
    llava.save_pretrained(folder)
    LlavaProcessor(
        image_processor=model.encoder.transform.processor,  # type: ignore[attr-defined]
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)


def _check(model: MultimodalModel) -> None:
    """Refuse parts that LLaVA cannot hold.

    Raises:
        DoesNotFit: naming the part.
    """
    encoder, fusion, language = model.encoder, model.fusion, model.language_model
    recipe = model.recipe
    uses = {"encoder": recipe.encoder.use, "fusion": recipe.fusion.use, "language_model": recipe.language_model.use}
    if not isinstance(getattr(encoder, "model", None), PreTrainedModel):
        raise DoesNotFit(
            f"llava: encoder '{uses['encoder']}' is not a vision model of transformers; hf-vision, clip and siglip are"
        )
    if getattr(encoder.transform, "processor", None) is None:
        raise DoesNotFit(
            f"llava: encoder '{uses['encoder']}': no image processor of transformers prepares images in the same way"
        )
    if model.provenance.entries[recipe.key("fusion")].name != "projector":
        raise DoesNotFit(f"llava: fusion '{uses['fusion']}': LLaVA's is `projector` with layers: mlp")
    options = fusion.options
    if options.layers != "mlp" or options.pixel_shuffle != 1 or fusion.tiles != 1:
        raise DoesNotFit("llava: fusion 'projector': LLaVA's has layers: mlp, pixel_shuffle: 1 and tiles: 1")
    if language.architecture != "causal" or not isinstance(getattr(language, "model", None), PreTrainedModel):
        raise DoesNotFit(
            f"llava: language model '{uses['language_model']}' is not a causal one of transformers; LLaVA takes those like "
            "Llama: hf-causal, smollm2 and qwen3, for example"
        )


def _tokens(model: MultimodalModel) -> tuple[int, int, str]:
    """Return the number of patches of an image, the number of tokens before them, and which of them LLaVA must use."""
    encoder: Any = model.encoder
    config = encoder.model.config
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or not hasattr(config, "hidden_size"):
        raise DoesNotFit(f"llava: a {config.model_type} has no patches or no hidden_size, and LLaVA counts by them; choose a ViT")
    size = encoder.transform.processor
    size = getattr(size, "crop_size", None) if getattr(size, "do_center_crop", False) else size.size
    patches = (size["height"] // patch) * (size["width"] // patch)
    blank = torch.zeros(1, 3, size["height"], size["width"], device=model.device)
    with torch.no_grad():
        out = encoder.model(blank, output_hidden_states=True)
    if encoder.options.layer == -1 and not torch.equal(out.last_hidden_state, out.hidden_states[-1]):
        raise DoesNotFit(
            f"llava: encoder.layer: -1 is the output of '{model.recipe.encoder.use}' after its last norm, and LLaVA takes states "
            "before it; train with encoder.layer: -2"
        )
    extra = out.last_hidden_state.shape[1] - patches
    if encoder.options.keep_class_token or extra == 0:
        return patches, extra, "full"
    if extra == 1:
        return patches, extra, "default"
    raise DoesNotFit(
        f"llava: there are {extra} tokens before the patches of '{model.recipe.encoder.use}', and LLaVA drops one at most"
    )


def _config(model: MultimodalModel, image_id: int, strategy: str) -> LlavaConfig:
    text = copy.deepcopy(model.language_model.model.config.get_text_config())  # type: ignore[union-attr,operator]
    text.vocab_size = max(text.vocab_size, image_id + 1)
    vision: Any = model.encoder.model.config  # type: ignore[union-attr]
    return LlavaConfig(
        vision_config=copy.deepcopy(vision),
        text_config=text,
        image_token_index=image_id,
        image_seq_length=model.fusion.added_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=model.encoder.options.layer,  # type: ignore[union-attr]
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=model.fusion.options.bias,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _llava(model: MultimodalModel, config: LlavaConfig, image_id: int) -> LlavaForConditionalGeneration:
    """Return the library's model with the model's weights.

    Raises:
        DoesNotFit: it cannot hold the language model.
    """
    kind = config.text_config.model_type
    language: Any = model.language_model.model
    state = {f"model.vision_tower.{_bare(name)}": value for name, value in _state(model.encoder.model).items()}  # type: ignore[arg-type]
    layers = {"model.0": "linear_1", "model.2": "linear_2"}
    for name, value in model.fusion.state_dict().items():
        layer = next(own for own in layers if name.startswith(own))
        state[name.replace(layer, f"model.multi_modal_projector.{layers[layer]}")] = value
    for name, value in _state(language).items():
        inner = name.removeprefix(f"{language.base_model_prefix}.")
        state[f"model.language_model.{inner}" if inner != name else name] = value
    embedding = next(name for name, p in language.base_model.named_parameters() if p is language.get_input_embeddings().weight)
    for name in (f"model.language_model.{embedding}", "lm_head.weight"):
        if name in state:
            state[name] = _grown(state[name], config.text_config.vocab_size, model.language_model.tokenizer)
    try:
        with torch.device("meta"):
            wanted = LlavaForConditionalGeneration(config).state_dict()
        # LLaVA does not use the pooled vector, so neither its projection here nor the pooler of the library's tower matters.
        state.update({name: torch.zeros(value.shape) for name, value in wanted.items() if POOLER in name and name not in state})
        unused = {name for name in set(state) - set(wanted) if PROJECTION not in name}
        if missing := set(wanted) - set(state):
            raise ValueError(f"it has no {first_names(missing)}")
        if unused:
            raise ValueError(f"LLaVA has no place for {first_names(unused)}")
        state = {name: state[name].detach().cpu() for name in wanted}
        llava = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
        if llava.get_input_embeddings().weight.shape[0] <= image_id:
            raise ValueError("its embeddings cannot take the token of the image")
    except Exception as error:  # the library's class fails in many ways on a model that it was not made for
        raise DoesNotFit(
            f"llava: LlavaForConditionalGeneration cannot hold a {kind}: {one_line(error)}. It takes those like Llama: llama, "
            "mistral, qwen2, qwen3, ..."
        ) from None
    return llava.eval()


def _bare(name: str) -> str:
    return name.removeprefix("vision_model.")


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights under their own names, with the adapters of ``lora:r`` merged."""
    changes = {}
    for name, layer in module.named_modules():
        if hasattr(layer, "get_delta_weight"):  # one of experts names the tensor that it adapts
            changes[f"{name}.{getattr(layer, 'parameter_name', 'weight')}".replace(".base_layer", "")] = layer
    state = {}
    for name, value in module.state_dict().items():
        if ".lora_" not in name:
            bare = name.replace(".base_layer", "")
            state[bare] = value + changes[bare].get_delta_weight("default") if bare in changes else value
    return state


def _grown(matrix: Tensor, rows: int, tokenizer: Any) -> Tensor:
    """Return ``matrix`` with rows for the image's token.

    They are copies of an existing token's row, so that none of them is ever the only likeliest; generation also suppresses it.
    """
    pad = tokenizer.pad_token_id
    copied = pad if pad is not None and pad != tokenizer.eos_token_id and pad < matrix.shape[0] else 0
    return torch.cat([matrix, matrix[copied].expand(rows - matrix.shape[0], -1)]) if rows > matrix.shape[0] else matrix


@torch.no_grad()
def _compare(model: MultimodalModel, llava: LlavaForConditionalGeneration, image_id: int, tokens: int) -> None:
    """Refuse a model whose logits, of a picture of noise and a few words, differ in the library's class.

    Raises:
        DoesNotFit: naming the difference.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.encoder.transform(_blank()).shape
    pixels = torch.randn(1, *size, generator=generator)
    words = torch.randint(0, min(model.language_model.spec.vocab_size, image_id), (6,), generator=generator).tolist()
    features = model.encode(pixels.to(model.device), torch.zeros(1, dtype=torch.long, device=model.device))
    ids = torch.tensor([[*words[:2], PLACEHOLDER_ID, *words[2:]]], device=model.device)
    outputs = model.outputs(dict.fromkeys(model.encoders, features), {"ids": ids, "mask": torch.ones_like(ids)})
    own = model.language_model.logits(outputs.states.hidden)[0].float().cpu()
    kind = llava.config.text_config.model_type
    try:
        exported = llava(input_ids=torch.tensor([[*words[:2], *[image_id] * tokens, *words[2:]]]), pixel_values=pixels).logits[0]
    except Exception as error:  # as in _llava
        raise DoesNotFit(f"llava: LlavaForConditionalGeneration cannot run a {kind}: {one_line(error)}") from None
    # The order of positions is the same but for the placeholder's own, which is masked and comes last here.
    exported = exported[..., : own.shape[-1]]
    own = own[: exported.shape[0]]
    gap, scale = (own - exported).abs().max().item(), own.abs().max().item()
    if own.shape != exported.shape or not gap <= TOLERANCE * max(scale, 1.0):
        raise DoesNotFit(f"llava: LlavaForConditionalGeneration computes other logits with a {kind} (off by {gap:.2g})")


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 48))
