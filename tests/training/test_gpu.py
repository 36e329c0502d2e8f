"""On a GPU: models move there and back, train in bfloat16 and float16, resume, and write what they write on the CPU.

The models are tiny; `python -m benchmarks gpu` runs these tests and measures larger ones. Sums on a GPU may come in another order
each time, so numbers are compared with tolerances.
"""

import contextlib
import signal
import threading

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import StopOnSignal

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no GPU here")]

FUSIONS = sorted(entry.name for entry in mmzoo.entries("fusion") if entry.name != "none")
JOINT = {entry.name for entry in mmzoo.entries("fusion") if entry.load().joint}
PARTNERS = (("gpt2", "caption"), ("t5", "caption"), ("bert", "classify"), ("gpt2", "classify"))
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "vocab_size": 261, **SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256}
CLIP = {"model_type": "clip_vision_model", **SIZES, "image_size": 32, "patch_size": 8, "projection_dim": 32}
OPTIONS = {"max_steps": 24, "batch_size": 4, "log_every": 1, "learning_rate": 5e-3, "workers": 0, "cache_features": False}
OPTIONS |= {"schedule": "constant", "warmup": 0}
EXAMPLES = Sample().load("test")
PICTURES, PROMPTS = [each.image for each in EXAMPLES], [f"{each.text} {'why ' * i}" for i, each in enumerate(EXAMPLES)]


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Convolutions too; matrices are multiplied in float32 unless one asks for less."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def fitting(fusion):
    """A tiny recipe with a fusion, and the first language model and task that fit it."""
    encoders = {"image": "cnn", "other": "cnn"} if fusion in JOINT else {"image": "cnn"}
    for language, task in PARTNERS:
        with contextlib.suppress(DoesNotFit):
            recipe = tiny(mmzoo.Recipe(encoders=encoders, fusion=fusion, language_model=language, task=task))
            mmzoo.check(recipe)
            return recipe
    raise AssertionError(fusion)


def llava(**changes):
    """A model of LLaVA's shape, whose weights are so large that its words differ."""
    parts = {
        "encoder": {"use": "clip", "config": CLIP, "layer": -2, "train": "frozen"},
        "fusion": "projector",
        "language_model": {"use": "hf-causal", "config": LLAMA, "train": "full"},
        "task": {"use": "vqa", "template": "{text}", "max_new_tokens": 8},
    }
    model = mmzoo.build(**{**parts, **changes}, seed=0)
    for i, (_, parameter) in enumerate(model.named_parameters()):
        torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(i))
    return model


def step(model, device, training):
    """The loss of a batch on a device, and the gradients, on the CPU."""
    model.to(device).train(training)
    model.zero_grad()
    loss = model(**tensors(model.collator(training=True)(EXAMPLES[:4]), device))["loss"]
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def check_same_step(model, *, training):
    loss, gradients = step(model, "cpu", training)
    there, others = step(model, DEVICE, training)
    assert there == pytest.approx(loss, rel=1e-4)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-2, atol=1e-3 * gradient.abs().max().item() + 1e-6), name
    again, back = step(model, "cpu", training)
    assert again == loss
    assert all(torch.equal(back[name], gradient) for name, gradient in gradients.items())


def train(recipe, output, **more):
    changed = {name: more.pop(name) for name in ("resume", "dataset") if name in more}
    dataset = changed.pop("dataset", Sample())
    return mmzoo.train(recipe, dataset=dataset, output=output, progress=False, training={**OPTIONS, **more}, **changed)


def losses(run):
    return [entry["loss"] for entry in run.history]


def without_dropout(name="cnn-prefix-gpt"):
    return tiny(name, encoder={"train": "full"})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_model_computes_the_same_there_and_back(fusion):
    recipe = fitting(fusion)
    if "classify" in str(recipe.tasks):
        recipe = recipe.with_part("task", labels=["red", "green", "blue"])
    check_same_step(mmzoo.build(recipe, seed=0), training=False)  # without dropout


@pytest.mark.parametrize("train", ["full", "frozen", "lora:2"])
def test_a_language_model_that_is_trained_frozen_or_adapted_has_the_same_gradients(train):
    """Frozen, the losses come a few rows at a time; texts of different lengths run in one row."""
    check_same_step(llava(language_model={"use": "hf-causal", "config": LLAMA, "train": train}), training=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_in_each_precision_and_resumes(precision, tmp_path, monkeypatch):
    """A resumed curve is nearly that of an unbroken run, also with a scaler of the loss, which leaves out its first steps."""
    whole = train(without_dropout(), tmp_path / "whole", precision=precision)
    assert next(whole.model.parameters()).device.type == DEVICE
    assert {p.dtype for p in whole.model.parameters()} == {torch.float32}
    assert losses(whole)[-1] < 0.5 * losses(whole)[0]
    if precision != "fp32":
        exact = losses(train(without_dropout(), tmp_path / "exact", precision="fp32", max_steps=4))
        same = 4 if precision == "bf16" else 1
        assert losses(whole)[:same] == pytest.approx(exact[:same], rel=0.05)
    on_step_end = StopOnSignal.on_step_end

    def stopping(self, args, state, control, **more):
        if state.global_step == 7:
            self.signal = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stopping)
        assert not train(without_dropout(), tmp_path / "parts", precision=precision).finished
    resumed = train(without_dropout(), tmp_path / "parts", precision=precision, resume=True)
    assert resumed.finished
    assert losses(resumed)[:12] == pytest.approx(losses(whole)[:12], rel=0.02)


def test_data_workers_and_pinned_memory_change_no_number(tmp_path):
    options = {"precision": "fp32", "max_steps": 8}
    none, two = (losses(train(without_dropout(), tmp_path / str(count), workers=count, **options)) for count in (0, 2))
    assert none == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_cached_features_train_alike(precision, tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    recipe = tiny("cnn-prefix-gpt", encoder={"use": "clip", "config": CLIP, "train": "frozen"})
    options = {"precision": precision, "max_steps": 8}
    encoded = train(recipe, tmp_path / "encoded", **options)
    first, again = (train(recipe, tmp_path / name, **options, cache_features=True) for name in ("first", "again"))
    assert first.model.provenance.run["training"]["cached_features"]
    assert losses(first) == pytest.approx(losses(encoded), rel=0.02)
    assert losses(first) == pytest.approx(losses(again), rel=1e-3)


def test_what_is_trained_there_is_saved_and_predicts_on_the_cpu(tmp_path):
    run = train(tiny("cnn-product-lstm"), tmp_path / "m")
    there = run.model.predict(image=PICTURES, text=PROMPTS)
    here = mmzoo.load(tmp_path / "m", device="cpu").predict(image=PICTURES, text=PROMPTS)
    assert [p.label for p in there] == [p.label for p in here]
    assert [p.score for p in there] == pytest.approx([p.score for p in here], abs=1e-3)
    scores = [mmzoo.evaluate(str(tmp_path / "m"), dataset=Sample(), device=device, progress=False) for device in ("cpu", DEVICE)]
    assert scores[0].scores["accuracy"].value == scores[1].scores["accuracy"].value


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}, {"batch_size": 3}], ids=str)
@pytest.mark.parametrize("fusion", ["projector", "prefix-mlp", "cross-attention"])
def test_it_writes_what_it_writes_on_the_cpu(fusion, options):
    model = llava(fusion=fusion)
    length = {"max_new_tokens": 12, "min_new_tokens": 12}
    here = model.generate(PICTURES, PROMPTS, **length, **options)
    assert len(set(here)) > 1
    assert model.to(DEVICE).generate(PICTURES, PROMPTS, **length, **options) == here


def test_its_scores_and_streams_are_those_of_the_cpu():
    model = llava()
    here = model.predict(image=PICTURES, text=PROMPTS, scores=True)
    model.to(DEVICE)
    there = model.predict(image=PICTURES, text=PROMPTS, scores=True)
    assert [p.label for p in there] == [p.label for p in here]
    assert [p.score for p in there] == pytest.approx([p.score for p in here], rel=1e-2)
    streams = [model.stream(picture, prompt) for picture, prompt in zip(PICTURES[:2], PROMPTS[:2], strict=True)]
    pieces = [[], []]
    for i in (0, 1, 1, 0):  # both are open at once
        pieces[i] += [piece for piece in [next(streams[i], "")] if piece]
    texts = ["".join([*own, *stream]) for own, stream in zip(pieces, streams, strict=True)]
    assert texts == model.generate(PICTURES[:2], PROMPTS[:2])


def test_two_threads_and_two_cuda_streams_write_at_once():
    model = llava().to(DEVICE)
    alone = [model.generate(picture, prompt) for picture, prompt in zip(PICTURES[:2], PROMPTS[:2], strict=True)]
    together = [[], []]

    def write(i):
        own = torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else contextlib.nullcontext()
        with own:
            together[i] += [model.generate(PICTURES[i], PROMPTS[i]) for _ in range(4)]

    threads = [threading.Thread(target=write, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [[text] * 4 for text in alone]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_write(dtype):
    """The first token is that of float32, where its logits are not close; all logits are near."""
    model = llava().to(DEVICE)
    features, ids = model.encode(torch.randn(1, 3, 32, 32, device=DEVICE)), torch.arange(4, 14, device=DEVICE)[None]
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    with torch.no_grad():
        exact = model.language_model.logits(model.outputs({"image": features}, batch).hidden)
        model.to(dtype)
        near = model.language_model.logits(model.outputs({"image": features.map(lambda t: t.to(dtype))}, batch).hidden)
    assert near.dtype == dtype
    assert (near.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert len(model.generate(PICTURES, PROMPTS, max_new_tokens=6)) == len(PICTURES)


def test_a_model_on_the_gpu_is_exported(tmp_path):
    model = llava().to(DEVICE)
    mmzoo.export_model("llava", model, tmp_path / "out")
    hf = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(hf.lm_head.weight[:261], model.language_model.model.lm_head.weight.cpu())
    assert next(model.parameters()).device.type == DEVICE
