"""Validation while training: the best weights are kept, no step changes, resumed runs decide alike, and data are kept apart."""

import json
import os
import shutil
import signal
import subprocess
import time

import command_line
import psutil
import pytest
import torch
from launcher import head
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

import mmzoo
from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadRecipe, CheckpointError, DataError, TrainingError
from mmzoo.interfaces import Example
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import StopOnSignal
from mmzoo.training.trainer import MultimodalTrainer

OPTIONS = {"max_steps": 12, "batch_size": 4, "evaluate_every": 3, "save_every": 4, "log_every": 1, "learning_rate": 1e-2}


class Given(Dataset):
    """Splits of examples that a test gives."""

    def __init__(self, **splits):
        super().__init__(None)
        self.given = splits

    def splits(self):
        return list(self.given)

    def load(self, split):
        return self.given[split]


def picture(number, size=32):
    colour = [(200, 30, 30), (30, 200, 30), (30, 30, 200)][number % 3]
    image = Image.new("RGB", (size, size), colour)
    image.putpixel((number % size, number // size), (0, 0, 0))
    return image


def examples(numbers, text="what color is it"):
    return [Example(f"#{i}", picture(i), text, (("red", "green", "blue")[i % 3],)) for i in numbers]


def colours():
    return Given(train=examples(range(24)), validation=examples(range(30, 42)), test=examples(range(50, 59)))


def train(recipe, output, dataset=None, options=None, **more):
    given = {"dataset": dataset or colours()} if "datasets" not in more else {}
    return mmzoo.train(recipe, output=output, progress=False, training={**OPTIONS, **(options or {})}, **given, **more)


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def dropping():
    return tiny("cnn-product-lstm", task={"use": "classify", "dropout": 0.3})


def scores_are(monkeypatch, values):
    """Replace the scores of validations by these, in order."""
    from mmzoo.training.validation import Validation

    real, left = Validation.score, list(values)

    def score(self, model, *more):
        scores, predictions = real(self, model, *more)
        return {**scores, self.metric: left.pop(0)}, predictions

    monkeypatch.setattr(Validation, "score", score)


def listening(*callbacks):
    """Add callbacks to the next runs, as a plugin does."""
    from types import ModuleType

    module = ModuleType("listening")
    module.mmzoo_train_callbacks = mmzoo.hookimpl(lambda recipe: list(callbacks))
    manager = plugin_manager().manager
    manager.register(module)
    return lambda: manager.unregister(module)


@pytest.fixture
def weights_by_step():
    """The weights after each step of the runs of a test."""
    seen = []

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})

    remove = listening(Note())
    yield seen
    remove()


def test_no_step_changes(tmp_path, weights_by_step):
    train(dropping(), tmp_path / "a", options={"evaluate_every": 0})
    assert len(weights_by_step) == 12
    without = weights_by_step[:]
    weights_by_step.clear()
    train(dropping(), tmp_path / "b", validation="validation", options={"evaluate_every": 1, "metric": "loss"})
    assert len(weights_by_step) == 12
    assert all(torch.equal(a[name], b[name]) for a, b in zip(without, weights_by_step, strict=True) for name in a)


def test_the_best_weights_are_saved_and_returned(tmp_path, monkeypatch, weights_by_step):
    scores_are(monkeypatch, [0.1, 0.7, 0.7, 0.5])
    run = train(dropping(), tmp_path / "m", validation="validation")
    assert run.validation["best"] == {"step": 6, "score": 0.7}
    assert [entry["step"] for entry in run.validation["history"]] == [3, 6, 9, 12]
    loaded = mmzoo.load(tmp_path / "m").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights_by_step[5].items())
    assert same_weights(run.model, mmzoo.load(tmp_path / "m"))
    record = json.loads((tmp_path / "m" / "run.json").read_text())["training"]["validation"]
    assert (record["metric"], record["best"], record["examples"]) == ("accuracy", {"step": 6, "score": 0.7}, 12)
    assert "step 6" in (tmp_path / "m" / "README.md").read_text()
    assert not (tmp_path / "m" / "checkpoints").exists()


def test_evaluate_gives_the_best_score(tmp_path, writer):
    for recipe, name in ((dropping(), "classes"), (writer, "texts")):
        data = colours()
        run = train(recipe, tmp_path / name, dataset=data, validation="validation")
        measured = mmzoo.evaluate(tmp_path / name, dataset=data, split="validation", controls=(), progress=False)
        best = next(entry for entry in run.validation["history"] if entry["step"] == run.validation["best"]["step"])
        assert {name: score.value for name, score in measured.scores.items()} == best["scores"]
        assert measured.fingerprint == run.validation["fingerprint"]


def test_each_epoch_and_the_end(tmp_path):
    run = train(dropping(), tmp_path / "m", validation="validation", options={"evaluate_every": 0, "max_steps": 14})
    assert [entry["step"] for entry in run.validation["history"]] == [6, 12, 14]


def test_limit(tmp_path):
    run = train(dropping(), tmp_path / "m", validation="validation", options={"evaluate_limit": 5, "max_steps": 3})
    assert run.validation["examples"] == 5


@pytest.mark.parametrize(("metric", "values", "best"), [("loss", [3.0, 1.0, 2.0, 1.5], 6), ("accuracy", [0.5, 0.1, 0.2, 0.3], 3)])
def test_smaller_or_bigger_is_better(tmp_path, monkeypatch, metric, values, best):
    scores_are(monkeypatch, values)
    run = train(dropping(), tmp_path / "m", validation="validation", options={"metric": metric})
    assert (run.validation["best"]["step"], run.validation["metric"]) == (best, metric)
    assert all(("loss" in entry["scores"]) == (metric == "loss") for entry in run.validation["history"])


def test_the_loss_is_that_of_training(tmp_path):
    """Of a batch with all validation examples, in evaluation mode."""
    data = colours()
    run = train(dropping(), tmp_path / "m", dataset=data, validation="validation", options={"metric": "loss", "max_steps": 3})
    model = run.model
    from mmzoo.data.collate import tensors

    with torch.no_grad():
        loss = model(**tensors(model.collator(training=True)(data.load("validation")), "cpu"))["loss"]
    assert run.validation["best"]["score"] == pytest.approx(float(loss), rel=1e-6)


def test_patience_stops_early_and_finishes(tmp_path, monkeypatch):
    scores_are(monkeypatch, [0.5, 0.4, float("nan"), 0.9])
    run = train(dropping(), tmp_path / "m", validation="validation", options={"patience": 2})
    assert (run.finished, run.steps, run.validation["best"]["step"]) == (True, 9, 3)
    assert run.validation["stopped_early"]
    assert run.history[-1]["step"] == 9
    record = json.loads((tmp_path / "m" / "run.json").read_text())["training"]["validation"]
    assert record["history"][2]["scores"]["accuracy"] is None
    assert mmzoo.load(tmp_path / "m")


def test_a_run_whose_patience_ends_at_its_last_step_did_not_stop_early(tmp_path, monkeypatch):
    scores_are(monkeypatch, [0.1, 0.5, 0.4, 0.3])
    run = train(dropping(), tmp_path / "m", validation="validation", options={"patience": 2})
    assert (run.steps, run.validation["stopped_early"]) == (12, False)


def test_without_any_number_the_last_weights_are_kept(tmp_path, monkeypatch, weights_by_step):
    scores_are(monkeypatch, [float("nan")] * 4)
    run = train(dropping(), tmp_path / "m", validation="validation")
    assert run.validation["best"] is None
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in weights_by_step[-1].items())


# Resuming


def stopping(monkeypatch, at):
    on_step_end = StopOnSignal.on_step_end

    def stop(self, args, state, control, **more):
        if state.global_step == at:
            self.signal = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop)


@pytest.mark.parametrize("at", [5, 6, 12])
def test_a_stopped_run_is_resumed_to_the_same(tmp_path, monkeypatch, at):
    options = {"metric": "loss", "patience": 3}
    whole = train(dropping(), tmp_path / "whole", validation=0.25, options=options)
    with monkeypatch.context() as patch:
        stopping(patch, at)
        run = train(dropping(), tmp_path / "m", validation=0.25, options=options)
    assert not run.finished
    assert len(run.validation["history"]) == {5: 1, 6: 1, 12: 3}[at]  # a signal does not wait for a validation
    run = train(dropping(), tmp_path / "m", validation=0.25, options=options, resume=True)
    assert run.validation == whole.validation
    assert run.history == whole.history
    assert same_weights(run.model, whole.model)


def interrupted(monkeypatch, name, call):
    """Let the function of the trainer fail at its ``call``th call, as a killed process does: nothing is cleaned up after it."""
    real, calls = getattr(MultimodalTrainer, name), []

    def fail(self, *args, **more):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(MultimodalTrainer, name, fail)


@pytest.mark.parametrize(
    ("name", "call"),
    [("write_weights", 4), ("write_weights", 5), ("training_step", 10), ("training_step", 11), ("load_weights", 1)],
)
def test_a_run_that_breaks_anywhere_is_resumed_to_the_same(tmp_path, monkeypatch, name, call):
    """The best step is the first, or lies behind the last checkpoint, or is being written."""
    values = [0.2, 0.9, 0.3, 0.8]
    options = {"save_every": 4, "patience": 2}
    with monkeypatch.context() as patch:
        scores_are(patch, values)
        whole = train(dropping(), tmp_path / "whole", validation="validation", options=options)
    with monkeypatch.context() as patch:
        scores_are(patch, values)
        interrupted(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            train(dropping(), tmp_path / "m", validation="validation", options=options)
    last = max(int(path.parent.name.split("-")[1]) for path in (tmp_path / "m" / "checkpoints").glob("*/trainer_state.json"))
    with monkeypatch.context() as patch:
        scores_are(patch, values[last // 3 :])
        run = train(dropping(), tmp_path / "m", validation="validation", options=options, resume=True)
    assert (run.validation, run.history) == (whole.validation, whole.history)
    assert same_weights(run.model, whole.model)


def test_the_best_weights_survive_the_checkpoints(tmp_path, monkeypatch):
    scores_are(monkeypatch, [0.1, 0.9, *[0.2] * 20])
    stopping(monkeypatch, 30)
    train(dropping(), tmp_path / "m", validation="validation", options={"max_steps": 40, "save_every": 2})
    folder = tmp_path / "m" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["best-6", "checkpoint-28", "checkpoint-30"]
    facts = json.loads((folder / "best-6" / "best.json").read_text())
    assert facts == {"step": 6, "score": 0.9, "metric": "accuracy"}
    assert load_file(folder / "best-6" / "model.safetensors")
    shutil.rmtree(folder / "best-6")
    with pytest.raises(CheckpointError, match=r"best-6: the weights of the best step are missing; .*--overwrite"):
        train(dropping(), tmp_path / "m", validation="validation", options={"max_steps": 40, "save_every": 2}, resume=True)


def test_it_is_resumed_with_the_same_data(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 5)
        train(dropping(), tmp_path / "m", validation="validation", options={"evaluate_every": 0})
    for other in ("test", None):
        with pytest.raises(TrainingError, match="started with other validation data; resume with the same --validation"):
            train(dropping(), tmp_path / "m", validation=other, options={"evaluate_every": 0}, resume=True)


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = MultimodalTrainer.write_weights

    def full(self, weights, folder):
        if self.state.global_step == 9 and "writing" in folder.name:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(self, weights, folder)

    monkeypatch.setattr(MultimodalTrainer, "write_weights", full)
    scores_are(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(
        CheckpointError, match=r"best-9: saving the best weights failed: .*No space.* is .*checkpoint-8.*--resume"
    ):
        train(dropping(), tmp_path / "m", validation="validation")
    names = sorted(path.name for path in (tmp_path / "m" / "checkpoints").iterdir() if path.is_dir())
    assert names == ["best-6", "checkpoint-4", "checkpoint-8"]


# Which data


def test_a_share_holds_out_whole_pictures(tmp_path):
    """Four questions on each of twelve pictures, which are also copied under another name."""
    rows = []
    for i in range(12):
        for k in range(4):
            path = tmp_path / f"{i}-{k}.png"
            picture(i).save(path)
            rows.append(Example(f"{i}/{k}", str(path), f"what color is it {k}", (("red", "green", "blue")[i % 3],)))
    seen, tried = [], {}

    class Note(TrainerCallback):
        def on_evaluate(self, args, state, control, samples=(), **_):
            seen.extend(samples)

    remove = listening(Note())
    try:
        for seed in (0, 0, 1):
            seen.clear()
            options = {"max_steps": 1, "seed": seed}
            run = train(
                dropping(), tmp_path / f"m{len(tried)}{seed}", Given(train=rows), options, validation=0.25, overwrite=True
            )
            assert (run.validation["share"], run.validation["examples"]) == (0.25, 12)
            held = {row["id"].partition("/")[0] for row in seen}
            assert len(held) == 3
            assert run.model.provenance.run["training"]["examples"] == 36
            tried.setdefault(seed, set()).add(run.validation["fingerprint"])
    finally:
        remove()
    assert len(tried[0]) == 1
    assert tried[0] != tried[1]


def test_a_data_set_with_the_options_of_the_training_data(tmp_path):
    for name, numbers in (("train", range(12)), ("dev", range(30, 36))):
        rows = []
        for i in numbers:
            picture(i).save(tmp_path / f"{i}.png")
            rows.append({"file": f"{i}.png", "ask": "what color is it", "answer": ("red", "green", "blue")[i % 3]})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"image_column": "file", "text_column": "ask", "target_column": "answer"}
    from mmzoo.recipes.schema import PartConfig

    dataset = PartConfig.of({"use": str(tmp_path / "train.jsonl"), **data}, "test")
    for number, given in enumerate((str(tmp_path / "dev.jsonl"), tmp_path / "dev.jsonl")):
        run = train(dropping(), tmp_path / f"m{number}", dataset, {"max_steps": 3}, validation=given)
        assert run.validation["examples"] == 6


def test_targets_outside_the_labels_are_counted(tmp_path):
    new = [Example(f"new {i}", picture(i + 50), "what color is it", ("purple",)) for i in range(2)]
    data = Given(train=examples(range(24)), validation=[*examples(range(30, 34)), *new], test=new)
    run = train(dropping(), tmp_path / "m", data, {"max_steps": 3}, validation="validation")
    assert run.validation["outside_labels"] == {"classify": 2}
    with pytest.raises(DataError, match="2 examples have a target outside the labels of 'classify', such as 'purple', and none"):
        train(dropping(), tmp_path / "n", data, {"max_steps": 3}, validation="test")
    assert not (tmp_path / "n").exists()


def two_tasks():
    parts = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini"}
    return tiny(mmzoo.Recipe.of({**parts, "tasks": {"kind": {"use": "classify"}, "shade": {"use": "classify"}}}))


def test_by_task(tmp_path):
    sizes = Given(train=examples(range(24), "which"), dev=examples(range(60, 66), "which"))
    both = {"kind": colours(), "shade": sizes}
    run = train(two_tasks(), tmp_path / "a", datasets=both, validation={"shade": "dev"}, options={"max_steps": 3})
    assert run.validation["metric"] == "shade/accuracy"
    assert run.validation["examples"] == 6
    assert all(name.startswith("shade/") for name in run.validation["history"][0]["scores"])
    given = {"kind": "validation", "shade": "dev"}
    run = train(two_tasks(), tmp_path / "b", datasets=both, validation=given, options={"max_steps": 3, "metric": "accuracy"})
    assert (run.validation["metric"], run.validation["examples"]) == ("kind/accuracy", 18)
    assert {name.partition("/")[0] for name in run.validation["history"][0]["scores"]} == {"kind", "shade"}
    run = train(two_tasks(), tmp_path / "c", datasets=both, validation=0.25, options={"max_steps": 3, "metric": "shade/accuracy"})
    assert run.validation["examples"] == 12


# Bad input


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"options": {"patience": 2}}, BadRecipe, "training.evaluate_every: there are no validation data; add --validation"),
        ({"options": {"evaluate_every": 0, "patience": 2}}, BadRecipe, "training.patience: there are no validation data"),
        ({"options": {"evaluate_every": 0, "metric": "loss"}}, BadRecipe, "training.metric: there are no validation data"),
        (
            {"validation": "validation", "options": {"metric": "cleverness"}},
            BadRecipe,
            "has 'cleverness'; choose one of accuracy, precision, recall, f1, loss",
        ),
        ({"validation": "validation", "options": {"metric": "cider-d"}}, BadRecipe, "has 'cider-d'; choose one of accuracy,"),
        (
            {"validation": "train"},
            DataError,
            "24 of 24 validation examples are among the training examples, and these are all .* hold out a share",
        ),
        ({"validation": 1.5}, BadRecipe, "must be above 0 and below 1"),
        ({"validation": "0"}, BadRecipe, "must be above 0 and below 1"),
        ({"validation": 0.01}, DataError, "0.01 of 24 training examples is less than one"),
        ({"validation": 0.999}, DataError, "all 24 training examples would be held out for a share of 0.999"),
        ({"validation": True}, BadRecipe, "got True"),
        ({"validation": [0.1, "test"]}, BadRecipe, "a share is of all training examples; write 0.1 alone"),
        ({"validation": ["0.1", "test"]}, BadRecipe, "a share is of all training examples; write 0.1 alone"),
        ({"validation": {"classify": 0.1}}, BadRecipe, "a share is of all training examples; write 0.1 alone"),
        ({"validation": []}, DataError, "no data are named"),
        ({"validation": ""}, DataError, "no data are named"),
        ({"validation": "nowhere"}, mmzoo.errors.UnknownName, "'nowhere' is neither a split .*0.1\nunknown dataset"),
        ({"validation": "tran"}, mmzoo.errors.UnknownName, "neither a split .* did you mean 'train'"),
        ({"validation": "empty"}, DataError, "empty"),
        ({"validation": {"other": "test"}}, mmzoo.errors.UnknownName, "no task 'other'"),
    ],
)
def test_errors_before_the_model_is_built(tmp_path, monkeypatch, more, kind, message):
    real = mmzoo.training.run.assemble

    def without_weights(recipe, *, meta=False):  # a metric that exists is looked for in the tasks
        assert meta, "it was built"
        return real(recipe, meta=True)

    monkeypatch.setattr("mmzoo.training.run.assemble", without_weights)
    data = colours()
    data.given["empty"] = []
    with pytest.raises(kind, match=message):
        train(dropping(), tmp_path / "m", data, **more)
    assert not (tmp_path / "m").exists()


def test_overlap_is_counted_by_content(tmp_path):
    """Of the same pictures under other names, those with the same text and target count."""
    rows = []
    for i in range(12):
        picture(i).save(tmp_path / f"{i}.png")
        rows.append(Example(f"{i}", str(tmp_path / f"{i}.png"), "what color is it", (("red", "green", "blue")[i % 3],)))
    copies = []
    for i in range(10, 16):
        picture(i).save(tmp_path / f"copy-{i}.png")
        copies.append(Example(f"{i}", str(tmp_path / f"copy-{i}.png"), "what color is it", (("red", "green", "blue")[i % 3],)))
    asked = Example("asked", str(tmp_path / "0.png"), "another question", ("red",))
    data = Given(train=rows, dev=[*copies, asked])
    with pytest.raises(DataError, match="2 of 7 validation examples are among the training examples"):
        train(dropping(), tmp_path / "m", data, validation="dev")
    run = train(dropping(), tmp_path / "m", data, {"max_steps": 1}, validation="dev", data={"deduplicate": True})
    assert run.validation["deduplicated"] == 2
    assert run.model.provenance.run["training"]["examples"] == 10


def test_a_bad_picture_is_named_or_skipped(tmp_path):
    data = colours()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    data.given["validation"][4] = Example("the bad one", str(tmp_path / "bad.png"), "what color is it", ("red",))
    with pytest.raises(mmzoo.errors.BadImage, match="validation at step 3: example the bad one.*\n.*--skip-bad"):
        train(dropping(), tmp_path / "m", data, validation="validation")
    run = train(dropping(), tmp_path / "m", data, {"max_steps": 3}, validation="validation", skip_bad=True)
    assert (run.validation["examples"], run.validation["skipped"]) == (11, 1)


# Others


def test_other_callbacks_get_scores_and_samples(tmp_path, monkeypatch):
    events = []

    class Note(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, samples=None, **_):
            events.append((state.global_step, metrics, samples))

    remove = listening(Note())
    try:
        train(dropping(), tmp_path / "m", validation="validation")
    finally:
        remove()
    assert [step for step, _, _ in events] == [3, 6, 9, 12]
    _, metrics, samples = events[-1]
    assert set(metrics) == {"accuracy", "precision", "recall", "f1"}
    assert 0 < len(samples) <= 20
    assert set(samples[0]) == {"id", "task", "text", "targets", "prediction", "inputs"}
    assert samples[0]["prediction"] in ("red", "green", "blue")
    assert isinstance(samples[0]["inputs"]["image"], Image.Image)


@pytest.fixture
def folder(tmp_path):
    """A folder of data with two splits."""
    for split, numbers in (("train", range(16)), ("validation", range(40, 46))):
        rows = []
        for i in numbers:
            picture(i).save(tmp_path / f"{i}.png")
            colour = ("red", "green", "blue")[i % 3]
            rows.append({"image": f"{i}.png", "text": "what color is it", "target": colour})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.json").write_text(json.dumps(dropping().to_dict()))
    return tmp_path


def command(folder, *more):
    sets = [f"training.{name}={value}" for name, value in {**OPTIONS, "precision": "fp32"}.items()]
    options = [word for pair in sets for word in ("--set", pair)]
    return ["train", str(folder / "recipe.json"), "--dataset", str(folder), *options, *more]


def test_the_command_says_the_best(folder):
    def run(*more, code=0):
        return command_line.run(*command(folder, "-o", str(folder / "m"), *more), code=code)

    validation = json.loads(run("--validation", "validation", "--json").stdout)["validation"]
    assert len(validation["history"]) == 4
    said = run("--validation", "0.25", "--overwrite").stdout
    assert "accuracy " in said.split("the best is step ")[1]
    assert "nothing" in run("--validation", "nothing", "--overwrite", code=2).stderr


@pytest.mark.slow
def test_two_processes_decide_as_one_and_resume_after_a_kill(folder):
    """Over gloo; the batch of a process is half of that of one."""
    launch = [*head(), "-m", "mmzoo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def started(output, *more):
        full = [*launch, *command(folder, "-o", str(folder / output), "--json", "--validation", "validation", *more)]
        full += ["--set", "training.max_steps=24", "--set", "training.metric=loss"]
        return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def finished(process):
        out, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-3000:]
        return json.loads(out[out.index("{") :])

    whole = finished(started("whole"))
    process = started("m")
    while not list((folder / "m" / "checkpoints").glob("checkpoint-12/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:  # they are in sessions of their own
        each.kill()
    process.communicate()
    resumed = finished(started("m", "--resume"))
    assert resumed["validation"] == whole["validation"]
    assert resumed["history"] == whole["history"]
    assert same_weights(mmzoo.load(folder / "m"), mmzoo.load(folder / "whole"))


def test_the_record_is_in_the_card(tmp_path):
    train(dropping(), tmp_path / "m", Sample(8), {"max_steps": 3}, validation=0.5)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "validated on" in card
    assert "held out" in card
