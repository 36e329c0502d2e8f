"""Generate text: prompts and conversations with images or other inputs in, words out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmzoo.data.batching import batches, paired
from mmzoo.data.collate import Collator, raise_bad, tensors
from mmzoo.data.tokens import check_length, pad_with_mask, prompt_ids
from mmzoo.data.tokens import render_chat as template
from mmzoo.errors import BadRecipe, DataError, DoesNotFit, MmzooError, PluginBroken
from mmzoo.interfaces.example import Example
from mmzoo.interfaces.features import Features
from mmzoo.interfaces.language_model import CAUSAL, LanguageSpec
from mmzoo.registry.entries import Entry

if TYPE_CHECKING:
    from mmzoo.models.model import MultimodalModel

NEW_TOKENS = 32  # at most, where nobody says otherwise
# Beyond these an option is a slip: rows are held all at once, and a model without a context would write for days.
LIMITS = {"max_new_tokens": 1_000_000, "num_beams": 1024, "num_return_sequences": 1024}
PLAIN = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "use_cache": True}  # what is so unless a caller says
# Options of the library that are filled in here, so that what a caller gave would be lost.
FILLED = {
    "max_length": "max_new_tokens says how much is written",
    "generation_config": "give its settings as options",
    "return_dict_in_generate": "texts are what is returned",
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "encoder_outputs", "past_key_values", "cache"),
        "it is made from the images and the prompt",
    ),
}


@dataclass
class Request:
    """What is to be written: ``examples`` whose texts are prompts, ``framed`` if a chat template framed them, the new tokens
    at most, the strings to ``stop`` before, and the library's own options."""

    examples: list[Example]
    framed: bool
    stop: list[str]
    options: dict[str, Any]

    @property
    def max_new_tokens(self) -> int:
        return self.options["max_new_tokens"]


def request(
    model: MultimodalModel, given: Any, prompt: Any, *, max_new_tokens: int, stop: str | Sequence[str], chat: bool, **options: Any
) -> tuple[Request, bool]:
    """The request, and whether lists were given.

    Raises:
        DoesNotFit: the language model does not generate, or the task writes nothing. BadRecipe: a wrong option.
        DataError: what belongs together does not.
    """
    check_writes(model)
    check_limits({"max_new_tokens": max_new_tokens, **options})
    if filled := [name for name in FILLED if name in options]:
        raise BadRecipe(f"generate: {filled[0]}: {FILLED[filled[0]]}")
    criteria = options.get("stopping_criteria", ())
    if not isinstance(criteria, Sequence):
        raise BadRecipe(f"generate: stopping_criteria: must be a list of them (got {criteria!r})")
    stops = list(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else [stop]
    if not all(isinstance(text, str) and text for text in stops):
        raise BadRecipe(f"generate: stop: must be a text or several, none empty (got {stop!r})")
    pairs, many = paired(given, prompt, modality=model.modality, sees=model.encoder.transform is not None)
    framed = chat or any(_is_conversation(words) for _, words in pairs)
    examples = []
    for i, (source, words) in enumerate(pairs):
        example = model.example(i, source, "" if words is None or framed else words)
        examples.append(_framed(model, example, words) if framed else example)
    return Request(examples, framed, stops, {"max_new_tokens": max_new_tokens, **options}), many


def check_limits(options: Mapping[str, Any]) -> None:
    """
    Raises:
        BadRecipe: one of the numbers in `LIMITS` is none, or beyond its limit.
    """
    for name, most in LIMITS.items():
        value = options.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise BadRecipe(f"generate: {name}: must be a whole number from 1 to {most} (got {value!r})")


@contextmanager
def checked(options: Mapping[str, Any]) -> Iterator[None]:
    """What a language model raises because of an option, as our own error.

    Raises:
        BadRecipe: an option is unknown, or its value is wrong.
    """
    check_limits({name: value for name, value in options.items() if value is not None})
    try:
        yield
    except MmzooError:
        raise
    except (TypeError, ValueError) as error:
        raise BadRecipe(f"generate: {error}") from error
    except Exception as error:  # the library checks few of its options, and what a wrong one comes to can be anything
        if not (names := _chosen(options)):
            raise
        raise BadRecipe(f"generate: with {', '.join(names)}: {type(error).__name__}: {error}") from error


def _chosen(options: Mapping[str, Any]) -> list[str]:
    """The options that a caller chose, without those that every call may hold."""
    every = {"max_new_tokens", "stopping_criteria", "streamer"}
    return sorted(name for name, value in options.items() if name not in every and (name not in PLAIN or value != PLAIN[name]))


def check_room(language_model: LanguageSpec, mask: Tensor, new: int) -> None:
    """Check that ``new`` tokens go behind the longest row. A row of the padded batch was seen when it was laid out, with what
    the task reserves; a caller may ask for more.

    Raises:
        DataError: naming the lengths.
    """
    context = language_model.max_length if language_model.architecture == CAUSAL else None
    if context is not None and (longest := int(mask.sum(1).max())) + new > context:
        raise DataError(
            f"{longest} positions of a prompt and {new} to generate exceed the language model's context of {context}; "
            "shorten the text or generate less"
        )


def check_count(written: Any, wanted: int, entry: Entry) -> None:
    """
    Raises:
        PluginBroken: ``written`` are not the ids of so many texts.
    """
    if not isinstance(written, Tensor) or len(written) != wanted:
        found = f"{len(written)} rows" if isinstance(written, Tensor) else type(written).__name__
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': generate gives {found} where {wanted} texts are asked for")


def check_writes(model: MultimodalModel) -> None:
    """
    Raises:
        DoesNotFit: the language model does not generate, or the task writes nothing.
    """
    if not model.language_model.spec.generates:
        name = model.recipe.language_model.use
        raise DoesNotFit(f"language model '{name}' does not generate text; use model.predict, or build with a causal one")
    if not model.task.needs_generation:  # nothing ever taught it to: what it wrote would be noise
        name = model.recipe.task.use
        raise DoesNotFit(
            f"a model for the task '{name}' does not generate text; use model.predict, or build with a task that writes"
        )


def _is_conversation(words: Any) -> bool:
    return isinstance(words, list | tuple)


def _framed(model: MultimodalModel, example: Example, words: Any) -> Example:
    """The example with its prompt or conversation in the chat template."""
    messages = list(words) if _is_conversation(words) else [{"role": "user", "content": words or ""}]
    for turn in messages:
        if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise DataError(f"a turn of a conversation is {{'role': text, 'content': text}} (got {turn!r})")
    inputs = example.inputs(model.encoder.modality)
    return replace(example, text=template(model.text_context(), messages, len(inputs)))


def write(model: MultimodalModel, asked: Request, batch_size: int) -> list[str]:
    """The texts, in order; several of an example follow one another."""
    found: list[str] = []
    tokenizer = model.language_model.tokenizer
    for group in batches(asked.examples, batch_size):
        out = model.generate_ids(*model_inputs(model, asked, group), **decoding_options(asked, tokenizer))
        found += [cut(line.strip(), asked.stop).strip() for line in tokenizer.batch_decode(out, skip_special_tokens=True)]
    return found


def model_inputs(model: MultimodalModel, asked: Request, group: list[Example]) -> tuple[Features, Tensor, Tensor]:
    """Features, and prompts [batch, text] with their mask, on the model's device."""
    moved = tensors(collated(model, asked, group), model.device)
    return model.batch_features(moved), moved["ids"], moved["mask"]


def collated(model: MultimodalModel, asked: Request, group: list[Example]) -> dict[str, Any]:
    """The batch of some of the examples: as `Collator` makes it, with prompts ``ids`` [batch, text] and their ``mask``.

    Raises:
        BadInput: one cannot be read. DataError: a prompt exceeds the context.
    """
    text = model.text_context()
    batch = Collator(_Prompts(asked), text, model.input_pipeline(), training=False)(group)  # type: ignore[arg-type]
    for name, message in raise_bad(batch):
        raise model.encoder.reader.error(f"example {name}: {message}")
    return batch


@dataclass
class _Prompts:
    """Lays out prompts as a task lays out its examples."""

    asked: Request

    def collate(self, examples: Sequence[Example], text: Any, *, training: bool) -> Mapping[str, Tensor]:
        rows = prompt_ids(text, [example.text for example in examples], framed=self.asked.framed)
        causal = text.architecture == CAUSAL
        check_length(rows, text, [example.id for example in examples], self.asked.max_new_tokens if causal else 0)
        ids, mask = pad_with_mask(rows, text.tokenizer.pad_token_id, left=causal)
        return {"ids": ids, "mask": mask}


def decoding_options(asked: Request, tokenizer: Any) -> dict[str, Any]:
    criteria = [*(asked.options.get("stopping_criteria") or ()), *([_Said(tokenizer, asked.stop)] if asked.stop else ())]
    return {**asked.options, **({"stopping_criteria": criteria} if criteria else {})}


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


class _Said(StoppingCriteria):
    """A row's text has one of the strings in it. The library's own ``stop_strings`` compares tokens, and takes each word that
    begins one to have a space before it, the first too."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = [text.strip() for text in self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)]
        return torch.tensor([cut(text, self.stop) != text for text in texts], device=input_ids.device)
