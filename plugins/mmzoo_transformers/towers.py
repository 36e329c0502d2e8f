"""Find the text model and the vision tower inside whole vision-language and speech-language models.

``hf-causal:google/gemma-3-4b-it`` means the text model of Gemma 3, and ``hf-vision:google/gemma-3-4b-it`` its vision tower.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel, SiglipImageProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

from mmzoo.api import BIDIRECTIONAL, CAUSAL, SEQ2SEQ, DoesNotFit, MmzooError, class_for, construct_model, quiet
from mmzoo_transformers.whole_models import PartOfModel

_WHOLE = (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)
_CACHE = ("cache", "past_key_values")  # as versions of the library call it
_TRYING: ContextVar[bool] = ContextVar("trying", default=False)


@dataclass(frozen=True)
class InnerModel:
    """Describe a model inside a larger one: how it is built alone, and where its weights are.

    ``architecture`` is that of a text model, as `mmzoo.api.LanguageModel.architecture`.
    """

    cls: Any
    config: PreTrainedConfig
    within: PartOfModel
    options: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""


class _Key:
    """Compare configurations by what they say."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config, self.text = copy.deepcopy(config), f"{type(config)} {config.to_json_string(use_diff=False)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def text_model(config: PreTrainedConfig) -> InnerModel | None:
    """Return the text model of a larger model; None for the configuration of anything else."""
    return _text_model(_Key(config)) if isinstance(getattr(config, "text_config", None), PreTrainedConfig) else None


@lru_cache(maxsize=8)  # a part is planned twice, and each time the larger model is built without weights
def _text_model(key: _Key) -> InnerModel | None:
    config = key.config
    text: Any = config.text_config
    found = _find(config, text)
    if found is None:
        return None
    whole, path, inner = found
    whole_class, head, text = type(whole), _head(whole), copy.deepcopy(text)
    own_head = inner.get_output_embeddings() is not None  # as in BLIP-2
    if not own_head and (head is None or not whole.can_generate()):
        if any(getattr(module, "is_causal", False) for module in inner.modules()):
            return None  # reads in one direction, but has no vocabulary
        return InnerModel(type(inner), text, PartOfModel(whole_class, config, {f"{path}.": ""}), {}, BIDIRECTIONAL)
    # The larger model says whether its vocabulary is tied, whatever the text's own configuration says.
    text.tie_word_embeddings = _is_tied(inner if own_head else whole)
    if (both_ways := getattr(text, "use_bidirectional_attention", None)) in (True, "all"):
        # PaliGemma reads a prompt both ways, and causally what it is trained to write; here both are one text.
        text.use_bidirectional_attention = None if isinstance(both_ways, str) else False
    architecture = SEQ2SEQ if text.is_encoder_decoder else CAUSAL
    if own_head:
        return InnerModel(type(inner), text, PartOfModel(whole_class, config, {f"{path}.": ""}), {}, architecture)
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if text.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    for cls in (class_for(text, mapping), class_for(config, mapping), with_head(type(inner))):
        model = None if cls is None else _on_meta(cls, text)
        if model is not None and model.base_model is not model and type(model.base_model) is type(inner):
            names = {f"{path}.": f"{model.base_model_prefix}.", f"{head}.": f"{_head(model)}."}
            return InnerModel(cls, text, PartOfModel(whole_class, config, names), {}, architecture)
    return None


def vision_tower(config: PreTrainedConfig, name: str) -> InnerModel | None:
    """Return the vision tower of a larger model, called ``name``; None for the configuration of anything else.

    Raises:
        DoesNotFit: the tower takes more than pictures of one size.
    """
    if isinstance(config, CLIPConfig):  # the encoder takes its projection too
        return None
    inner = _vision(_Key(config)) if isinstance(getattr(config, "vision_config", None), PreTrainedConfig) else None
    if inner is None:
        return None
    parameters = inspect.signature(inner.cls.forward).parameters
    needed = [
        key for key, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and key != "self"
    ]
    if "pixel_values" not in parameters or set(needed) - {"pixel_values"}:
        raise DoesNotFit(
            f"'{name}': its vision tower, a {inner.cls.__name__}, takes no plain pictures of one size but "
            f"{', '.join(needed or list(parameters)[1:2])}; choose another encoder, e.g. clip, siglip, dinov2 or timm"
        )
    return inner


@lru_cache(maxsize=8)
def _vision(key: _Key) -> InnerModel | None:
    if (found := _find(key.config, key.config.vision_config)) is None:
        return None
    whole, path, inner = found
    return InnerModel(type(inner), copy.deepcopy(inner.config), PartOfModel(type(whole), key.config, {f"{path}.": ""}))


def _find(config: PreTrainedConfig, part: Any) -> tuple[PreTrainedModel, str, PreTrainedModel] | None:
    """Return the larger model on the meta device, and the name and module of the model in it that has the configuration ``part``
    or one of its type; None if there is none."""
    if not isinstance(part, PreTrainedConfig):
        return None
    for mapping in _WHOLE:
        cls = class_for(config, mapping)
        whole = None if cls is None else _on_meta(cls, config)
        for name, module in whole.named_modules() if whole is not None else ():
            if name and isinstance(module, PreTrainedModel) and type(module.config) is type(part):
                return whole, name, module
    return None


def _on_meta(cls: type[PreTrainedModel], config: PreTrainedConfig, **options: Any) -> Any:
    """Return a model on the meta device; None if the library cannot build it."""
    try:
        with torch.device("meta"), quiet():
            return construct_model(cls, config, **options)
    except Exception:  # the library raises many types; the caller goes on to another class, or refuses the part
        return None


def _head(model: PreTrainedModel) -> str | None:
    """Return the name of a model's output layer; None if it has none."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head and name), None)


def _is_tied(model: PreTrainedModel) -> bool:
    """Return whether the output layer of a model on the meta device has the weights of its word embeddings."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return isinstance(inputs, nn.Embedding) and outputs is not None and inputs.weight is outputs.weight


class _TextWithHead:
    """Add a vocabulary to a text model that the library has only inside larger models, such as Qwen2-VL's."""

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as the library's classes have it
    text_class: type[PreTrainedModel]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.text_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        options |= {"attention_mask": attention_mask, "position_ids": position_ids}
        out = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)
        logits = _as_scaled(self.lm_head(out.last_hidden_state[:, -logits_to_keep:]), self.config)  # type: ignore[attr-defined]
        return CausalLMOutputWithPast(logits=logits, **dict([(name, out[name]) for name in _CACHE if name in out][:1]))


def _as_scaled(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Return logits as the larger models scale and cap them, by the names that transformers has for it."""
    if (factor := getattr(config, "output_multiplier", None)) is not None:  # Muse
        logits = logits * factor
    if (factor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Muse, Mistral Large
        logits = torch.tanh(logits / cap) * cap
    return logits


@cache
def with_head(text_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class that adds a vocabulary to a text model, and has what else the text model's family defines."""
    family = next(cls for cls in text_class.__mro__[1:] if issubclass(cls, PreTrainedModel))
    members = {"text_class": text_class, "config_class": text_class.config_class, "input_modalities": ("text",)}
    return type(f"{text_class.__name__}WithHead", (_TextWithHead, GenerationMixin, family), members)


# Pictures


def whole_picture(processor: Any, height: int, width: int) -> Any:
    """Return the processor that resizes the whole picture to one size and normalises it as ``processor`` does its tiles."""
    own = {key: getattr(processor, key, None) for key in ("resample", "image_mean", "image_std", "rescale_factor")}
    given = {key: value for key, value in own.items() if value is not None}
    return SiglipImageProcessor(size={"height": height, "width": width}, **given)


# Refusals


def entry_that_takes(part: Any, entries: dict[str, Any]) -> str | None:
    """Return the first of ``entries`` (class by name) that accepts the model of ``part``, which refuses it; None if none does.

    A refusal may name only an entry that does not refuse too, so each is built, on the meta device.
    """
    if _TRYING.get():
        return None
    given = part.options
    for name, cls in entries.items():
        if type(part) is cls:
            continue
        with _trying():
            try:
                with torch.device("meta"):
                    cls(cls.Options(variant=given.variant, revision=given.revision, config=given.config))
            except MmzooError:
                continue
            return name
    return None


@contextmanager
def _trying() -> Iterator[None]:
    token = _TRYING.set(True)
    try:
        yield
    finally:
        _TRYING.reset(token)
