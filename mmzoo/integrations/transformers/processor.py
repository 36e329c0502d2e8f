"""Images and prompts as `MmzooForImageTextToText.generate` takes them, laid out as `MultimodalModel.generate` does."""

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
from mmzoo.integrations.transformers.model import ANSWER, check_sees, located
from mmzoo.interfaces.example import PLACEHOLDER
from mmzoo.interfaces.language_model import CAUSAL
from mmzoo.models.generation import collated, request
from mmzoo.models.load import load_without_weights


class MmzooProcessor(ProcessorMixin):
    """``tokenizer`` is the language model's, ``image_processor`` the encoder's transform."""

    def __init__(self, model: Any) -> None:
        """``model``: a `MultimodalModel`, whose weights are not used."""
        self.model = model
        self.tokenizer = model.language_model.tokenizer
        self.image_processor = model.encoder.transform
        self.chat_template = getattr(self.tokenizer, "chat_template", None)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> MmzooProcessor:  # type: ignore[override]
        """As `MmzooForImageTextToText.from_pretrained`; no weights are read.

        Raises:
            BadRecipe, CheckpointError, HubError: as there.
        """
        options = {key: value for key, value in options.items() if key not in ("dtype", "torch_dtype")}
        return cls(load_without_weights(*located(name, options)))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> list[str]:  # type: ignore[override]
        """The tokenizer; the rest is the model's."""
        return list(self.tokenizer.save_pretrained(Path(save_directory)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.recipe.name or 'unnamed'})"

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        """Images and texts, as `MultimodalModel.generate` takes them, to ``input_ids`` and ``attention_mask`` [batch, text] and
        ``pixel_values`` [images, ...].

        Raises:
            DoesNotFit, DataError, BadInput, BadRecipe: as there.
        """
        if strange := [key for key in options if key not in ("padding", "return_tensors")]:
            raise BadRecipe(f"{strange[0]}: this processor has no such option")
        model = self.model
        check_sees(model)
        asked, _ = request(model, images, text, max_new_tokens=1, stop=(), chat=False)
        batch = collated(model, asked, asked.examples)
        rows = [[*ids[mask.bool()].tolist(), ANSWER] for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
        ids, mask = pad_with_mask(rows, self.tokenizer.pad_token_id, left=model.language_model.architecture == CAUSAL)
        found = {"input_ids": ids, "attention_mask": mask}
        if model.encoder.transform is not None:
            index = batch["index"].flatten()
            found["pixel_values"] = batch["inputs"][index[index >= 0]]
        return BatchFeature(found)

    def apply_chat_template(self, conversation: Any, chat_template: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """A conversation, or several, whose turns have texts and images in parts, through the tokenizer's own template.

        Raises:
            DataError: it ends with an answer to go on with, or a part is neither text nor image.
            BadRecipe: the tokenizer has no template.
        """
        if chat_template is not None or options.get("continue_final_message"):
            raise DataError("a conversation ends with the user's turn, and is framed by the tokenizer's own chat template")
        many = not isinstance(conversation[0], Mapping)
        turns, images = zip(*(_flat(messages) for messages in (conversation if many else [conversation])), strict=True)
        encoded = self(images=list(images) if any(images) else None, text=list(turns))
        return encoded if options.get("tokenize", True) else self.batch_decode(encoded["input_ids"], skip_special_tokens=False)

    def batch_decode(self, rows: Tensor | Sequence[Sequence[int]], **options: Any) -> list[str]:
        """Texts of rows that `generate` gave, or of prompts: an answer is what `MultimodalModel.generate` says."""
        return [self._text(row, **options) for row in torch.as_tensor(rows).tolist()]

    def decode(self, row: Any, **options: Any) -> str:
        return self._text(torch.as_tensor(row).tolist(), **options)

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any) -> list[str]:
        """As `batch_decode`."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)

    def _text(self, row: list[int], skip_special_tokens: bool = True, **_: Any) -> str:
        at = row.index(ANSWER) if ANSWER in row else -1
        parts = [[i for i in part if i >= 0] for part in (row[: at + 1], row[at + 1 :])]
        prompt, answer = (self.tokenizer.decode(part, skip_special_tokens=skip_special_tokens) for part in parts)
        return prompt + answer.strip()


def _flat(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[Any]]:
    """A conversation with placeholders in the place of its images, and those."""
    turns, images = [], []
    for turn in messages:
        said = ""
        content = turn["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "text":
                said += part["text"]
            elif part.get("type") == "image":
                images.append(load_image(next(part[key] for key in ("image", "url", "path", "base64") if key in part)))
                said += PLACEHOLDER
            else:
                raise DataError(f"a turn holds texts and images, and not {part.get('type')!r}")
        turns.append({"role": turn["role"], "content": said})
    return turns, images
