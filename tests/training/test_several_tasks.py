"""Training of several encoders, fusions and tasks: gradients of one big batch, one curve however it is run, each term logged."""

import json
import os
import signal
import subprocess
from types import ModuleType

import pytest
import torch
from launcher import head
from test_train import Given, losses, recipe_file, train
from transformers import TrainerCallback

import mmzoo
from mmzoo.interfaces import Example
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, tiny
from mmzoo.training.feature_store import SUFFIX
from mmzoo.training.sampling import Shuffled
from mmzoo_scratch.cnn import CNN

OPTIONS = {"epochs": 2, "batch_size": 4, "log_every": 1, "precision": "fp32"}
TASKS = {"colour": {"use": "classify"}, "answer": {"use": "vqa", "weight": 0.5}}


def several(encoders=None, tasks=TASKS):
    parts = {"encoders": encoders or {"image": "cnn", "audio": "log-mel-gru"}, "fusion": "prefix-mlp"}
    return tiny(mmzoo.Recipe.of({**parts, "language_model": "gpt-mini", "tasks": tasks}))


def labelled(answers=(1, 4), files=None):
    """Coloured squares with tones; only the examples ``answers`` have an answer, and every third lacks its tone."""
    examples = []
    for i, example in enumerate(Sample(8).load("train")):
        if files is not None:
            example.image.save(files / f"{i}.png")
        image = example.image if files is None else str(files / f"{i}.png")
        targets = {"colour": example.targets, "answer": (f"it is {example.targets[0]}",) if i in answers else ()}
        examples.append(Example(str(i), image, example.text, targets, audio=None if i % 3 == 2 else example.audio))
    return Given(*examples)


@pytest.fixture
def gradients():
    """The gradients of each step, by name."""
    steps = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **more):
            steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    module = ModuleType("note")
    module.mmzoo_train_callbacks = mmzoo.hookimpl(lambda recipe: [Note()])
    plugin_manager().manager.register(module)
    yield steps
    plugin_manager().manager.unregister(module)


@pytest.mark.parametrize("tasks", [{"answer": {"use": "vqa"}}, TASKS], ids=["one task", "two tasks"])
def test_batches_of_a_step_have_the_gradient_of_one_big_batch(gradients, tmp_path, tasks):
    """With two examples to a batch, two batches or more have no answer at all; answers differ in length."""
    data, runs = labelled(answers=(1, 4) if len(tasks) > 1 else range(8)), []
    for size in (8, 2):
        options = {**OPTIONS, "max_steps": 1, "batch_size": size, "accumulate": 8 // size, "max_grad_norm": 0}
        runs.append(train(several(tasks=tasks), data, tmp_path / str(size), training=options))
    big, small = gradients
    assert big.keys() == small.keys()
    for name, gradient in big.items():
        assert torch.allclose(small[name], gradient, atol=1e-6, rtol=1e-4), name
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-5)
    if len(tasks) > 1:
        terms = [run.history[0]["terms"] for run in runs]
        assert terms[1] == pytest.approx(terms[0], abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_the_rows_that_have_a_target(gradients, tmp_path):
    data = labelled()
    options = {**OPTIONS, "max_steps": 1, "batch_size": 2, "accumulate": 4, "max_grad_norm": 0}
    run = train(several(), data, tmp_path / "m", training=options)
    model = mmzoo.build(run.model.recipe, seed=0)
    total = 0
    for name, weight, rows in (("colour", 1, range(8)), ("answer", 0.5, (1, 4))):
        task, examples = model.tasks[name], [data.examples[i].for_task(name, default=False) for i in rows]
        batch = task.collate(examples, model.text_context(), training=True)
        encoded = model.collator(training=False)(examples)["encoders"]
        outputs = model.outputs(model.features(encoded), batch)
        wanted = batch["labels"]
        if name == "colour":
            total += weight * torch.nn.functional.cross_entropy(task.logits(outputs), wanted)
        else:
            places = (wanted != -100).nonzero(as_tuple=True)
            total += weight * torch.nn.functional.cross_entropy(outputs.logits(*places), wanted[places])
    total.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == gradients[0].keys()
    for name, gradient in expected.items():
        assert torch.allclose(gradients[0][name], gradient, atol=1e-6, rtol=1e-4), name
    assert losses(run) == pytest.approx([total.item()], abs=1e-5)


def test_each_term_is_logged_where_there_are_several(tmp_path):
    run = train(several(), labelled(), tmp_path / "m", training={**OPTIONS, "batch_size": 8, "accumulate": 1})
    for entry in run.history:
        assert set(entry["terms"]) == {"colour.cross-entropy", "answer.tokens"}
        weighted = entry["terms"]["colour.cross-entropy"] + 0.5 * entry["terms"]["answer.tokens"]
        assert entry["loss"] == pytest.approx(weighted, abs=1e-4)
    recorded = json.loads((tmp_path / "m" / "run.json").read_text())["training"]["history"]
    assert recorded == run.history
    mmzoo.load(tmp_path / "m")
    one = train(several(tasks={"colour": "classify"}), labelled(), tmp_path / "one", training=OPTIONS)
    assert not any("terms" in entry for entry in one.history)


def test_a_term_is_the_mean_over_the_steps_that_have_it(tmp_path):
    """Four steps to an entry of the log, some without an answer."""
    options = {**OPTIONS, "epochs": 1, "batch_size": 2, "learning_rate": 1e-12}
    each = train(several(), labelled(), tmp_path / "each", training=options).history
    answers = [entry["terms"]["answer.tokens"] for entry in each if "answer.tokens" in entry["terms"]]
    assert 1 <= len(answers) < len(each) == 4
    _, together = train(several(), labelled(), tmp_path / "all", training={**options, "log_every": 4}).history
    later = [entry["terms"]["answer.tokens"] for entry in each[1:] if "answer.tokens" in entry["terms"]]
    assert together["terms"]["answer.tokens"] == pytest.approx(sum(later) / len(later), abs=1e-4)


def test_resuming_gives_the_numbers_of_an_unbroken_run(tmp_path, monkeypatch):
    from mmzoo.training.callbacks import StopOnSignal

    options = {**OPTIONS, "epochs": 4, "batch_size": 2, "accumulate": 2, "save_every": 3, "modality_dropout": 0.3}
    whole = train(several(), labelled(), tmp_path / "whole", training=options)
    on_step_end = StopOnSignal.on_step_end

    def stop_at_3(self, args, state, control, **more):
        if state.global_step == 3:
            self.signal = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop_at_3)
    assert train(several(), labelled(), tmp_path / "parts", training=options).steps == 3
    monkeypatch.undo()
    second = train(several(), labelled(), tmp_path / "parts", training=options, resume=True)
    assert second.history == whole.history
    assert len(whole.history) == 8
    a, b = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_examples_without_an_image_are_shuffled_freely():
    picture = Sample(1).load("train")[0].image
    examples = [Example(str(i), picture if i < 4 else None) for i in range(12)]
    orders = [list(Shuffled(examples, seed, "image")) for seed in range(20)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert all(order[order.index(0) : order.index(0) + 4] == [0, 1, 2, 3] for order in orders)
    assert len({tuple(i for i in order if i >= 4) for order in orders}) > 10
    assert any(order.index(0) not in (0, 8) for order in orders)


FROZEN = {"use": "cnn", "train": "frozen"}


@pytest.mark.parametrize(
    ("encoders", "cached"),
    [({"one": FROZEN, "two": FROZEN}, ["one", "two"]), ({"one": FROZEN, "two": "cnn"}, ["one"])],
    ids=["both frozen", "one trained"],
)
def test_features_of_each_frozen_encoder_come_from_the_cache(tmp_path, monkeypatch, encoders, cached):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    counts, forward = {}, CNN.forward

    def counting(self, inputs):
        if not inputs.is_meta:
            counts[id(self)] = counts.get(id(self), 0) + len(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(CNN, "forward", counting)
    data, options = labelled(), {**OPTIONS, "learning_rate": 0.01, "keep_images_together": False}
    without = train(several(encoders), data, tmp_path / "a", training={**options, "cache_features": False})
    assert sorted(counts.values()) == [16, 16]
    counts.clear()
    kept = train(several(encoders), data, tmp_path / "b", training=options)
    expected = {id(part): 8 if name in cached else 16 for name, part in kept.model.encoders.items()}
    assert counts == expected
    assert kept.model.provenance.run["training"]["cached_features"]
    assert len(list((tmp_path / "cache").glob(f"features/*/*{SUFFIX}"))) == len(cached)
    assert losses(kept) == pytest.approx(losses(without), abs=1e-5)
    a, b = without.model.state_dict(), kept.model.state_dict()
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_batch(tmp_path):
    """Over gloo, with batches in one process or both that have no answer."""
    rows = []
    for i, example in enumerate(labelled(files=tmp_path).examples):
        answer = example.targets["answer"]
        rows.append({"image": example.image, "text": example.text, "colour": example.targets["colour"][0], "answer": answer})
        assert bool(answer) == (i in (1, 4))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = several({"one": "cnn", "two": "cnn"})
    command = ["-m", "mmzoo", "train", str(recipe_file(tmp_path, recipe)), "--dataset", str(tmp_path / "train.jsonl"), "--json"]
    for option in ("max_steps=4", "log_every=1", "precision=fp32"):
        command += ["--set", f"training.{option}"]
    launch = head()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def curve(start, output, batch):
        full = [*start, *command, "-o", str(tmp_path / output), "--set", f"training.batch_size={batch}"]
        done = subprocess.run(full, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout[done.stdout.index("{") :])["history"]

    one, two = curve(head(None), "one", 4), curve(launch, "two", 2)
    assert len(one) == 4
    for single, double in zip(one, two, strict=True):
        assert double["loss"] == pytest.approx(single["loss"], abs=1e-4)
        assert double["terms"] == pytest.approx(single["terms"], abs=1e-4)
