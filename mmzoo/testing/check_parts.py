"""Check every part of a model: encoders, fusions, language models and tasks."""

from __future__ import annotations

import logging
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmzoo.common.sanitize import describe_error, one_line
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit, MmzooError
from mmzoo.interfaces.kinds import PARTS, kind_of
from mmzoo.models.assemble import assemble
from mmzoo.models.model import MultimodalModel
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.contract import check, expect
from mmzoo.testing.small import fitting, round_trip, with_partners
from mmzoo.testing.subject import TOLERANCE, Subject, close, finite, flat_tensors

LossAndGradients = tuple[Tensor, dict[str, Tensor]]
# Cheap parts of this distribution with different needs and outputs.
SELECTION = {
    "encoder": ("cnn", "none"),
    "fusion": ("prefix-linear", "projector", "late-sum", "cross-attention"),
    "language_model": ("gpt-mini", "lstm", "bag-of-words", "t5"),
    "task": ("vqa", "classify"),
}


@check(*PARTS)
def devices(subject: Subject) -> None:
    """Require that every tensor of a part is a parameter or a buffer. A part that is built on the meta device must have all its
    tensors there, with the names, shapes and types of the real part. Moved from there to the CPU, and to the GPU if there is
    one, it must give the same predictions.
    """
    plan = assemble(subject.recipe, meta=True)
    real_tensors, meta_tensors = _tensors(subject.part(subject.model)), _tensors(subject.part(plan))
    stray = [name for name, value in meta_tensors.items() if not value.is_meta]
    expect(not stray, f"built on the meta device, {', '.join(stray)} is on another; do not name a device in __init__")
    unset = [name for name, value in real_tensors.items() if value.is_meta]
    expect(not unset, f"{', '.join(unset)} has no value after the build")
    names = sorted({*real_tensors, *meta_tensors})
    differ = [name for name in names if _form(real_tensors.get(name)) != _form(meta_tensors.get(name))]
    expect(not differ, f"{', '.join(differ)} differ in name, shape or type between the meta device and the CPU")
    _check_move(subject, plan.to_empty(device="cpu"), "the CPU")
    if torch.cuda.is_available():
        _check_move(subject, subject.build().to("cuda"), "the GPU")


def _check_move(subject: Subject, moved: MultimodalModel, where: str) -> None:
    real = subject.model
    with torch.no_grad():
        for name, value in [*moved.named_parameters(), *moved.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            value.copy_(getattr(real.get_submodule(owner), leaf))
    try:
        predictions = moved.eval().predict_examples(subject.examples, scores=True)
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"moved to {where} it fails, which happens if a tensor is not a buffer: {error}") from error
    _same(predictions, real.predict_examples(subject.examples, scores=True), f"moved to {where} it predicts otherwise")


def _tensors(part: Any) -> dict[str, Tensor]:
    return dict([*part.named_parameters(), *part.named_buffers()])


def _form(value: Tensor | None) -> Any:
    return None if value is None else (value.shape, value.dtype)


def _same(actual: list[Any], expected: list[Any], happened: str) -> None:
    for one, other in zip(actual, expected, strict=True):
        numbers = torch.tensor([[n if n is not None else 0.0 for n in (p.score, p.value, *p.values)] for p in (one, other)])
        equal = (one.label, one.labels) == (other.label, other.labels)
        expect(equal and close(numbers[0], numbers[1]), f"{happened}: {one} and {other}")


@check(*PARTS)
def dtypes(subject: Subject) -> None:
    """Require that a part works in float32, under bfloat16 autocast, and as bfloat16 itself (``model.to(torch.bfloat16)``): the
    loss must be finite and close to that in float32, and predictions must be possible.
    """
    model = subject.build()
    batch = subject.batch(model)
    whole = model(**batch)["loss"]
    expect(finite(whole) and whole.dtype == torch.float32, f"in float32 the loss is {whole}")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch)["loss"]
    _near(mixed, whole, "under bfloat16 autocast")
    try:
        model.to(torch.bfloat16)
        half = model(**batch)["loss"]
        model.predict_examples(subject.examples)
    except (RuntimeError, TypeError) as error:
        raise AssertionError(f"as bfloat16 it fails: {error}") from error
    _near(half, whole, "as bfloat16")


def _near(loss: Tensor, whole: Tensor, where: str) -> None:
    near = torch.allclose(loss.float(), whole, atol=0.1, rtol=0.1)
    expect(finite(loss) and near, f"{where} the loss is {loss.item():.4f}; in float32 it is {whole.item():.4f}")


@check(*PARTS)
def batches(subject: Subject) -> None:
    """Require that a batch and its examples alone give the same results: texts of different lengths, an empty text, and a batch
    of one. The loss must be finite for each.
    """
    model = subject.model
    together = model.predict_examples(subject.examples, scores=True)
    alone = [model.predict_examples([example], scores=True)[0] for example in subject.examples]
    _same(together, alone, "predictions in a batch and alone differ")
    with torch.no_grad():
        for example in subject.examples:
            loss = model(**subject.batch(model, [example]))["loss"]
            expect(finite(loss), f"the loss of the one example with the text {example.text!r} is {loss.item()}")


@check(*PARTS)
def seeded(subject: Subject) -> None:
    """Require that results depend on the seed only: two builds must have equal weights, and two forward passes in training mode
    equal losses. Two predictions must be equal without a seed.
    """
    one, other = subject.model.state_dict(), subject.build().state_dict()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not differ, f"with one seed, two builds differ in {', '.join(differ[:5])}")
    predictions = [subject.model.predict_examples(subject.examples, scores=True) for _ in range(2)]
    expect(predictions[0] == predictions[1], "two predictions of one model differ")
    model = subject.build()
    batch = subject.batch(model)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(model.train()(**batch)["loss"])
    expect(torch.equal(*losses), f"with one seed, the training loss is {losses[0].item()} and {losses[1].item()}")


@check(*PARTS)
def gradients(subject: Subject) -> None:
    """Require that the loss gives a finite gradient to every parameter that is trained, with at least one compatible partner, and
    none to other parameters.
    """
    wanted: set[str] = set()
    reached: set[str] = set()
    for recipe in fitting(subject.entry, []):
        model = subject.build(subject.learned(recipe).with_part(subject.key(recipe), train="full")).train()
        part = subject.part(model)
        model(**subject.batch(model))["loss"].backward()
        for name, parameter in part.named_parameters():
            if name.startswith("missing."):  # no input is missing here
                continue
            if parameter.grad is not None:
                expect(parameter.requires_grad, f"{name} is not trained and has a gradient")
                expect(finite(parameter.grad), f"the gradient of {name} is not finite")
                reached.add(name)
            elif parameter.requires_grad:
                wanted.add(name)
        if not wanted - reached:
            return
    expect(False, f"no gradient reaches {', '.join(sorted(wanted - reached))}")


@check(*PARTS)
def save_and_load(subject: Subject) -> None:
    """Require that a model with the part trains two steps with finite losses, and predicts exactly the same after saving and
    loading.
    """
    with tempfile.TemporaryDirectory() as folder:
        round_trip(subject.bare, Path(folder) / "model", dataset=subject.dataset)


@check(*PARTS)
def partners(subject: Subject) -> None:
    """Require that a part works with every partner that its declared needs (``architectures``, ``needs_tokens``, ...) allow: the
    model must build, its loss must be finite, and it must predict. If the check of compatibility refuses a partner, it must
    say why.
    """
    entry = subject.entry
    registered = {(other.kind, other.name) for other in plugin_manager().registry.entries()}
    chosen = [(kind, name) for kind, names in SELECTION.items() if kind != entry.kind for name in names]
    first = {kind_of(key): part.use for key, part in subject.bare.parts().items()}
    failed: dict[str, Exception] = {}
    for kind, name in [pair for pair in chosen if pair in registered]:
        partners = {**first, kind: name}
        title = " + ".join(partners.values())
        try:
            model = subject.build(subject.learned(with_partners(entry, partners)))
        except DoesNotFit as reason:
            expect(str(reason).strip(), f"{title}: refused without a reason")
            continue
        try:
            expect(finite(model(**subject.batch(model))["loss"]), "the loss is not finite")
            model.predict_examples(subject.examples)
        except Exception as error:  # the other partners are tried too
            failed[title] = error
    if failed:
        texts = [str(error) if isinstance(error, AssertionError) else describe_error(error) for error in failed.values()]
        lines = [f"{parts}: {text}" for parts, text in zip(failed, texts, strict=True)]
        raise AssertionError("\n".join(lines)) from next(iter(failed.values()))


@check(*PARTS)
def picklable(subject: Subject) -> None:
    """Require that the encoder's ``transform`` and the task, which data workers get, can be pickled, and that the copy collates
    the same batch.
    """
    collate = subject.model.collator(training=True)
    try:
        copied = pickle.loads(pickle.dumps(collate))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"it cannot be pickled: {error}; a lambda or a local function cannot") from None
    one, other = (flat_tensors(tensors(made(subject.examples), "cpu")) for made in (collate, copied))
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not differ, f"the copy collates another batch; these differ: {', '.join(differ)}")


@check(*PARTS)
def compiled(subject: Subject) -> None:
    """Require that ``torch.compile`` accepts a part (graph breaks are allowed), with the same loss and gradients."""
    model = subject.build()
    batch = subject.batch(model)
    pair = _gradients(model, batch)
    torch.compiler.reset()
    logging.disable(logging.WARNING)  # torch describes each graph break in many lines, also those of mmzoo's own code
    try:
        _compile(subject.kind, model)
        compiled_pair = _gradients(model, batch)
    except MmzooError:
        raise
    except Exception as error:
        raise AssertionError(f"compiled it fails: {type(error).__name__}: {one_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
        torch.compiler.reset()
    _same_gradients(compiled_pair, pair, "compiled")


def _compile(kind: str, model: MultimodalModel) -> None:
    """Apply ``torch.compile`` to the part alone, which is faster than the whole model; of a fusion, to what it overrides."""
    compiled: dict[str, Any] = {"backend": "aot_eager"}
    if kind == "task":
        model.task.loss = torch.compile(model.task.loss, **compiled)  # type: ignore[method-assign]
    elif kind == "fusion":
        for place in model.fusion.places():
            if place == "deep":
                model.language_model.compile(**compiled)
            else:
                setattr(model.fusion, place, torch.compile(getattr(model.fusion, place), **compiled))
    else:
        part = model.language_model if kind == "language_model" else next(iter(model.encoders.values()))
        part.compile(**compiled)


@check("fusion", "language_model")
def recomputed(subject: Subject) -> None:
    """Require the same loss and gradients with gradient checkpointing (``training.gradient_checkpointing``). A language model
    whose blocks cannot be recomputed must refuse it.
    """
    model = subject.build()
    batch = subject.batch(model)
    pair = _gradients(model, batch)
    try:
        model.checkpoint_blocks()
    except DoesNotFit:
        return
    _same_gradients(_gradients(model, batch), pair, "with recomputed blocks")


def _gradients(model: MultimodalModel, batch: dict[str, Tensor]) -> LossAndGradients:
    model.zero_grad()
    torch.manual_seed(0)
    loss = model.train()(**batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _same_gradients(actual: LossAndGradients, expected: LossAndGradients, how: str) -> None:
    expect(close(actual[0], expected[0]), f"{how}, the loss is {actual[0].item()} and not {expected[0].item()}")
    new, old = actual[1], expected[1]
    differ = [name for name in old if name not in new or not torch.allclose(new[name], old[name], **TOLERANCE)]
    expect(not differ, f"{how}, the gradients differ of {', '.join(differ[:5])}")
