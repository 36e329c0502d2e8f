"""Prepare images and prompts for `MmzooForImageTextToText.generate` in the same way as `MultimodalModel.generate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from mmzoo.data.tokens import pad_with_mask
from mmzoo.errors import BadRecipe, DataError
from mmzoo.integrations.transformers.model import ANSWER, check_takes_images, location_of
from mmzoo.interfaces import CAUSAL, PLACEHOLDER
from mmzoo.models.generation import PROMPT, collated, request
from mmzoo.models.load import load_without_weights


class MmzooProcessor(ProcessorMixin):
    """Prepare images with the encoder's transform (``image_processor``) and texts with the language model's ``tokenizer``."""

    def __init__(self, model: Any) -> None:
        """Create a processor for ``model``, a `MultimodalModel` whose weights are not used."""
        self.model = model
        self.tokenizer = model.language_model.tokenizer
        check_takes_images(model)
        self.image_processor = model.encoder.transform
        self.chat_template = getattr(self.tokenizer, "chat_template", None)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> MmzooProcessor:  # type: ignore[override]
        """Create the processor of a checkpoint; no weights are read.

        Raises:
            BadRecipe, CheckpointError, HubError: as `MmzooForImageTextToText.from_pretrained`.
        """
        options = {key: value for key, value in options.items() if key not in ("dtype", "torch_dtype")}
        return cls(load_without_weights(location_of(name, options)))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> list[str]:  # type: ignore[override]
        """Save the tokenizer; the model saves the rest."""
        return list(self.tokenizer.save_pretrained(Path(save_directory)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.recipe.name or 'unnamed'})"

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        """Return ``input_ids`` and ``attention_mask`` [batch, text] and ``pixel_values`` [images, ...] of images and texts.

        Images and texts are paired as in `MultimodalModel.generate`.

        Raises:
            DoesNotFit, DataError, BadInput, BadRecipe: as `MultimodalModel.generate`.
        """
        if strange := [key for key in options if key not in ("padding", "return_tensors")]:
            raise BadRecipe(f"{strange[0]}: this processor has no such option")
        model = self.model
        check_takes_images(model)
        asked, _ = request(model, {"image": images}, text, max_new_tokens=1, stop=(), chat=False)
        batch = collated(model, asked, asked.examples)
        prompts, own = batch["tasks"][PROMPT], next(iter(batch["encoders"].values()))
        rows = [[*ids[mask.bool()].tolist(), ANSWER] for ids, mask in zip(prompts["ids"], prompts["mask"], strict=True)]
        ids, mask = pad_with_mask(rows, self.tokenizer.pad_token_id, left=model.language_model.architecture == CAUSAL)
        encoded = {"input_ids": ids, "attention_mask": mask}
        if model.encoder.transform is not None:
            index = own["index"].flatten()
            encoded["pixel_values"] = own["inputs"][index[index >= 0]]
        return BatchFeature(encoded)

    def apply_chat_template(self, conversation: Any, chat_template: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Render one conversation or several with the tokenizer's own template. Turns may consist of text and image parts.

        Raises:
            DataError: a conversation ends with an unfinished answer, or a part is neither text nor image.
            BadRecipe: the tokenizer has no template.
        """
        if chat_template is not None or options.get("continue_final_message"):
            raise DataError("a conversation must end with the user's turn, and is rendered with the tokenizer's own template")
        many = not isinstance(conversation[0], Mapping)
        turns, images = zip(*(_flat(messages) for messages in (conversation if many else [conversation])), strict=True)
        encoded = self(images=list(images) if any(images) else None, text=list(turns))
        return encoded if options.get("tokenize", True) else self.batch_decode(encoded["input_ids"], skip_special_tokens=False)

    def batch_decode(self, rows: Tensor | Sequence[Sequence[int]], **options: Any) -> list[str]:
        """Return the texts of rows from `generate`, or of prompts; an answer equals that of `MultimodalModel.generate`."""
        return [self._text(row, **options) for row in torch.as_tensor(rows).tolist()]

    def decode(self, row: Any, **options: Any) -> str:
        return self._text(torch.as_tensor(row).tolist(), **options)

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any) -> list[str]:
        """Decode rows as `batch_decode` does."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)

    def _text(self, row: list[int], skip_special_tokens: bool = True, **_: Any) -> str:
        at = row.index(ANSWER) if ANSWER in row else -1
        parts = [[i for i in part if i >= 0] for part in (row[: at + 1], row[at + 1 :])]
        prompt, answer = (self.tokenizer.decode(part, skip_special_tokens=skip_special_tokens) for part in parts)
        return prompt + answer.strip()


def _flat(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[Any]]:
    """Return the turns of a conversation with placeholders in place of its images, and the images."""
    turns, images = [], []
    for turn in messages:
        text, content = "", turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "text":
                text += part["text"]
            elif part.get("type") == "image":
                images.append(load_image(next(part[key] for key in ("image", "url", "path", "base64") if key in part)))
                text += PLACEHOLDER
            else:
                raise DataError(f"a turn may have text and image parts, not {part.get('type')!r}")
        turns.append({"role": turn["role"], "content": text})
    return turns, images
