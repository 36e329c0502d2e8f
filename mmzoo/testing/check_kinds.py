"""Check what an encoder, a fusion, a language model and a task declare against what they do."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mmzoo.common.sanitize import short_repr
from mmzoo.data.collate import tensors
from mmzoo.data.tokens import pad_with_mask
from mmzoo.interfaces.encoder import Encoder
from mmzoo.interfaces.features import Features, FeatureSpec
from mmzoo.interfaces.language_model import CAUSAL, SEQ2SEQ, LanguageModel
from mmzoo.interfaces.task import Prediction
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.models.assemble import assemble
from mmzoo.models.sequence import text_states
from mmzoo.recipes.resolve import resolve
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.contract import check, expect
from mmzoo.testing.subject import TEXTS, Subject, close, finite, shape

LOUD = 4.0  # times the weights of a tiny model


@check("encoder")
@torch.no_grad()
def features(subject: Subject) -> None:
    """Require that an encoder returns what its ``spec`` states, also in training: tokens [batch, spec.tokens, spec.dim] (any
    number if that is None), pooled [batch, spec.pooled_dim], and a mask [batch, tokens] of zeros and ones or None, all finite.
    The spec must be the same on the meta device, its modality must be that of the entry and the class, and the features of an
    input must not depend on the batch.
    """
    encoder = subject.model.encoder
    spec, planned = encoder.spec, assemble(subject.recipe, meta=True).encoder.spec
    expect(spec == planned, f"spec is {spec}, on the meta device {planned}")
    if encoder.transform is not None:
        said = (subject.entry.modality, type(encoder).modality, spec.modality)
        expect(len(set(said)) == 1, f"the modality of entry, class and spec is {', '.join(map(repr, said))}")
    batch = subject.batch(subject.model)
    inputs = batch["inputs"]
    lengths = [batch["input_lengths"]] if "input_lengths" in batch else []  # where they vary
    found = encoder(inputs, *lengths)
    _check_features(found, spec, len(inputs), "")
    # A copy: a pass in training may change what normalisation remembers.
    _check_features(copy.deepcopy(encoder).train()(inputs, *lengths), spec, len(inputs), "in training ")
    for given in (batch, _probes(encoder)):
        for i in range(len(given.get("inputs", ()))):
            _check_alone(encoder, given, i)


def _probes(encoder: Encoder) -> dict[str, Tensor]:
    """Return a batch of the reader's probes, whose lengths differ; empty if the encoder has no variable length."""
    if encoder.transform is None or not encoder.variable_length:
        return {}
    pipeline = InputPipeline(encoder.modality, encoder.reader, encoder.transform, variable_length=True)
    return pipeline.batch([encoder.transform(made) for made in encoder.reader.probes()])


def _check_alone(encoder: Encoder, batch: dict[str, Tensor], i: int) -> None:
    def of(rows: slice) -> tuple[Tensor, list[Tensor]]:
        given = batch["inputs"][rows]
        if "input_lengths" not in batch:
            return given, []
        lengths = batch["input_lengths"][rows]
        return given[:, : int(lengths.max())], [lengths]

    inputs, lengths = of(slice(None))
    found = encoder(inputs, *lengths)
    expect(close(encoder(inputs, *lengths).pooled, found.pooled), "the features of one batch differ from time to time")
    inputs, lengths = of(slice(i, i + 1))
    alone = encoder(inputs, *lengths)
    real = alone.token_mask()[0].bool()
    said = "depend on the others of the batch" + (", or on the zeros at its end: it is given input_lengths" if lengths else "")
    expect(close(alone.pooled, found.pooled[i : i + 1]), f"pooled features of an input {said}")
    expect(close(alone.tokens[0][real], found.tokens[i][: len(real)][real]), f"tokens of an input {said}")


def _check_features(found: Features, spec: FeatureSpec, count: int, when: str) -> None:
    expect(isinstance(found, Features), f"{when}forward gives {type(found).__name__}, no Features")
    tokens = found.tokens.shape[1] if spec.tokens is None and found.tokens.ndim == 3 else spec.tokens
    wanted = [count, tokens, spec.dim]
    expect(list(found.tokens.shape) == wanted, f"{when}tokens are {shape(found.tokens)}, not {wanted}")
    wanted = [count, spec.pooled_dim]
    expect(list(found.pooled.shape) == wanted, f"{when}pooled is {shape(found.pooled)}, not {wanted}")
    expect(finite(found.tokens) and finite(found.pooled), f"{when}features are not finite")
    if found.mask is not None:
        expect(found.mask.shape == found.tokens.shape[:2], f"{when}mask is {shape(found.mask)}, not {[count, tokens]}")
        expect(bool(((found.mask == 0) | (found.mask == 1)).all()), f"{when}mask holds other values than 0 and 1")


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
    expect(
        (spec.architecture, spec.generates) == (cls.architecture, cls.generates),
        f"spec is {spec}, the class {cls.architecture}, {cls.generates}",
    )
    expect(len(model.blocks()) == spec.blocks, f"there are {len(model.blocks())} blocks, and spec.blocks is {spec.blocks}")
    tokenizer = model.tokenizer
    expect(tokenizer.pad_token_id is not None, "the tokenizer has no padding token")
    expect(
        len(tokenizer) <= spec.vocab_size, f"the tokenizer has {len(tokenizer)} tokens, and spec.vocab_size is {spec.vocab_size}"
    )
    rows = [row or [tokenizer.pad_token_id] for row in tokenizer([text or "a" for text in TEXTS])["input_ids"]]
    ids, mask = pad_with_mask(rows, tokenizer.pad_token_id)
    embeddings = model.embed(ids)
    wanted = [*ids.shape, spec.dim]
    expect(list(embeddings.shape) == wanted, f"embed gives {shape(embeddings)}, not {wanted}")
    hidden = model(embeddings, mask)
    expect(list(hidden.shape) == wanted, f"forward gives {shape(hidden)}, not {wanted}")
    expect(finite(hidden), "states are not finite")
    pooled = model.pool(hidden, mask)
    expect(list(pooled.shape) == [len(rows), spec.dim], f"pool gives {shape(pooled)}, not {[len(rows), spec.dim]}")
    if spec.generates:
        given = {"decoder_ids": ids} if spec.architecture == SEQ2SEQ else {}
        logits = model.logits(model(embeddings, mask, **given)[:, -1])
        expect(list(logits.shape) == [len(rows), spec.vocab_size], f"logits gives {shape(logits)}, not [..., {spec.vocab_size}]")
        _check_written(
            model.generate(embeddings[:1, : len(rows[0])], mask[:1, : len(rows[0])], max_new_tokens=2), spec.vocab_size
        )
        _check_writing(model, rows)
    noise = torch.where(mask[..., None].bool(), embeddings, torch.randn_like(embeddings))
    real = mask.bool()
    expect(close(model(noise, mask)[real], hidden[real]), "what stands in the padding changes the states of the text")
    expect(close(model.pool(model(noise, mask), mask), pooled), "what stands in the padding changes the text's vector")
    if spec.architecture == CAUSAL:
        last = mask.sum(1) - 1
        changed = embeddings.clone()
        changed[torch.arange(len(rows)), last] += 1
        before = real & (torch.arange(ids.shape[1]) < last[:, None])
        expect(close(model(changed, mask)[before], hidden[before]), "kind is causal, and a state depends on what comes after it")


def _check_written(ids: Tensor, vocab_size: int) -> None:
    expect(isinstance(ids, Tensor) and not ids.is_floating_point(), f"generate gives {short_repr(ids)}, no tensor of token ids")
    expect(ids.ndim == 2 and len(ids) == 1 and ids.shape[1] <= 2, f"generate gives {shape(ids)} for one text and two new tokens")
    expect(
        bool(((ids >= 0) & (ids < vocab_size)).all()), f"generate gives {ids.tolist()}; the vocabulary has {vocab_size} tokens"
    )


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
    expect(
        layer is None or calls,
        "generate does not call output_layer (or logits), before which a late fusion joins the states: it would write without it",
    )
    for i in range(len(rows)):
        real = mask[i].bool()
        alone = loud.generate(embeddings[i : i + 1, real], mask[i : i + 1, real], **options)
        expect(
            torch.equal(alone[0], together[i][: alone.shape[1]]),
            f"what it writes of a prompt depends on the padding or the others of the batch: {together[i].tolist()}, alone "
            f"{alone[0].tolist()}",
        )
    stopped = loud.generate(embeddings, mask, stopping_criteria=[_Stop()], **options)
    expect(stopped.shape[1] <= 1, f"generate does not ask stopping_criteria: told to stop at once, it gives {shape(stopped)}")
    try:
        several = loud.generate(embeddings, mask, do_sample=True, num_return_sequences=2, **options)
    except ValueError:  # what a loop does not serve, it refuses
        return
    expect(len(several) == 2 * len(rows), f"with num_return_sequences=2, generate gives {shape(several)} for {len(rows)} prompts")


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
    fusion, batch = model.fusion, subject.batch(model)
    seen = model.batch_features(batch)
    ids, mask = batch["ids"].clamp(min=0), batch["mask"]
    embeddings = model.language_model.embed(ids)
    fusion.set_features(seen)
    found = fusion.early(seen, embeddings, mask)
    added = found.embeddings.shape[1] - ids.shape[1]
    wanted = [len(ids), ids.shape[1] + added, embeddings.shape[2]]
    expect(list(found.embeddings.shape) == wanted, f"early gives embeddings {shape(found.embeddings)}, not {wanted}")
    expect(list(found.mask.shape) == wanted[:2], f"early gives a mask {shape(found.mask)}, not {wanted[:2]}")
    if fusion.added_tokens is not None:
        expect(added == fusion.added_tokens, f"early adds {added} positions, and added_tokens is {fusion.added_tokens}")
    held = text_states(found.mask[..., None], found.text)[..., 0]
    expect(torch.equal(held, mask), "the positions that `text` names do not hold the text: the mask there is not the text's")
    if fusion.is_late:
        model.states(seen, ids, mask)  # what it does deep inside may be what it goes by after
        hidden = torch.randn_like(embeddings)
        late = fusion.late(seen, hidden)
        expect(late.shape == hidden.shape, f"late gives {shape(late)} of states {shape(hidden)}")
        row = fusion.late(seen, hidden[:, :1])
        expect(close(row, late[:, :1]), "late is not position by position: a state alone gives another result than among others")
    fusion.set_features(None)
    if "deep" in fusion.places():
        language = resolve("language_model", subject.recipe.language_model)
        with torch.device("meta"):
            alone = language.cls(language.options)
        renamed = sorted(alone.state_dict().keys() ^ model.language_model.state_dict().keys())
        expect(not renamed, f"deep changes the names of the language model's weights: {', '.join(renamed[:5])}")
    if fusion.places():
        _check_sight(subject)


def _check_sight(subject: Subject) -> None:
    """Check that features matter, with gates opened as after training, and in double precision, so that small effects exceed
    rounding.
    """
    model = subject.build().double()
    for parameter in model.fusion.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = subject.batch(model)
    seen = model.batch_features(batch)
    tokens, noise = seen.tokens, torch.randn_like(seen.tokens)

    def loss(features: Features) -> Tensor:
        return model.task.loss(model, features, batch)[0]

    whole, other = loss(seen), loss(replace(seen, tokens=tokens + noise, pooled=seen.pooled + torch.randn_like(seen.pooled)))
    expect(not torch.equal(whole, other), "other features of the encoder change nothing: the fusion does not use them")
    if not model.fusion.needs_tokens or tokens.shape[1] < 2:
        return
    mask = torch.ones(tokens.shape[:2], dtype=torch.long)
    mask[:, tokens.shape[1] // 2 :] = 0
    other = tokens + 10 * noise * (1 - mask)[..., None]
    before, after = loss(replace(seen, mask=mask)), loss(replace(seen, tokens=other, mask=mask))
    expect(torch.allclose(before, after, rtol=1e-6), "what stands in tokens whose features.mask is 0 changes the loss")


@check("task")
def answers(subject: Subject) -> None:
    """Require that a task collates tensors with one row per example, with ``labels`` in training. ``loss`` must return a finite
    sum and the number of labels, both scalars; ``predict`` one `Prediction` per example; and ``references`` the targets of the
    examples. The metrics must be registered, and what the task learns from data must be plain, valid, and learned once.
    """
    model, task = subject.model, subject.model.task
    learned = task.learn(subject.target.Options(**subject.tiny), subject.examples)
    again = json.loads(json.dumps(learned))
    expect(again == learned, f"what it learns is {learned}, from JSON {again}")
    more = task.learn(subject.target.Options(**{**subject.tiny, **learned}), subject.examples)
    expect(not more, f"given what it has learned, it learns more: {more}")
    unknown = [name for name in task.metrics if not any(e.name == name for e in plugin_manager().registry.entries("metric"))]
    expect(not unknown, f"no plugin has the metrics {', '.join(unknown)}")
    batch = subject.batch(model)
    expect("labels" in batch, f"for training it collates {', '.join(batch)}, and no labels")
    count = len(subject.examples)
    asked = tensors(model.collator(training=False)(subject.examples), "cpu")
    for name, value in {**batch, **asked}.items():
        expect(name == "inputs" or len(value) == count, f"{name} is {shape(value)} for {count} examples")
    seen = model.batch_features(batch)
    lost = task.loss(model, seen, batch)
    pair = isinstance(lost, Sequence) and len(lost) == 2
    expect(pair, f"loss gives {type(lost).__name__}, not the sum and the number of labels")
    total, number = lost
    for name, value in {"sum": total, "number": number}.items():
        expect(isinstance(value, Tensor), f"the {name} that loss gives is {short_repr(value)}, no tensor")
        expect(value.ndim == 0, f"the {name} that loss gives is {shape(value)}, no scalar")
    expect(finite(total) and number > 0, f"loss gives {total.item()} over {number.item()} labels")
    twice = subject.batch(model, [*subject.examples, *subject.examples])
    more_total, more_number = task.loss(model, model.batch_features(twice), twice)
    mean = more_number == 2 * number and total != 0 and close(more_total, total)
    expect(not mean, "the sum that loss gives is the same for each example twice: it is a mean, which would be divided once more")
    said = model.predict_examples(subject.examples)
    expect(len(said) == count and all(isinstance(p, Prediction) for p in said), f"{count} examples give {said}")
    for example in subject.examples:
        right = task.references(example)
        expect(list(right) == list(example.targets), f"the references of targets {example.targets} are {right}")
