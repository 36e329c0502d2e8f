"""Wrap a `MultimodalModel` as a model of transformers, for its pipelines and its ``generate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel

from mmzoo.data.tokens import check_length, pad_rows, pad_with_mask
from mmzoo.errors import BadRecipe, DataError, DoesNotFit
from mmzoo.interfaces import CAUSAL, PLACEHOLDER_ID, Features
from mmzoo.models.generation import NEW_TOKENS, check_writes
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel

ANSWER = -199  # an id that no token has; the processor puts it where the answer begins
# Options from the auto classes that do not affect the model. Any other option is refused, because it would be ignored silently.
_IGNORED = {"_from_auto", "_from_pipeline", "trust_remote_code", "adapter_kwargs", "code_revision", "config", "use_safetensors"}
_INSTEAD = {"token": "log in with `hf auth login`, or set HF_TOKEN", "local_files_only": "set HF_HUB_OFFLINE=1"}


class MmzooConfig(PreTrainedConfig):
    """Hold the model type only, which transformers reads from config.json; ``mmzoo.json`` describes the model."""

    model_type = "mmzoo"


class MmzooForImageTextToText(PreTrainedModel, GenerationMixin):
    """Wrap a `MultimodalModel`, which ``model`` holds, and translate its `generate` to the arguments of transformers."""

    config_class = MmzooConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 - as in the library
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the language model decides

    def __init__(self, config: MmzooConfig, model: MultimodalModel) -> None:
        super().__init__(config)
        self.model = model
        self.generation_config = GenerationConfig(max_new_tokens=NEW_TOKENS)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *arguments: Any, **options: Any) -> MmzooForImageTextToText:  # type: ignore[override]
        """Load a model as `mmzoo.load` does, with all its checks.

        Args:
            name: a checkpoint folder, or a repository's ``"owner/name"``.
            options: ``revision``, ``dtype`` and ``local_files_only`` as in transformers; ``dtype="auto"`` keeps the saved type.

        Raises:
            BadRecipe: another option, which would change what is loaded.
            CheckpointError, HubError: as `mmzoo.load`.
        """
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
        model = load(location_of(name, options))
        if dtype is not None and dtype != "auto":
            model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        config = options.get("config")
        if not isinstance(config, MmzooConfig):
            config = MmzooConfig()
            config.name_or_path = str(name)
        return cls(config, model).eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:  # type: ignore[override]
        """Save the model as `MultimodalModel.save` does."""
        self.model.save(Path(save_directory))

    def get_input_embeddings(self) -> Any:
        return self.model.language_model.embed

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Tensor:
        """Return ids [batch * returned, text + out]: prompts of `MmzooProcessor`, then what `MultimodalModel.generate` writes.

        Args:
            input_ids: [batch, text], padded on either side.
            attention_mask: [batch, text].
            pixel_values: [images, ...], in the order of the prompts.
            generation_config, options: as in transformers; the default is greedy, with at most `NEW_TOKENS` new tokens.

        Raises:
            DoesNotFit: the model does not generate, or does not take images.
            DataError: the numbers of images and placeholders differ, or a prompt exceeds the context.
            BadRecipe: an option is wrong.
        """
        model, text = self.model, self.model.text_context()
        check_writes(model)
        check_takes_images(model)
        if input_ids is None:
            raise DataError("generate needs input_ids from AutoProcessor")
        config = GenerationConfig() if generation_config is None else generation_config
        chosen = {**self.generation_config.to_diff_dict(), **config.to_diff_dict(), **options}
        chosen = {key: value for key, value in chosen.items() if key not in ("transformers_version", "return_dict_in_generate")}
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[(real != 0) & (ids != ANSWER)].tolist() for ids, real in zip(input_ids, mask, strict=True)]
        causal = text.architecture == CAUSAL
        new = chosen.get("max_new_tokens")
        check_length(rows, text, [f"#{i}" for i in range(len(rows))], new if causal and isinstance(new, int) else 0)
        with model.evaluating():
            features = self._features(rows, pixel_values)
            ids, real = pad_with_mask(rows, text.tokenizer.pad_token_id, left=causal)
            out = model.generate_ids(features, ids.to(model.device), real.to(model.device), **chosen)
        return torch.cat([input_ids.to(out.device).repeat_interleave(len(out) // len(input_ids), 0), out], 1)

    def _features(self, rows: list[list[int]], pixels: Tensor | None) -> dict[str, Features]:
        model, name = self.model, next(iter(self.model.encoders))
        if model.encoder.transform is None:
            return {name: model.encode(torch.zeros(1, 0, device=model.device), torch.zeros(len(rows), dtype=torch.long))}
        counts = [max(1, row.count(PLACEHOLDER_ID)) for row in rows]
        available = 0 if pixels is None else len(pixels)
        if pixels is None or available != sum(counts):
            raise DataError(f"{len(rows)} prompts ask for {sum(counts)} images and pixel_values hold {available}")
        ends = torch.tensor(counts).cumsum(0).tolist()
        index = pad_rows([list(range(end - count, end)) for count, end in zip(counts, ends, strict=True)], -1)
        inputs = pixels.to(model.device, next(model.encoder.parameters()).dtype)
        return {name: model.encode(inputs, (index if index.shape[1] > 1 else index[:, 0]).to(model.device))}


def check_takes_images(model: MultimodalModel) -> None:
    """Raise `DoesNotFit` if the model takes anything but images through one encoder, as this wrapper has no arguments for it."""
    if model.modalities != ["image"] or len(model.encoders) > 1:
        takes = " and ".join(model.modalities)
        inputs = ", ".join(f"{modality}=..." for modality in model.modalities)
        raise DoesNotFit(f"this model takes {takes}, not images alone; use model.generate({inputs}) of mmzoo.load")


def location_of(name: str | os.PathLike[str], options: dict[str, Any]) -> str:
    """Return the argument of `mmzoo.load`; raise `BadRecipe` for an option of transformers that would change what is loaded."""
    for key, value in options.items():
        harmless = (None, True) if key == "token" else (None, False)
        if key not in {"revision", *_IGNORED} and value not in harmless:
            raise BadRecipe(f"{key}: mmzoo does not support this option; {_INSTEAD.get(key, 'omit it, or use mmzoo.load')}")
    revision = options.get("revision")
    return str(name) if revision is None or Path(name).is_dir() else f"{name}@{revision}"
