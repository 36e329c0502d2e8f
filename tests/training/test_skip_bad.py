"""`skip_bad` leaves out each example that cannot be used, and only it: in training, in evaluation and in prediction."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmzoo
from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadImage, DataError
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny

LONG = " ".join(map(str, range(3000)))  # whatever the vocabulary learns


class Given(Dataset):
    """These examples, or these rows: one that is an error is raised when it is read."""

    def __init__(self, rows, *, streamed=False):
        super().__init__(None)
        self.rows, self.streamed = list(rows), streamed

    def splits(self):
        return ["train", "test"]

    def load(self, split):
        return Rows(self.rows) if not self.streamed else self

    def __iter__(self):
        return Cursor(self.rows)


class Rows(list):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        if isinstance(row, Exception):
            raise row
        return row

    def __iter__(self):
        return (self[i] for i in range(len(self)))


class Cursor:
    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self

    def __next__(self):
        row = next(self.rows)
        if isinstance(row, Exception):
            raise row
        return row


def train(recipe, rows, output, streamed=False, **options):
    options = {"batch_size": 4, "precision": "fp32", "workers": 0, "log_every": 1, "keep_images_together": False, **options}
    data = Given(rows, streamed=streamed)
    return mmzoo.train(recipe, dataset=data, output=output, progress=False, skip_bad=True, training=options)


def good(count=8):
    return [Example(f"good{i}", e.image, e.text, e.targets) for i, e in enumerate(Sample(count=count).load("train"))]


def unreadable(count):
    return [Example(f"bad{i}", f"/nowhere/{i}.png", "what color is it", ("red",)) for i in range(count)]


def short():
    """A recipe that generates, whose context holds no `LONG` text."""
    return tiny("cnn-prefix-gpt")


PICTURE = Image.new("RGB", (32, 32))
BAD = {
    "too long": Example("long", PICTURE, LONG, ("red",)),
    "long target": Example("wordy", PICTURE, "what color is it", (LONG,)),
    "no target": Example("none", PICTURE, "what color is it"),
    "blank target": Example("blank", PICTURE, "what color is it", (" ",)),
    "no picture": Example("bad", "/nowhere.png", "what color is it", ("red",)),
    "two pictures": Example("pair", [PICTURE, PICTURE], "what color is it", ("red",)),
    "wrong marks": Example("marks", PICTURE, "<audio> what color is it", ("red",)),
    "row": DataError("row 9: it holds a number"),
}


def test_each_kind_of_bad_example_is_skipped_by_itself(tmp_path):
    run = train(short(), [*good(5), *BAD.values()], tmp_path / "m", epochs=2)
    names = {row.id if isinstance(row, Example) else "#13" for row in BAD.values()}
    assert sorted(name for name, _ in run.skipped) == sorted(names)
    reasons = dict(run.skipped)
    assert "exceed the language model's context" in reasons["long"]
    assert "no target text" in reasons["none"]
    assert reasons["#13"] == "row 9: it holds a number"
    record = json.loads((tmp_path / "m" / "run.json").read_text())["training"]
    assert record["skipped"] == len(BAD)
    assert {row["id"]: row["error"] for row in record["skipped_examples"]} == reasons
    assert "skipped, which could not be used | 8" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize("streamed", [False, True])
def test_bad_examples_of_one_id_are_counted_each(tmp_path, streamed):
    bad = [Example("same", e.image, e.text, e.targets) for e in unreadable(3)]
    options = {"max_steps": 8} if streamed else {"epochs": 2}
    run = train(short(), [*good(5), *bad], tmp_path / "m", streamed, **options)
    assert sorted(run.skipped) == [("same", f"image '/nowhere/{i}.png' does not exist") for i in range(3)]


@pytest.mark.parametrize("entry", ["classify", "regress"])
def test_a_target_that_the_task_refuses(tmp_path, entry):
    task = {"use": entry, "labels": ["blue", "green", "red"]} if entry == "classify" else {"use": entry}
    rows = good() if entry == "classify" else [Example(e.id, e.image, e.text, (str(i),)) for i, e in enumerate(good())]
    wrong = Example("wrong", PICTURE, "what color is it", ("not a label",) if entry == "classify" else ("many",))
    recipe = tiny("cnn-product-lstm", task=task)
    run = train(recipe, [rows[0], wrong, *rows[1:], Example("none", PICTURE, "what color is it")], tmp_path / "m", epochs=1)
    plain = train(recipe, rows, tmp_path / "plain", epochs=1)
    assert {"none"} <= {name for name, _ in run.skipped} <= {"none", "wrong"}
    if entry == "regress":
        assert run.model.recipe.task.options == plain.model.recipe.task.options
        check_equal(run, plain)


def check_equal(one, other):
    a, b = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.history == other.history


def test_a_bad_neighbour_does_not_change_the_others(tmp_path, monkeypatch):
    """The weights are those of training on the good examples, in the same order."""
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    rows, bad = good(8), list(BAD.values())
    plain = train(short(), rows, tmp_path / "a", epochs=2, batch_size=2)
    mixed = [rows[0], bad[0], bad[4], rows[1], *rows[2:4], *bad[5:6], bad[1], *rows[4:]]
    found = train(plain.model.recipe, mixed, tmp_path / "b", epochs=2, batch_size=4)
    assert {name for name, _ in found.skipped} == {"long", "bad", "pair", "wordy"}
    assert found.history[0]["loss"] == pytest.approx(plain.history[0]["loss"])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_batches_and_steps_without_a_usable_example_have_no_loss(tmp_path, monkeypatch, accumulate):
    """Of eight batches of two the second half is bad: the curve has no 0, and weights stay in a step without loss."""
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    recipe = tiny("cnn-product-lstm")
    run = train(recipe, [*good(8), *unreadable(8)], tmp_path / "m", epochs=2, batch_size=2, accumulate=accumulate)
    assert all(entry["loss"] > 0.2 for entry in run.history)
    steps = {1: [1, 2, 3, 4, 9, 10, 11, 12], 2: [1, 2, 5, 6], 3: [1, 2, 4, 5]}[accumulate]
    assert [entry["step"] for entry in run.history] == steps
    assert len(run.skipped) == 8


def test_a_step_without_loss_changes_no_weight_and_no_other_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    recipe = tiny("cnn-product-lstm")
    options = {"batch_size": 4, "epochs": 1, "schedule": "constant", "weight_decay": 0.5, "log_every": 20}
    plain = train(recipe, good(8), tmp_path / "a", **options)
    mixed = [*good(8)[:4], *unreadable(8), *good(8)[4:]]
    found = train(recipe, mixed, tmp_path / "b", **options)
    a, b = plain.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert found.history[-1]["loss"] == plain.history[-1]["loss"]  # of two steps, not of four


@pytest.mark.parametrize("rows", [unreadable(4), [BAD["too long"]] * 3, [DataError("row 1: no")] * 2])
def test_nothing_usable_is_an_error_that_names_the_first(tmp_path, rows):
    with pytest.raises(DataError, match=r"none of the \d examples can be used; the first, (bad\d|long|#1): ") as error:
        train(tiny("cnn-prefix-gpt"), rows, tmp_path / "m", max_steps=2)
    assert isinstance(error.value, BadImage) or rows[0] not in unreadable(4)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_after_a_bad_row(tmp_path, workers):
    rows = [good(1)[0], BAD["row"], *good(5), BAD["too long"], BAD["no picture"]]
    run = train(short(), rows, tmp_path / "m", streamed=True, max_steps=4, workers=workers)
    assert {name for name, _ in run.skipped} == {"#2", "long", "bad"}


@pytest.mark.slow
def test_without_skip_bad_an_error_names_the_option(tmp_path):
    for row in (BAD["too long"], BAD["no picture"]):
        with pytest.raises(DataError, match=r"example (long|bad): (.|\n)*--skip-bad"):
            mmzoo.train(
                short(), dataset=Given([*good(3), row]), output=tmp_path / "m", progress=False, training={"batch_size": 4}
            )


def test_several_tasks_leave_an_example_out_of_all(tmp_path):
    recipe = tiny(mmzoo.Recipe.of({"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini", "tasks": {
        "caption": {"use": "caption"}, "topic": {"use": "classify"}, "pair": {"use": "contrastive"}}}))  # fmt: skip
    rows = [Example(e.id, e.image, "", {"caption": e.targets, "topic": e.targets, "pair": e.targets}) for e in good(6)]
    wordy = Example("wordy", PICTURE, "", {"caption": (LONG,), "topic": ("red",), "pair": ("red",)})
    run = train(recipe, [*rows, wordy, *unreadable(1)], tmp_path / "m", epochs=2, accumulate=2, batch_size=2)
    assert {name for name, _ in run.skipped} >= {"wordy"}
    assert all(entry["loss"] > 0 for entry in run.history)


# Evaluation and prediction


@pytest.fixture(scope="module")
def model():
    return mmzoo.build(tiny("cnn-prefix-gpt", language_model={"use": "gpt-mini"}), seed=0)


def test_an_evaluation_scores_the_others_and_says_of_how_many(tmp_path, model):
    model.save(tmp_path / "m")
    with pytest.raises(DataError):
        mmzoo.evaluate(tmp_path / "m", dataset=Given([*good(4), *BAD.values()]), split="test", progress=False)
    found = mmzoo.evaluate(
        tmp_path / "m", dataset=Given([*good(4), *BAD.values()]), split="test", progress=False, skip_bad=True, batch_size=3
    )
    plain = mmzoo.evaluate(model, dataset=Given(good(4)), split="test", progress=False)
    skipped = len(BAD) - 1  # a long target is no fault where it is only compared with
    assert (found.examples, found.skipped) == (5, skipped)
    assert f"5 examples ({skipped} skipped)" in str(found)
    assert found.fingerprint != plain.fingerprint
    record = json.loads((tmp_path / "m" / "run.json").read_text())["evaluations"][0]
    assert record["skipped"] == skipped
    assert {row["id"] for row in record["skipped_examples"]} == {"long", "none", "blank", "bad", "pair", "marks", "#12"}
    assert f"5 examples ({skipped} skipped, which could not be used)" in (tmp_path / "m" / "README.md").read_text()
    verified = mmzoo.verify(tmp_path / "m", dataset=Given([*good(4), *BAD.values()]), progress=False)
    assert verified.evaluations[0].reason == ""
    assert verified.reproduced


def test_the_scores_are_those_of_the_usable_examples(model):
    rows = [*good(2), BAD["no picture"], *good(6)[2:]]
    found = mmzoo.evaluate(model, dataset=Given(rows), split="test", progress=False, skip_bad=True)
    plain = mmzoo.evaluate(model, dataset=Given(good(6)), split="test", progress=False)
    assert (found.scores, found.controls, found.fingerprint) == (plain.scores, plain.controls, plain.fingerprint)
    assert [p.label for p in found.predictions] == [p.label for p in plain.predictions]
    with pytest.raises(BadImage, match="none of the 2 examples can be used"):
        mmzoo.evaluate(model, dataset=Given(unreadable(2)), split="test", progress=False, skip_bad=True)


def test_a_prediction_that_cannot_be_made_is_none(model, caplog):
    images = [PICTURE, "/nowhere.png", PICTURE, PICTURE]
    texts = ["what", "what", LONG, "which"]
    found = model.predict(image=images, text=texts, skip_bad=True, batch_size=2)
    assert [p is None for p in found] == [False, True, True, False]
    alone = model.predict(image=PICTURE, text="which")
    assert found[3].label == alone.label
    assert "skipped 2 of 4 examples" in caplog.text
    assert "/nowhere.png" in caplog.text
    with pytest.raises(BadImage, match="none of the 1 examples"):
        model.predict(image="/nowhere.png", text="what", skip_bad=True)
    with pytest.raises(BadImage):
        model.predict(image=images, text="what")


@pytest.mark.slow
def test_the_command_line_predicts_the_rest_of_a_folder(tmp_path, model):
    model.save(tmp_path / "m")
    for name in ("a.png", "c.png"):
        PICTURE.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"half")
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    command = [sys.executable, "-m", "mmzoo", "predict", str(tmp_path / "m"), *files, "--text", "what", "--json", "--skip-bad"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert [Path(row["image"]).name for row in json.loads(done.stdout)] == ["a.png", "c.png"]
    assert "skipped 1 of 3 examples" in done.stderr
    assert "b.png" in done.stderr
