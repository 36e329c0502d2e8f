"""Check what an encoder, a fusion, a language model and a task declare against what they do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmzoo.common.sanitize import short_repr
from mmzoo.data.collate import tensors
from mmzoo.data.tokens import pad_with_mask
from mmzoo.interfaces import (
    CAUSAL,
    SEQ2SEQ,
    Encoder,
    Example,
    Features,
    FeatureSpec,
    Fusion,
    FusionCall,
    LanguageModel,
    ModelPass,
    Prediction,
    Task,
    running,
)
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.models.assemble import assemble
from mmzoo.models.sequence import text_states
from mmzoo.recipes.resolve import resolve
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import TEXTS, Subject, close, expect_shape, finite, shape

LOUD = 4.0  # factor on the weights of a tiny model, so that it writes more than one token


@check("encoder")
@torch.no_grad()
def features(subject: Subject) -> None:
    """Require that an encoder returns what its ``spec`` states, also in training: tokens [batch, spec.tokens, spec.dim] (any
    number if that is None), pooled [batch, spec.pooled_dim], and a mask [batch, tokens] of zeros and ones or None, all finite.
    The spec must be the same on the meta device, its modality must be that of the entry and the class, and the features of an
    input must not depend on the batch, nor differ from one pass to the next.
    """
    encoder = subject.part(subject.model)
    spec, planned = encoder.spec, subject.part(assemble(subject.recipe, meta=True)).spec
    expect(spec == planned, f"spec is {spec}, but {planned} on the meta device")
    if encoder.transform is not None:
        modalities = (subject.entry.modality, type(encoder).modality, spec.modality)
        expect(len(set(modalities)) == 1, f"the modality of entry, class and spec is {', '.join(map(repr, modalities))}")
    batch = next(iter(subject.batch(subject.model)["encoders"].values()))
    inputs = batch["inputs"]
    lengths = [batch["lengths"]] if "lengths" in batch else []  # for variable lengths
    actual = encoder(inputs, *lengths)
    _check_features(actual, spec, len(inputs), "")
    # A copy, because a pass in training may change the statistics of normalisation.
    _check_features(copy.deepcopy(encoder).train()(inputs, *lengths), spec, len(inputs), "in training ")
    for inputs_of in (batch, _probes(encoder)):
        for i in range(len(inputs_of.get("inputs", ()))):
            _check_alone(encoder, inputs_of, i)


def _probes(encoder: Encoder) -> dict[str, Tensor]:
    """Return a batch of the reader's probes, whose lengths differ; empty if the encoder has no variable length."""
    if encoder.transform is None or not encoder.variable_length:
        return {}
    pipeline = InputPipeline(encoder.modality, encoder.reader, encoder.transform, variable_length=True)
    return pipeline.batch([encoder.transform(probe) for probe in encoder.reader.probes()])


def _check_alone(encoder: Encoder, batch: dict[str, Tensor], i: int) -> None:
    def of(rows: slice) -> tuple[Tensor, list[Tensor]]:
        inputs = batch["inputs"][rows]
        if "lengths" not in batch:
            return inputs, []
        lengths = batch["lengths"][rows]
        return inputs[:, : int(lengths.max())], [lengths]

    inputs, lengths = of(slice(None))
    together, again = encoder(inputs, *lengths), encoder(inputs, *lengths)
    same = close(again.pooled, together.pooled) and close(again.tokens, together.tokens)
    expect(same, "two passes over one batch give different features")
    inputs, lengths = of(slice(i, i + 1))
    alone = encoder(inputs, *lengths)
    real = alone.token_mask()[0].bool()
    problem = "depend on the other inputs of the batch"
    if lengths:
        problem += ", or on the padding: use the lengths that forward gets"
    expect(close(alone.pooled, together.pooled[i : i + 1]), f"pooled features of an input {problem}")
    expect(close(alone.tokens[0][real], together.tokens[i][: len(real)][real]), f"tokens of an input {problem}")


def _check_features(features: Features, spec: FeatureSpec, count: int, when: str) -> None:
    expect(isinstance(features, Features), f"{when}forward returns {type(features).__name__}, not Features")
    tokens = features.tokens.shape[1] if spec.tokens is None and features.tokens.ndim == 3 else spec.tokens
    expect_shape(features.tokens, [count, tokens, spec.dim], f"{when}tokens are")
    expect_shape(features.pooled, [count, spec.pooled_dim], f"{when}pooled is")
    expect(finite(features.tokens) and finite(features.pooled), f"{when}features are not finite")
    if features.mask is not None:
        expect_shape(features.mask, [count, tokens], f"{when}mask is")
        expect(bool(((features.mask == 0) | (features.mask == 1)).all()), f"{when}mask has values other than 0 and 1")


@check("language_model")
@torch.no_grad()
def states(subject: Subject) -> None:
    """Require that a language model returns what its ``spec`` states: embeddings, states [batch, positions, spec.dim], a vector
    per text [batch, spec.dim], logits over spec.vocab_size, and new token ids [batch, out] from generate, which must call the
    output layer. Architecture, generates and the number of blocks must be those of the class. Padding on the right must not
    change earlier states, padding of prompts must not change what is generated, and in a causal model no position may depend
    on a later one. The tokenizer must have a padding token and no more tokens than the vocabulary.
    """
    model = subject.model.language_model
    spec, cls = model.spec, type(model)
    declared = (cls.architecture, cls.generates)
    expect((spec.architecture, spec.generates) == declared, f"spec is {spec}, and the class declares {declared}")
    expect(len(model.blocks()) == spec.blocks, f"there are {len(model.blocks())} blocks, and spec.blocks is {spec.blocks}")
    rows = _encoded_texts(model)
    ids, mask = pad_with_mask(rows, model.tokenizer.pad_token_id)
    embeddings = model.embed(ids)
    expect_shape(embeddings, [*ids.shape, spec.dim], "embed returns")
    hidden = model(embeddings, mask)
    expect_shape(hidden, [*ids.shape, spec.dim], "forward returns")
    expect(finite(hidden), "states are not finite")
    expect_shape(model.pool(hidden, mask), [len(rows), spec.dim], "pool returns")
    if spec.generates:
        decoder = {"decoder_ids": ids} if spec.architecture == SEQ2SEQ else {}
        expect_shape(model.logits(model(embeddings, mask, **decoder)[:, -1]), [len(rows), spec.vocab_size], "logits returns")
        prompt, prompt_mask = embeddings[:1, : len(rows[0])], mask[:1, : len(rows[0])]
        _check_written(model.generate(prompt, prompt_mask, max_new_tokens=2), spec.vocab_size)
        _check_writing(model, rows)
    _check_padding(model, embeddings, mask)
    if spec.architecture == CAUSAL:
        _check_causal(model, embeddings, mask)


def _encoded_texts(model: LanguageModel) -> list[list[int]]:
    """Return the token ids of `TEXTS`, after checking the tokenizer."""
    tokenizer, size = model.tokenizer, model.spec.vocab_size
    expect(tokenizer.pad_token_id is not None, "the tokenizer has no padding token")
    expect(len(tokenizer) <= size, f"the tokenizer has {len(tokenizer)} tokens, and spec.vocab_size is {size}")
    return [row or [tokenizer.pad_token_id] for row in tokenizer([text or "a" for text in TEXTS])["input_ids"]]


def _check_padding(model: LanguageModel, embeddings: Tensor, mask: Tensor) -> None:
    """Check that random values in the padding change neither the states nor the vectors of the texts."""
    noise = torch.where(mask[..., None].bool(), embeddings, torch.randn_like(embeddings))
    real = mask.bool()
    hidden, noisy = model(embeddings, mask), model(noise, mask)
    expect(close(noisy[real], hidden[real]), "the values of the padding change the states of the text")
    expect(close(model.pool(noisy, mask), model.pool(hidden, mask)), "the values of the padding change the text's vector")


def _check_causal(model: LanguageModel, embeddings: Tensor, mask: Tensor) -> None:
    """Check that changing the last real position changes no state before it."""
    last = mask.sum(1) - 1
    changed = embeddings.clone()
    changed[torch.arange(len(last)), last] += 1
    before = mask.bool() & (torch.arange(mask.shape[1]) < last[:, None])
    same = close(model(changed, mask)[before], model(embeddings, mask)[before])
    expect(same, "the architecture is causal, but a state depends on a later position")


def _check_written(ids: Tensor, vocab_size: int) -> None:
    whole = isinstance(ids, Tensor) and not ids.is_floating_point()
    expect(whole, f"generate returns {short_repr(ids)}, not a tensor of token ids")
    right = ids.ndim == 2 and len(ids) == 1 and ids.shape[1] <= 2
    expect(right, f"generate returns {shape(ids)} for one text and two new tokens")
    known = ((ids >= 0) & (ids < vocab_size)).all()
    expect(known, f"generate returns {ids.tolist()}; the vocabulary has {vocab_size} tokens")


def _check_writing(model: LanguageModel, rows: list[list[int]]) -> None:
    """Check generation with larger weights, because a tiny model's initial weights tend to repeat one token."""
    loud = copy.deepcopy(model)
    for parameter in loud.parameters():
        parameter.mul_(LOUD)
    calls: list[int] = []
    if (layer := loud.output_layer()) is not None:
        layer.register_forward_hook(lambda *_: calls.append(1))
    options: dict[str, Any] = {"max_new_tokens": 4}
    ids, mask = pad_with_mask(rows, model.tokenizer.pad_token_id, left=model.architecture == CAUSAL)
    embeddings = loud.embed(ids)
    together = loud.generate(torch.where(mask[..., None].bool(), embeddings, torch.randn_like(embeddings)), mask, **options)
    problem = "generate does not call output_layer (or logits), so a late fusion, which changes the states there, has no effect"
    expect(layer is None or calls, problem)
    for i in range(len(rows)):
        real = mask[i].bool()
        alone = loud.generate(embeddings[i : i + 1, real], mask[i : i + 1, real], **options)[0]
        difference = f"{together[i].tolist()}, alone {alone.tolist()}"
        problem = f"what it generates depends on the padding or the other prompts of the batch: {difference}"
        expect(torch.equal(alone, together[i][: len(alone)]), problem)
    stopped = loud.generate(embeddings, mask, stopping_criteria=[_Stop()], **options)
    expect(stopped.shape[1] <= 1, f"generate ignores stopping_criteria: with one that stops at once, it returns {shape(stopped)}")
    try:
        several = loud.generate(embeddings, mask, do_sample=True, num_return_sequences=2, **options)
    except ValueError:  # a custom loop may refuse it
        return
    problem = f"with num_return_sequences=2, generate returns {shape(several)} for {len(rows)} prompts"
    expect(len(several) == 2 * len(rows), problem)


class _Stop(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.ones(len(input_ids), dtype=torch.bool)


@check("fusion")
@torch.no_grad()
def positions(subject: Subject) -> None:
    """Require that a fusion keeps the shapes: ``early`` must return embeddings [batch, positions, dim] and their mask, with
    ``added_tokens`` more positions than the text (any number if that is None) and the whole text at ``text``; ``late`` must
    keep the shape of the states; ``deep`` must not change the names of the language model's weights. The features must affect
    the result, and tokens whose ``features.mask`` is 0 must not.
    """
    model = subject.model
    fusion, batch = subject.part(model), subject.batch(model)
    seen, text = model.features(batch["encoders"]), next(iter(batch["tasks"].values()))
    ids, mask = text["ids"].clamp(min=0), text["mask"]
    embeddings = model.language_model.embed(ids)
    given = seen if fusion.joint else next(iter(seen.values()))
    with running(ModelPass({fusion: FusionCall(fusion.prepare(given), given)})):
        fused = fusion.early(given, embeddings, mask)
    added = fused.embeddings.shape[1] - ids.shape[1]
    wanted = [len(ids), ids.shape[1] + added, embeddings.shape[2]]
    expect_shape(fused.embeddings, wanted, "early returns embeddings")
    expect_shape(fused.mask, wanted[:2], "early returns a mask")
    if fusion.added_tokens is not None:
        expect(added == fusion.added_tokens, f"early adds {added} positions, and added_tokens is {fusion.added_tokens}")
    text_mask = text_states(fused.mask[..., None], fused.text)[..., 0]
    expect(torch.equal(text_mask, mask), "`text` does not name the positions of the text: the mask there differs from the text's")
    if fusion.is_late:
        states = model.outputs(seen, {"ids": ids, "mask": mask}).states  # late may use what the deep hooks computed
        with running(ModelPass(states.calls)):
            _check_late(fusion, given, torch.randn_like(embeddings))
    if "deep" in fusion.places():
        _check_names(subject)
    if fusion.places():
        _check_sight(subject)


def _check_late(fusion: Fusion, features: Any, hidden: Tensor) -> None:
    """Check that `late` keeps the shape and treats each position on its own."""
    late = fusion.late(features, hidden)
    expect(late.shape == hidden.shape, f"late returns {shape(late)} for states {shape(hidden)}")
    first = fusion.late(features, hidden[:, :1])
    expect(close(first, late[:, :1]), "late mixes positions: a state alone gives another result than among others")


def _check_names(subject: Subject) -> None:
    """Check that `deep` left the names of the language model's weights unchanged."""
    language = resolve("language_model", subject.recipe.language_model)
    with torch.device("meta"):
        alone = language.cls(language.options)
    renamed = sorted(alone.state_dict().keys() ^ subject.model.language_model.state_dict().keys())
    expect(not renamed, f"deep changes the names of the language model's weights: {', '.join(renamed[:5])}")


def _check_sight(subject: Subject) -> None:
    """Check that features matter, with gates opened as after training, and in double precision, to see small effects."""
    model = subject.build().double()
    for parameter in subject.part(model).parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = subject.batch(model)
    name, text = next(iter(batch["tasks"].items()))
    seen = model.features(batch["encoders"])
    noise = {encoder: torch.randn_like(features.tokens) for encoder, features in seen.items()}

    def loss(change: Callable[[str, Features], Features]) -> Tensor:
        features = {encoder: change(encoder, own) for encoder, own in seen.items()}
        return sum(total for total, _ in model.tasks[name].loss(model.outputs(features, text), text).values())  # type: ignore[return-value]

    other = loss(lambda e, own: replace(own, tokens=own.tokens + noise[e], pooled=own.pooled + torch.randn_like(own.pooled)))
    expect(
        not torch.equal(loss(lambda _, own: own), other),
        "other features of the encoder change nothing: the fusion does not use them",
    )
    tokens = next(iter(seen.values())).tokens
    if not subject.part(model).needs_tokens or tokens.shape[1] < 2:
        return
    mask = torch.ones(tokens.shape[:2], dtype=torch.long)
    mask[:, tokens.shape[1] // 2 :] = 0
    masked = loss(lambda _, own: replace(own, mask=mask))
    other = loss(lambda e, own: replace(own, tokens=own.tokens + 10 * noise[e] * (1 - mask)[..., None], mask=mask))
    expect(torch.allclose(masked, other, rtol=1e-6), "tokens whose features.mask is 0 change the loss")


@check("fusion")
@torch.no_grad()
def missing_inputs(subject: Subject) -> None:
    """Require finite, equal results beside a second encoder where the inputs of an example are missing, alone and in a batch."""
    if not subject.part(subject.model).places():
        return
    recipe = subject.recipe
    if len(recipe.encoders) == 1:
        ((name, encoder),) = recipe.encoders.items()
        fusion = next(iter(recipe.fusions.values()))
        encoders = {name: encoder, "second": encoder}
        recipe = recipe.model_copy(update={"encoders": encoders, "fusions": dict.fromkeys(encoders, fusion)})
    model = subject.build(recipe)
    examples = [replace(example, inputs={}) if i % 2 else example for i, example in enumerate(subject.examples)]

    def loss(examples: Sequence[Example]) -> Tensor:
        batch = subject.batch(model, examples)
        outputs = model.task_outputs(batch)
        terms = [model.tasks[name].loss(outputs[name], own) for name, own in batch["tasks"].items()]
        return torch.stack([total for own in terms for total, _ in own.values()]).sum()

    total = loss(examples)
    expect(finite(total), "the loss is not finite where an input is missing")
    alone = torch.stack([loss([example]) for example in examples]).sum()
    expect(close(total, alone), "a missing input changes the loss of others")
    together = model.predict_examples(examples)
    apart = [model.predict_examples([example])[0] for example in examples]
    expect([p.text for p in together] == [p.text for p in apart], "a missing input changes what is predicted for others")


@check("fusion", "language_model")
@torch.no_grad()
def several_callers(subject: Subject) -> None:
    """Require that threads which use one model at the same time, and a deep copy of it, get what each gets alone. A fusion must
    keep nothing of a call on itself: `Fusion.call` holds it.
    """
    model = subject.model
    examples = subject.examples * 2
    alone = [model.predict_examples([example])[0] for example in examples]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda example: model.predict_examples([example])[0], examples))
    expect(_same_answers(together, alone), "threads that predict at the same time get other predictions than alone")
    copied = copy.deepcopy(model)
    changed = subject.build()
    for mine, theirs in zip(changed.fusions.values(), copied.fusions.values(), strict=True):
        for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            other.add_(0.5)
            own.add_(0.5)
    wanted = [changed.predict_examples([example])[0] for example in subject.examples]
    got = [copied.predict_examples([example])[0] for example in subject.examples]
    expect(_same_answers(got, wanted), "a deep copy of the model runs the fusion of the original")
    again = [model.predict_examples([example])[0] for example in subject.examples]
    expect(_same_answers(again, alone[: len(again)]), "what changes a deep copy of the model changes the original")


def _same_answers(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(
        (one.label, one.labels) == (other.label, other.labels)
        and np.allclose(one.score or 0, other.score or 0, atol=1e-4)
        and np.allclose(one.values or 0, other.values or 0, atol=1e-4)
        for one, other in zip(some, others, strict=True)
    )


@check("task")
def answers(subject: Subject) -> None:
    """Require that a task collates tensors with one row per example, with ``labels`` in training. ``loss`` must return terms by
    name, each a finite sum and the number of labels, both scalars; ``predict`` one `Prediction` per example; and
    ``references`` the targets of the examples. The metrics must be registered, and what the task learns from data must be
    plain, valid, and learned once.
    """
    model, task = subject.model, subject.model.task
    _check_learning(subject, task)
    batch = next(iter(subject.batch(model)["tasks"].values()))
    expect("labels" in batch, f"for training it collates {', '.join(batch)}, but no labels")
    count = len(subject.examples)
    asked = next(iter(tensors(model.collator(training=False)(subject.examples), "cpu")["tasks"].values()))
    for name, value in {**batch, **asked}.items():
        expect(len(value) == count, f"{name} is {shape(value)} for {count} examples")
    _check_loss(subject)
    predictions = model.predict_examples(subject.examples)
    right = len(predictions) == count and all(isinstance(p, Prediction) for p in predictions)
    expect(right, f"{count} examples give {predictions}")
    for example in subject.examples:
        references = task.references(example)
        expect(list(references) == list(example.targets), f"the references of targets {example.targets} are {references}")


def _check_learning(subject: Subject, task: Task) -> None:
    """Check what the task learns from data, and that its metrics are registered."""
    learned = task.learn(subject.target.Options(**subject.tiny), subject.examples)
    again = json.loads(json.dumps(learned))
    expect(again == learned, f"what it learns is {learned}, but {again} after a round trip through JSON")
    more = task.learn(subject.target.Options(**{**subject.tiny, **learned}), subject.examples)
    expect(not more, f"it learns again what it has learned: {more}")
    unknown = {*task.metrics} - {entry.name for entry in plugin_manager().registry.entries("metric")}
    expect(not unknown, f"no installed plugin has the metrics {', '.join(sorted(unknown))}")


def _check_loss(subject: Subject) -> None:
    """Check that each term of the loss is a sum and a number of labels, and not a mean."""
    once, twice = _terms(subject, subject.examples), _terms(subject, [*subject.examples, *subject.examples])
    for term, (total, number) in once.items():
        more_total, more_number = twice[term]
        if more_number == 2 * number and total != 0 and close(more_total, total):
            problem = f"the sum '{term}' that loss returns does not change if each example is repeated"
            raise AssertionError(f"{problem}: it is a mean, which would be divided again")


def _terms(subject: Subject, examples: Sequence[Example]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the terms of the loss of examples, checked."""
    model, batch = subject.model, subject.batch(subject.model, examples)
    outputs = model.task_outputs(batch)
    ((name, own),) = batch["tasks"].items()
    terms = model.tasks[name].loss(outputs[name], own)
    expect(isinstance(terms, Mapping) and len(terms) > 0, f"loss returns {type(terms).__name__}, not a mapping of terms")
    for term, pair in terms.items():
        right = isinstance(pair, Sequence) and len(pair) == 2
        expect(right, f"the term '{term}' is {type(pair).__name__}, not the sum and the number of labels")
        for what, value in zip(("sum", "number"), pair, strict=True):
            expect(isinstance(value, Tensor), f"the {what} of '{term}' is {short_repr(value)}, not a tensor")
            expect(value.ndim == 0, f"the {what} of '{term}' is {shape(value)}, not a scalar")
        total, number = pair
        expect(finite(total) and number > 0, f"'{term}' is {total.item()} over {number.item()} labels")
    return terms
