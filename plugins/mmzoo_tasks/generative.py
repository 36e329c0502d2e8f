"""Write texts: captioning (Vinyals et al. 2015, https://arxiv.org/abs/1411.4555) and generative visual question answering.

The loss is the cross-entropy of the target's tokens and the end token. Logits are computed only where there is a label: never
over the prefix, the prompt or padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F
from transformers import StoppingCriteria, StopStringCriteria

from mmzoo.api import (
    CAUSAL,
    IGNORE,
    SEQ2SEQ,
    BadRecipe,
    DataError,
    Example,
    FeatureSpec,
    LanguageSpec,
    Options,
    Outputs,
    Prediction,
    Task,
    TextContext,
    check_length,
    encode_texts,
    pad_rows,
    pad_with_mask,
    prompt_ids,
    render_chat,
)
from mmzoo_tasks import chunks


class Generative(Task):
    """Generate a target text from a prompt with the language model."""

    architectures = frozenset({CAUSAL, SEQ2SEQ})
    needs_generation = True
    metrics = ("exact-match",)

    class Options(Options):
        max_new_tokens: int = Field(32, ge=1, le=4096, description="tokens to generate at most")
        num_beams: int = Field(1, ge=1, le=64, description="beams of the search; 1 is greedy")
        chat: bool = Field(False, description="put each prompt into the tokenizer's chat template, as the user's turn")

    def __init__(self, options: Any, language_model: LanguageSpec, encoders: Mapping[str, FeatureSpec]) -> None:
        super().__init__(options, language_model, encoders)
        self._causal = language_model.architecture == CAUSAL

    @property
    def positions(self) -> int:
        return self.options.max_new_tokens + 1 if self._causal else 1

    @classmethod
    def prompt(cls, options: Any, text: str) -> str:
        """Return the language model's text for an example's text."""
        raise NotImplementedError

    @classmethod
    def texts(cls, options: Any, example: Example) -> Iterable[str]:
        return [text for text in (cls.prompt(options, example.text), *example.targets) if text]

    def references(self, example: Example) -> list[str]:
        if not any(target.strip() for target in example.targets):
            raise DataError(f"example {example.id} has no target text")
        return list(example.targets)

    def collate(self, examples: Sequence[Example], text: TextContext, *, training: bool) -> dict[str, Tensor]:
        names = [example.id for example in examples]
        prompts = [self.prompt(self.options, example.text) for example in examples]
        if self.options.chat:
            turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
            counts = [{modality: len(example.of(modality)) for modality in text.added} for example in examples]
            framed = [render_chat(text, turn, count) for turn, count in zip(turns, counts, strict=True)]
            rows = prompt_ids(text, framed, framed=True)
        else:
            rows = prompt_ids(text, prompts)
        padding = text.tokenizer.pad_token_id
        if not training:
            check_length(rows, text, names, self.options.max_new_tokens if self._causal else 0)
            ids, mask = pad_with_mask(rows, padding, left=self._causal)
            return {"ids": ids, "mask": mask}
        targets = self._targets([e.drawn(self.references(e)) for e in examples], prompts, text)
        if not self._causal:
            check_length(rows, text, names)
            return _seq2seq(rows, targets, padding)
        joined = [row + target for row, target in zip(rows, targets, strict=True)]
        check_length(joined, text, names)
        labels = [[IGNORE] * len(row) + target for row, target in zip(rows, targets, strict=True)]
        ids, mask = pad_with_mask(joined, padding)
        return {"ids": ids, "mask": mask, "labels": pad_rows(labels, IGNORE)}

    def _targets(self, targets: list[str], prompts: list[str], text: TextContext) -> list[list[int]]:
        """Return target ids with the end token. After a prompt, a causal model's word starts with its space, but not after a
        template."""
        spaced = [
            f" {target.strip()}" if self._causal and prompt and not self.options.chat else target.strip()
            for target, prompt in zip(targets, prompts, strict=True)
        ]
        end = text.tokenizer.eos_token_id
        return [row if row and row[-1] == end else [*row, end] for row in encode_texts(text.tokenizer, spaced)]

    def token_losses(self, outputs: Outputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each labelled token, [tokens], and the row of each, [tokens]; ``labels`` are [batch, text]."""
        rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
        language, wanted = outputs.language_model, labels[rows, columns]
        if chunks.apply_to(language):
            hidden = outputs.predicting(rows, columns)
            return chunks.losses(language.logits, hidden, wanted, language.spec.vocab_size), rows
        return F.cross_entropy(outputs.logits(rows, columns).float(), wanted, reduction="none"), rows

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        losses, _ = self.token_losses(outputs, batch["labels"])
        return {"tokens": (losses.sum(), losses.new_tensor(len(losses)))}

    def predict(self, outputs: Outputs, batch: Mapping[str, Tensor], *, scores: bool = False, **options: Any) -> list[Prediction]:
        """Generate texts.

        Args:
            scores: also compute each text's probability, end token included, which takes one more forward pass; else ``score``
                is None.
            options: those of `transformers.GenerationMixin.generate`.

        Raises:
            BadRecipe: several texts are asked for one example.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise BadRecipe("predict: num_return_sequences: an example has one prediction; use model.generate for more")
        options = {"max_new_tokens": self.options.max_new_tokens, "num_beams": self.options.num_beams, **options}
        tokenizer, stops = outputs.text.tokenizer, None
        if scores:
            options, stops = _watched(options, tokenizer, skipped=0 if self._causal else 1)
        out = outputs.write(**options)
        answers = [answer.strip() for answer in tokenizer.batch_decode(out, skip_special_tokens=True)]
        if stops is None:
            return [Prediction(label=answer) for answer in answers]
        ends = options.get("eos_token_id", outputs.language_model.end_ids)
        ends = set(ends) if isinstance(ends, list | tuple) else {ends}
        rows = [row[: _length(row, ends, stops)] for row in out.tolist()]
        probabilities = self._probabilities(outputs, batch, rows)
        return [Prediction(label=answer, score=score) for answer, score in zip(answers, probabilities, strict=True)]

    def _probabilities(self, outputs: Outputs, batch: Mapping[str, Tensor], targets: list[list[int]]) -> list[float]:
        """Return the model's probability of each generated row, from one more forward pass over it."""
        padding = outputs.text.tokenizer.pad_token_id
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
        if self._causal:
            ids, mask = pad_with_mask([p + t for p, t in zip(prompts, targets, strict=True)], padding)
            labels = pad_rows([[IGNORE] * len(p) + t for p, t in zip(prompts, targets, strict=True)], IGNORE)
            again = {"ids": ids, "mask": mask, "labels": labels}
        else:
            again = _seq2seq(prompts, targets, padding)
        again = {key: value.to(batch["ids"].device) for key, value in again.items()}
        losses, rows = self.token_losses(outputs.with_text(again), again["labels"])
        sums = torch.zeros(len(targets), dtype=torch.float64).index_add(0, rows.cpu(), losses.double().cpu())
        return (-sums).exp().tolist()


class _Watched(StoppingCriteria):
    """Keep the texts at which a stopping criterion was met: what follows such a text in its row was not generated for it."""

    def __init__(self, inner: StoppingCriteria, texts: set[tuple[int, ...]], skipped: int) -> None:
        self.inner, self.texts, self.skipped = inner, texts, skipped

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        done = torch.as_tensor(self.inner(input_ids, scores, **options), device=input_ids.device).expand(len(input_ids))
        self.texts.update(tuple(row[self.skipped :]) for row in input_ids[done].tolist())
        return done


def _watched(options: dict[str, Any], tokenizer: Any, *, skipped: int) -> tuple[dict[str, Any], set[tuple[int, ...]]]:
    """Return the options with criteria that keep the texts at which they stop, and the set that will hold these texts.

    ``skipped`` is the number of tokens that a criterion is given before the text.
    """
    texts: set[tuple[int, ...]] = set()
    criteria = list(options.get("stopping_criteria") or ())
    if (strings := options.get("stop_strings")) is not None:
        options = {name: value for name, value in options.items() if name not in ("stop_strings", "tokenizer")}
        try:
            criteria.append(StopStringCriteria(tokenizer, strings))
        except Exception as error:  # it takes few kinds of tokenizers
            problem = f"the library has no use for it with this tokenizer ({type(error).__name__}: {error})"
            raise BadRecipe(f"predict: stop_strings: {problem}; use model.generate(..., stop=...)") from error
    watched = [_Watched(criterion, texts, skipped) for criterion in criteria]
    return {**options, **({"stopping_criteria": watched} if watched else {})}, texts


def _length(row: list[int], ends: set[Any], stops: set[tuple[int, ...]]) -> int:
    """Return how many tokens of a generated row are its text: up to the first end token, or to where a criterion stopped it.

    The padding behind that depends on the other rows of the batch; padding cannot be told by its id, which may be an end.
    """
    for i, token in enumerate(row, 1):
        if token in ends or (stops and tuple(row[:i]) in stops):
            return i
    return len(row)


def _seq2seq(prompts: list[list[int]], targets: list[list[int]], padding: int) -> dict[str, Tensor]:
    """Return encoder ids, labels, and decoder ids: the labels shifted right behind the padding token (T5, Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683)."""
    ids, mask = pad_with_mask(prompts, padding)
    decoder = [[padding, *target[:-1]] for target in targets]
    return {"ids": ids, "mask": mask, "labels": pad_rows(targets, IGNORE), "decoder_ids": pad_rows(decoder, padding)}


class Caption(Generative):
    """Describe the image, after an optional fixed prompt."""

    metrics = ("cider-d", "bleu-4", "rouge-l", "exact-match")

    class Options(Generative.Options):
        prompt: str = Field("", max_length=10_000, description="text before every caption, e.g. 'A picture of'")

    @classmethod
    def prompt(cls, options: Any, text: str) -> str:
        return text or options.prompt


class VQA(Generative):
    """Answer a question about the image."""

    metrics = ("vqa-accuracy", "exact-match")

    class Options(Generative.Options):
        template: str = Field("question: {text} answer:", max_length=10_000, description="the prompt; {text} is the question")
        max_new_tokens: int = Field(10, ge=1, le=4096, description="tokens to generate at most")

        @field_validator("template")
        @classmethod
        def _has_text(cls, value: str) -> str:
            if "{text}" not in value:
                raise ValueError("must contain {text}")
            return value

    @classmethod
    def prompt(cls, options: Any, text: str) -> str:
        return options.template.replace("{text}", text)
