"""Training: it learns, resumes to the same numbers, stops on signals, and names bad data."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from launcher import head
from PIL import Image

import mmzoo
from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadImage, BadRecipe, CheckpointError, DataError, TrainingError
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny
from mmzoo.training.optimization import parameter_groups


class Given(Dataset):
    """The examples that a test gives."""

    def __init__(self, *examples, streamed=False):
        super().__init__(None)
        self.examples, self.streamed = examples, streamed

    def splits(self):
        return ["train"]

    def load(self, split):
        if not self.streamed:
            return list(self.examples)
        given = self.examples

        class Once:
            def __iter__(self):
                return iter(given)

        return Once()


def train(recipe, dataset, output, **more):
    return mmzoo.train(recipe, dataset=dataset, output=output, progress=False, **more)


def losses(run):
    return [entry["loss"] for entry in run.history]


def test_it_learns(sample, classifier, tmp_path):
    options = {"max_steps": 40, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1}
    run = train(classifier, sample, tmp_path / "m", training=options)
    assert losses(run)[-1] < 0.2 * losses(run)[0]
    examples = sample.load("test")
    said = mmzoo.load(tmp_path / "m").predict(image=[e.image for e in examples], text=[e.text for e in examples])
    assert [p.label for p in said] == [e.targets[0] for e in examples]
    assert run.model.recipe.task.options["labels"] == ["blue", "green", "red"]


def test_a_model_that_writes_learns(sample, writer, tmp_path):
    options = {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1}
    run = train(writer, sample, tmp_path / "m", training=options)
    examples = sample.load("test")
    said = run.model.predict(image=[e.image for e in examples], text=[e.text for e in examples], scores=True)
    assert [p.label for p in said] == [e.targets[0] for e in examples]
    assert all(0.5 < p.score <= 1 for p in said)


@pytest.mark.parametrize("together", [True, False])
def test_resuming_gives_the_numbers_of_an_unbroken_run(sample, tmp_path, together, monkeypatch):
    recipe = tiny("cnn-prefix-gpt", encoder={"train": "full"})
    options = {"epochs": 4, "batch_size": 2, "log_every": 1, "save_every": 3, "keep_images_together": together}
    whole = train(recipe, sample, tmp_path / "whole", training=options)

    from mmzoo.training.callbacks import StopOnSignal

    on_step_end = StopOnSignal.on_step_end

    def stop_at_7(self, args, state, control, **more):
        if state.global_step == 7:
            self.signal = int(signal.SIGTERM)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(StopOnSignal, "on_step_end", stop_at_7)
    first = train(recipe, sample, tmp_path / "parts", training=options)
    assert not first.finished
    assert first.steps == 7
    assert not (tmp_path / "parts" / "mmzoo.json").exists()
    monkeypatch.undo()
    second = train(recipe, sample, tmp_path / "parts", training=options, resume=True)
    assert second.finished
    assert losses(second) == losses(whole)
    a, b = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_override_of_the_trainer_is_called(sample, classifier, tmp_path, monkeypatch):
    """A method of `transformers.Trainer` that the library no longer calls would be lost without an error."""
    from transformers import Trainer

    from mmzoo.training.arguments import OneGPUArguments
    from mmzoo.training.trainer import MultimodalTrainer

    overrides = [
        (MultimodalTrainer, name) for name in vars(MultimodalTrainer) if not name.startswith("__") and hasattr(Trainer, name)
    ]
    assert {name for _, name in overrides} == {
        "compute_loss",
        "create_accelerator_and_postprocess",
        "create_optimizer",
        "create_scheduler",
        "get_batch_samples",
        "get_train_dataloader",
        "log",
        "save_model",
        "_save_checkpoint",
        "_load_from_checkpoint",
        "_save_optimizer_and_scheduler",
        "_load_optimizer_and_scheduler",
    }
    called = set()

    def spy(owner, name):
        method = vars(owner)[name]
        real = method.fget if isinstance(method, property) else method

        def calling(self, *arguments, **keywords):
            called.add(name)
            return real(self, *arguments, **keywords)

        monkeypatch.setattr(owner, name, property(calling) if isinstance(method, property) else calling)

    overrides.append((OneGPUArguments, "n_gpu"))
    for owner, name in overrides:
        spy(owner, name)
    options = {"max_steps": 2, "batch_size": 4, "save_every": 1}
    monkeypatch.setattr(mmzoo.MultimodalModel, "save", lambda *_: (_ for _ in ()).throw(CheckpointError("stopped")))
    with pytest.raises(CheckpointError, match="stopped"):
        train(classifier, sample, tmp_path / "m", training=options)
    resuming = {"_load_from_checkpoint", "_load_optimizer_and_scheduler"}
    assert called == {name for _, name in overrides} - resuming
    (tmp_path / "m" / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="stopped"):
        train(classifier, sample, tmp_path / "m", training=options, resume=True)
    assert called == {name for _, name in overrides}


def test_several_gpus_of_one_process_are_not_used_at_once(tmp_path, monkeypatch):
    """`DataParallel` would give each GPU a share of the batch; `accelerate launch` gives each a process."""
    from transformers import TrainingArguments

    from mmzoo.training.arguments import OneGPUArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    assert OneGPUArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3).train_batch_size == 3


def test_an_output_that_is_taken(sample, classifier, tmp_path, quick):
    train(classifier, sample, tmp_path / "m", training=quick)
    with pytest.raises(TrainingError, match="--overwrite"):
        train(classifier, sample, tmp_path / "m", training=quick)
    with pytest.raises(TrainingError, match="holds a finished model"):
        train(classifier, sample, tmp_path / "m", training=quick, resume=True)
    train(classifier, sample, tmp_path / "m", training=quick, overwrite=True)


def test_each_part_has_its_learning_rate(writer):
    rate = writer.training.learning_rate
    model = mmzoo.build(writer, encoder={"learning_rate": 1e-5}, language_model={"train": "frozen"})
    rates = {(group["lr"], group["weight_decay"]) for group in parameter_groups(model, model, 0.1)}
    assert rates == {(1e-5, 0.1), (1e-5, 0.0), (rate, 0.1), (rate, 0.0)}


def test_gradient_checkpointing_gives_equal_losses(sample, tmp_path, quick):
    recipe = tiny("cnn-prefix-gpt", fusion={"use": "cross-attention"}, language_model={"train": "frozen"})
    plain = train(recipe, sample, tmp_path / "a", training=quick)
    again = train(recipe, sample, tmp_path / "b", training={**quick, "gradient_checkpointing": True})
    assert losses(plain) == pytest.approx(losses(again), abs=1e-6)


def test_the_curve_ends_with_the_last_step(sample, classifier, tmp_path, capsys):
    run = mmzoo.train(classifier, dataset=sample, output=tmp_path / "m", training={"max_steps": 3, "batch_size": 4})
    assert [entry["step"] for entry in run.history] == [1, 3]
    assert f"training: 3/3 loss {run.history[-1]['loss']:.4f}" in capsys.readouterr().err.splitlines()


def test_nothing_to_train(sample, writer, tmp_path, quick):
    frozen = {"train": "frozen"}
    with pytest.raises(TrainingError, match="every part is frozen"):
        train(writer, sample, tmp_path / "m", training=quick, encoder=frozen, fusion=frozen, language_model=frozen, task=frozen)


def bad_pictures(folder, count=12):
    good = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    examples = []
    for i in range(4):
        good.save(folder / f"good{i}.png")
        examples.append(Example(f"good{i}", str(folder / f"good{i}.png"), "what", ("a" if i % 2 else "b",)))
    data = (folder / "good0.png").read_bytes()
    for i in range(count):
        path = folder / f"bad{i}.png"
        if i % 2:
            path.write_bytes(data[: len(data) // 2])
        examples.append(Example(f"bad{i}", str(path), "what", ("a",)))
    return Given(*examples)


def test_a_bad_image_stops_training_with_its_name(classifier, tmp_path, quick):
    with pytest.raises(BadImage, match=r"example bad\d+: ") as error:
        train(classifier, bad_pictures(tmp_path), tmp_path / "m", training={**quick, "max_steps": 20})
    assert "--skip-bad" in str(error.value)
    assert not (tmp_path / "m").exists()


def test_no_good_image_at_all_is_an_error(classifier, tmp_path, quick):
    bad = Given(*[example for example in bad_pictures(tmp_path).examples if example.id.startswith("bad")])
    labels = {"labels": ["a", "b"]}
    with pytest.raises(BadImage, match=r"none of the \d+ examples can be used; the first, bad\d"):
        train(classifier, bad, tmp_path / "m", skip_bad=True, training=quick, task=labels)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_on_request_and_counted(classifier, tmp_path, quick, workers):
    options = {"epochs": 1, "batch_size": 2, "workers": workers}
    run = train(classifier, bad_pictures(tmp_path), tmp_path / "m", skip_bad=True, training=options)
    assert {name for name, _ in run.skipped} == {f"bad{i}" for i in range(12)}
    assert json.loads((tmp_path / "m" / "run.json").read_text())["training"]["skipped"] == 12


def test_bad_data_is_refused_before_the_first_step(classifier, tmp_path, quick):
    picture = Image.new("RGB", (8, 8))
    cases = [
        (Given(), "empty"),
        (Given(Example("1", picture, "q", ("a",))), "two labels"),
        (
            Given(Example("1", picture, "q", ("a",)), Example("2", picture, "q", ("b",)), Example("3", picture, "q")),
            "3 has no label",
        ),
    ]
    for dataset, said in cases:
        with pytest.raises(DataError, match=said):
            train(classifier, dataset, tmp_path / "m", training=quick)
        assert not (tmp_path / "m").exists()
    with pytest.raises(DataError, match="no split 'dev'"):
        train(classifier, Sample(), tmp_path / "m", split="dev", training=quick)
    outside = {"labels": ["gold", "grey"]}
    with pytest.raises(
        DataError, match=r"examples have a target outside the labels of 'classify', such as .*'blue'.*task\.labels"
    ):
        train(classifier, Sample(), tmp_path / "m", training=quick, task=outside)


@pytest.mark.slow
def test_a_stream_trains_for_the_steps_it_is_given(classifier, sample, tmp_path, quick):
    stream = Given(*sample.load("train"), streamed=True)
    with pytest.raises(BadRecipe, match=r"training\.max_steps"):
        train(classifier, stream, tmp_path / "m", training={"epochs": 1})
    run = train(classifier, stream, tmp_path / "m", training={**quick, "max_steps": 6})
    assert run.steps == 6


class Names:
    """A collator that gives the names of the pictures."""

    skip_bad = False

    def __call__(self, examples):
        return {"images": [example.image for example in examples], "bad": []}


def test_a_stream_of_the_datasets_library_gives_each_example_to_one_worker(tmp_path):
    import datasets
    from torch.utils.data import DataLoader

    from mmzoo.training.sampling import TrainingBatches, as_it_is
    from mmzoo.training.streams import StreamReader
    from mmzoo_datasets.columns import Columns, RowReader
    from mmzoo_datasets.hub import Stream

    rows = datasets.Dataset.from_list([{"image": str(i), "target": "a"} for i in range(8)])
    for shards in (1, 2):
        stream = Stream(rows.to_iterable_dataset(shards), RowReader(Columns("image", None, "target", None), "train", "x"))
        batches = TrainingBatches(stream, Names(), 0, 8)
        assert isinstance(batches.reader, StreamReader)
        loader = DataLoader(batches, 2, num_workers=2, collate_fn=as_it_is)
        assert [name for batch in loader for name in batch["images"]] == [str(i) for i in range(8)]


def test_an_error_in_a_data_worker_is_one_plain_message(classifier, sample, tmp_path, quick):
    class Breaks(list):
        def __getitem__(self, index):
            raise DataError("row 1: it holds a number")

    data = Given()
    data.load = lambda split: Breaks(sample.load("train"))
    with pytest.raises(DataError) as error:
        train(classifier, data, tmp_path / "m", training={**quick, "workers": 1})
    assert str(error.value) == "row 1: it holds a number"


def test_half_a_checkpoint_of_a_killed_process_is_passed_over(classifier, sample, tmp_path, monkeypatch):
    options = {"max_steps": 6, "batch_size": 2, "save_every": 2}
    monkeypatch.setattr(mmzoo.MultimodalModel, "save", lambda *_: (_ for _ in ()).throw(CheckpointError("killed")))
    with pytest.raises(CheckpointError, match="killed"):
        train(classifier, sample, tmp_path / "m", training=options)
    monkeypatch.undo()
    (tmp_path / "m" / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text("{")
    run = train(classifier, sample, tmp_path / "m", training=options, resume=True)
    assert run.finished
    assert run.steps == 6


def test_a_full_disk_while_saving_keeps_the_last_good_checkpoint(classifier, sample, tmp_path, monkeypatch):
    module = sys.modules["mmzoo.training.trainer"]
    real, calls = module.save_file, []

    def full(weights, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(weights, path, metadata)

    monkeypatch.setattr(module, "save_file", full)
    options = {"max_steps": 6, "batch_size": 2, "save_every": 2}
    with pytest.raises(CheckpointError, match=r"No space left.*last good checkpoint is .*checkpoint-2"):
        train(classifier, sample, tmp_path / "m", training=options)
    assert [p.name for p in (tmp_path / "m" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    assert train(classifier, sample, tmp_path / "m", training=options, resume=True).finished


def test_blank_images_train_a_blind_control(classifier, sample, tmp_path, quick):
    run = train(classifier, sample, tmp_path / "m", training={**quick, "blank_images": True})
    batch = run.model.collator(training=True, blank=True)(sample.load("train"))
    assert batch["encoders"]["image"]["inputs"].abs().sum() == 0


@pytest.fixture
def folder_of_data(tmp_path):
    rows = []
    for example in Sample(count=16).load("train"):
        path = tmp_path / "data" / f"{len(rows)}.png"
        path.parent.mkdir(exist_ok=True)
        example.image.save(path)
        rows.append(json.dumps({"image": path.name, "text": example.text, "target": example.targets[0]}))
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    return tmp_path / "data"


def recipe_file(tmp_path, recipe):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    return path


def test_sigint_saves_a_checkpoint_and_says_how_to_go_on(writer, folder_of_data, tmp_path):
    command = [sys.executable, "-m", "mmzoo", "train", str(recipe_file(tmp_path, writer)), "--dataset", str(folder_of_data)]
    command += ["-o", str(tmp_path / "m"), "--set", "training.max_steps=100000", "--set", "training.batch_size=4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "m" / "checkpoints" / "recipe.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "--resume" in error
    assert "Traceback" not in error
    assert list((tmp_path / "m" / "checkpoints").glob("checkpoint-*/model.safetensors"))


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_batch(writer, folder_of_data, tmp_path):
    """Over gloo. The learning rate is small so that the order of float sums cannot show."""
    common = ["--dataset", str(folder_of_data), "--json", "--set", "training.max_steps=6", "--set", "training.log_every=1"]
    common += ["--set", "training.learning_rate=1e-3", "--set", "training.precision=fp32"]
    path = str(recipe_file(tmp_path, writer))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def curve(command, output, batch):
        full = [*command, "train", path, "-o", str(tmp_path / output), *common, "--set", f"training.batch_size={batch}"]
        done = subprocess.run(full, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return [entry["loss"] for entry in json.loads(done.stdout[done.stdout.index("{") :])["history"]]

    one = curve([sys.executable, "-m", "mmzoo"], "one", 8)
    # accelerate spawns its processes with torchrun only under --multi_gpu; on a CPU they talk over gloo.
    environment["ACCELERATE_USE_CPU"] = "true"
    launch = [*head(), "-m", "mmzoo"]
    two = curve(launch, "two", 4)
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-4)
    a, b = mmzoo.load(tmp_path / "one").state_dict(), mmzoo.load(tmp_path / "two").state_dict()
    assert all(torch.allclose(a[name], b[name], atol=2e-3) for name in a)


def test_a_loss_that_is_no_number_stops_and_names_the_examples(writer, sample, tmp_path):
    examples = sample.load("train")
    options = {"max_steps": 6, "batch_size": 2, "log_every": 1, "save_every": 2, "precision": "fp32"}

    def poison(model, args):
        model.calls = getattr(model, "calls", 0) + 1
        if model.calls == 4:
            model.fusion.model[0].weight.data[0, 0] = float("nan")

    class Poisoned(Given):
        def load(self, split):
            return examples

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: poison(module, args) if isinstance(module, mmzoo.MultimodalModel) and module.training else None
    )
    try:
        with pytest.raises(
            TrainingError, match=r"step 4: the loss is nan, on a batch of the examples train/\d, train/\d\."
        ) as error:
            train(writer, Poisoned(), tmp_path / "m", training=options)
    finally:
        handle.remove()
    last = tmp_path / "m" / "checkpoints" / "checkpoint-2"
    assert str(last) in str(error.value)
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(value).all()) for value in load_file(last / "model.safetensors").values())
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_saved(writer, sample, tmp_path):
    options = {"max_steps": 1, "batch_size": 8, "learning_rate": 1e38, "precision": "fp32", "schedule": "constant"}
    with pytest.raises(TrainingError, match="NaN or infinite"):
        train(writer, sample, tmp_path / "m", training=options)
    assert not (tmp_path / "m" / "model.safetensors").exists()
