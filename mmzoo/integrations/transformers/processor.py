"""Prepare images and prompts for `MmzooForImageTextToText.generate` in the same way as `MultimodalModel.generate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from mmzoo.common.sanitize import one_line, short_repr
from mmzoo.data.tokens import pad_with_mask, render_chat
from mmzoo.errors import BadImage, BadRecipe, DataError
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
        return self._encoded(images, text)

    def _encoded(self, images: Any, text: Any, framed: bool = False) -> BatchFeature:
        """Return the batch of `__call__`; ``framed`` means that the texts already contain their special tokens."""
        model = self.model
        check_takes_images(model)
        asked, _ = request(model, {"image": images}, text, max_new_tokens=1, stop=(), chat=False)
        batch = collated(model, replace(asked, framed=framed), asked.examples)
        prompts, own = batch["tasks"][PROMPT], next(iter(batch["encoders"].values()))
        rows = [[*ids[mask.bool()].tolist(), ANSWER] for ids, mask in zip(prompts["ids"], prompts["mask"], strict=True)]
        ids, mask = pad_with_mask(rows, self.tokenizer.pad_token_id, left=model.language_model.architecture == CAUSAL)
        encoded = {"input_ids": ids, "attention_mask": mask}
        if model.encoder.transform is not None:
            index = own["index"].flatten()
            encoded["pixel_values"] = own["inputs"][index[index >= 0]]
        return BatchFeature(encoded)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: Any = None,
        *,
        images: Any = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Render one conversation or several with the tokenizer's own template, as processors of transformers do.

        Args:
            conversation: turns whose content is a text, or text and image parts: ``{"type": "image"}``, which may hold the image
                as ``image``, ``url``, ``path`` or ``base64``; or a list of such conversations.
            images: the images of the parts and placeholders that hold none, in order.
            add_generation_prompt: end with the start of the assistant's turn, as `MultimodalModel.generate` does.
            tokenize: return ids instead of text, which has a placeholder for each image.
            return_dict: with ``tokenize``, return what `__call__` does.

        Raises:
            DataError: a conversation is not finished, a part is neither text nor image, or an image is missing.
            BadRecipe: the tokenizer has no template, or there is no such option.
            BadInput: an image cannot be read.
        """
        if chat_template is not None or options.get("continue_final_message"):
            raise DataError("a conversation must end with the user's turn, and is rendered with the tokenizer's own template")
        more = dict(options.pop("processor_kwargs", None) or {})
        images = more.pop("images", images)
        ignored = ("padding", "return_tensors")  # rows of one length, as tensors of torch, are what there is
        if strange := [key for key, value in {**more, **options}.items() if value and key not in ignored]:
            raise BadRecipe(f"{strange[0]}: this processor has no such option")
        if not isinstance(conversation, Sequence) or not conversation:
            raise DataError("a conversation is a list of turns: [{'role': 'user', 'content': ...}]")
        many = not isinstance(conversation[0], Mapping)
        flat = [_flat(messages) for messages in (conversation if many else [conversation])]
        if images is not None or tokenize:
            _fill([found for _, found in flat], images)
        context = self.model.text_context()
        texts = [
            render_chat(context, turns, {"image": len(found)}, add_generation_prompt=add_generation_prompt)
            for turns, found in flat
        ]
        if not tokenize:
            return texts if many else texts[0]
        found = [found for _, found in flat]
        encoded = self._encoded(found if any(found) else None, texts, framed=True)
        return encoded if return_dict else encoded["input_ids"]

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


def _flat(messages: Any) -> tuple[list[dict[str, str]], list[Any]]:
    """Return the turns of a conversation with placeholders in place of its images, and the images; None for one not given."""
    turns: list[dict[str, str]] = []
    images: list[Any] = []
    for turn in messages if isinstance(messages, Sequence) else [messages]:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, str | list | tuple) or not isinstance(turn.get("role"), str):
            raise DataError(f"a turn of a conversation is {{'role': text, 'content': text or parts}} (got {short_repr(turn)})")
        text = ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str):
                text += part["text"]
                images += [None] * part["text"].count(PLACEHOLDER)
            elif kind in ("image", "image_url"):
                text += PLACEHOLDER
                images.append(_image(part))
            else:
                raise DataError(f"this model reads images: a turn may have text and image parts, not {short_repr(part)}")
        turns.append({**turn, "content": text})
    return turns, images


def _image(part: Mapping[str, Any]) -> Any:
    """Return the image that a part holds; None if it holds none.

    Raises:
        BadImage: it cannot be read.
    """
    given = next((part[key] for key in ("image", "url", "path", "base64", "image_url") if part.get(key) is not None), None)
    if isinstance(given, Mapping):  # as OpenAI writes it
        given = given.get("url")
    if not isinstance(given, str):
        return given
    try:
        return load_image(given)
    except Exception as error:  # the library raises many types
        raise BadImage(f"{one_line(given, 100)}: {one_line(error)}") from None


def _fill(conversations: Sequence[list[Any]], images: Any) -> None:
    """Put ``images``, one or a list of any depth, where the conversations have None. Without any place, each takes its own.

    Raises:
        DataError: the numbers differ.
    """

    def several(given: Any) -> list[Any]:
        return [image for each in given for image in several(each)] if isinstance(given, list | tuple) else [given]

    given = several(images) if images is not None else []
    if images is not None and not any(conversations):  # each begins with its images, without a placeholder
        own = list(images) if isinstance(images, list | tuple) and len(conversations) > 1 else [images]
        if len(own) == len(conversations):
            for found, each in zip(conversations, own, strict=True):
                found += several(each)
            return
    empty = [(found, i) for found in conversations for i, image in enumerate(found) if image is None]
    if len(empty) != len(given):
        raise DataError(
            f"{len(empty)} images of the conversation are not in it and {len(given)} are given: pass images=[...] in "
            "order, put each into its part, {'type': 'image', 'image': ...}, or render text alone with tokenize=False"
        )
    for (found, i), image in zip(empty, given, strict=True):
        found[i] = image
