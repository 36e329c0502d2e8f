"""Generate text from prompts and conversations with images or other inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmzoo.data.batching import batches
from mmzoo.data.collate import Collator, TaskLayout, tensors
from mmzoo.data.tokens import check_length, pad_with_mask, prompt_ids, render_chat
from mmzoo.errors import BadRecipe, DataError, DoesNotFit, MmzooError, PluginBroken
from mmzoo.interfaces import CAUSAL, Example, Features, ModelPass, running
from mmzoo.models.prediction import check_readable, make_example, pair_inputs
from mmzoo.models.sequence import drop_none, fuse_input

PROMPT = "prompt"
NEW_TOKENS = 32  # the default of max_new_tokens
# Larger values are mistakes: all rows are held at once, and a model without a context would generate for days.
LIMITS = {"max_new_tokens": 1_000_000, "num_beams": 1024, "num_return_sequences": 1024}
INTERNAL = {"max_new_tokens", "stopping_criteria", "streamer"}  # set here, so not what a message blames
DEFAULTS = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "use_cache": True}
# Options of the library that are set here, so that a caller's value would be lost.
SET_HERE = {
    "max_length": "use max_new_tokens",
    "generation_config": "give its settings as options",
    "return_dict_in_generate": "generate returns texts",
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "encoder_outputs", "past_key_values", "cache"),
        "it is computed from the images and the prompt",
    ),
}


@dataclass
class Request:
    """Hold what to generate, checked."""

    examples: list[Example]  # whose texts are the prompts
    framed: bool  # whether the prompts are in a chat template
    stop: list[str]  # the strings to stop before
    options: dict[str, Any]  # ``max_new_tokens`` and the library's own


def request(
    model: Any, given: Mapping[str, Any], prompt: Any, *, stop: str | Sequence[str], chat: bool, **options: Any
) -> tuple[Request, bool]:
    """Check the arguments of `MultimodalModel.generate`; return them as a request, and whether they held lists.

    Raises:
        DoesNotFit, BadRecipe, DataError: as `MultimodalModel.generate`.
    """
    check_writes(model)
    check_limits(options)
    if conflicts := [name for name in SET_HERE if name in options]:
        raise BadRecipe(f"generate: {conflicts[0]}: {SET_HERE[conflicts[0]]}")
    criteria = options.get("stopping_criteria", ())
    if not isinstance(criteria, Sequence):
        raise BadRecipe(f"generate: stopping_criteria: must be a list of StoppingCriteria (got {criteria!r})")
    stops = list(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else [stop]
    if not all(isinstance(text, str) and text for text in stops):
        raise BadRecipe(f"generate: stop: must be a text or a list of texts, none empty (got {stop!r})")
    pairs, is_list = pair_inputs(model, given, prompt)
    framed = chat or any(isinstance(words, list | tuple) for _, words in pairs)
    examples = []
    for i, (inputs, words) in enumerate(pairs):
        example = make_example(i, inputs, "" if words is None or framed else words)
        examples.append(_framed(model, example, words) if framed else example)
    return Request(examples, framed, stops, options), is_list


def check_writes(model: Any) -> None:
    """Check that a model's language model and one of its tasks generate text.

    Raises:
        DoesNotFit: they do not.
    """
    tasks = [config.use for config in model.recipe.tasks.values()]
    use_instead = "does not generate text; use model.predict, or build with a"
    if not model.language_model.spec.generates:
        raise DoesNotFit(f"language model '{model.recipe.language_model.use}' {use_instead} causal one")
    if not any(task.needs_generation for task in model.tasks.values()):  # it was never trained to, so its text would be noise
        raise DoesNotFit(f"a model for the task '{tasks[0]}' {use_instead} task that generates")


def check_limits(options: Mapping[str, Any]) -> None:
    """Check the numbers among the options against `LIMITS`."""
    for name, most in LIMITS.items():
        value = options.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise BadRecipe(f"generate: {name}: must be a whole number from 1 to {most} (got {value!r})")


@contextmanager
def option_errors(options: Mapping[str, Any]) -> Iterator[None]:
    """Raise errors that an option causes in the language model as `BadRecipe`. Errors that no option explains pass unchanged."""
    check_limits({name: value for name, value in options.items() if value is not None})
    try:
        yield
    except MmzooError:
        raise
    except (TypeError, ValueError) as error:
        raise BadRecipe(f"generate: {error}") from error
    except Exception as error:  # the library checks few options, and a wrong value can fail anywhere in it
        names = sorted(name for name in options.keys() - INTERNAL if name not in DEFAULTS or options[name] != DEFAULTS[name])
        if not names:
            raise
        raise BadRecipe(f"generate: with {', '.join(names)}: {type(error).__name__}: {error}") from error


def generate_ids(model: Any, features: Mapping[str, Features], ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
    """Generate token ids; see `MultimodalModel.generate_ids`."""
    language_model = model.language_model
    with option_errors(options):
        fused, calls = fuse_input(model, features, ids, mask, left=language_model.architecture == CAUSAL)
        # Laying out the batch checked the tokens that the task generates; a caller may request more.
        context = language_model.spec.max_length if language_model.architecture == CAUSAL else None
        new = options.get("max_new_tokens") or 0
        if context is not None and (longest := int(fused.mask.sum(1).max())) + new > context:
            raise DataError(
                f"{longest} positions of a prompt and {new} to generate exceed the language model's context of {context}; "
                "shorten the text or generate less"
            )
        memory = drop_none(memory=fused.memory)
        with running(ModelPass(calls, generates=True)):
            generated = language_model.generate(fused.embeddings, fused.mask, **memory, **options)
    expected = len(ids) * (options.get("num_return_sequences") or 1)
    if not isinstance(generated, Tensor) or len(generated) != expected:
        entry = model.provenance.entries["language_model"]
        returned = f"{len(generated)} rows" if isinstance(generated, Tensor) else type(generated).__name__
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': generate returned {returned} instead of {expected} texts")
    return generated


def write(model: Any, request: Request, batch_size: int) -> list[str]:
    """Generate the texts of a request, in order; several texts of one example follow one another."""
    texts: list[str] = []
    tokenizer = model.language_model.tokenizer
    for group in batches(request.examples, batch_size):
        ids = model.generate_ids(*model_inputs(model, request, group), **decoding_options(request, tokenizer))
        lines = tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts += [cut(line.strip(), request.stop).strip() for line in lines]
    return texts


def model_inputs(model: Any, request: Request, group: list[Example]) -> tuple[dict[str, Features], Tensor, Tensor]:
    """Return the features of examples, and their prompts and mask [batch, text], on the model's device."""
    batch = tensors(collated(model, request, group), model.device)
    return model.features(batch["encoders"]), batch["tasks"][PROMPT]["ids"], batch["tasks"][PROMPT]["mask"]


def collated(model: Any, request: Request, group: list[Example]) -> dict[str, Any]:
    """Collate examples of a request as `Collator` does, for the one task `PROMPT` with ``ids`` [batch, text] and ``mask``.

    Raises:
        BadInput: an input cannot be read. DataError: a prompt exceeds the context.
    """
    layout: Any = TaskLayout(_PromptLayout(request), PROMPT)  # type: ignore[arg-type]
    collate = Collator(
        {PROMPT: layout}, model.text_context(), model.input_pipelines(), False, optional=model.takes_missing_inputs
    )
    batch = collate(group)
    check_readable(model, batch)
    return batch


@dataclass
class _PromptLayout:
    """Lay out prompts as a task lays out its examples."""

    request: Request
    needs_input = False

    def collate(self, examples: Sequence[Example], text: Any, *, training: bool) -> Mapping[str, Tensor]:
        """Return prompt ``ids`` and ``mask`` [batch, text], padded on the left for causal models."""
        rows = prompt_ids(text, [example.text for example in examples], framed=self.request.framed)
        causal = text.architecture == CAUSAL
        check_length(rows, text, [example.id for example in examples], self.request.options["max_new_tokens"] if causal else 0)
        ids, mask = pad_with_mask(rows, text.tokenizer.pad_token_id, left=causal)
        return {"ids": ids, "mask": mask}


def decoding_options(request: Request, tokenizer: Any) -> dict[str, Any]:
    """Return the library's options, with a criterion that stops at the request's stop strings."""
    criteria = [*(request.options.get("stopping_criteria") or ())]
    if request.stop:
        criteria.append(_StopStrings(tokenizer, request.stop))
    return {**request.options, **({"stopping_criteria": criteria} if criteria else {})}


def cut(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


class _StopStrings(StoppingCriteria):
    """Stop a row when its text contains a stop string.

    The library's own ``stop_strings`` compares tokens, and assumes a space before each word that begins a stop string, the
    first word of the text included.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = [text.strip() for text in self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)]
        return torch.tensor([cut(text, self.stop) != text for text in texts], device=input_ids.device)


def _framed(model: Any, example: Example, words: Any) -> Example:
    """Return the example with its prompt or conversation in the chat template."""
    messages = list(words) if isinstance(words, list | tuple) else [{"role": "user", "content": words or ""}]
    for turn in messages:
        if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise DataError(f"a turn of a conversation is {{'role': text, 'content': text}} (got {turn!r})")
    context = model.text_context()
    counts = {modality: len(example.of(modality)) for modality in context.added}
    return replace(example, text=render_chat(context, messages, counts))
