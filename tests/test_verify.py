"""Verifying: what a model claims is measured again, on the same data, and compared score by score."""

import json
import shutil

import pytest
from test_cli import run

import mmzoo
from mmzoo.checkpoints import folder as checkpoint
from mmzoo.data import provenance
from mmzoo.errors import DataError, HubError
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import Sample, tiny

EASY = PartConfig.of({"use": "easy-vqa", "limit": 24}, "data")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pets"
    folder.mkdir()
    rows = []
    for i, example in enumerate(Sample(12).load("test")):
        example.image.save(folder / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "ask": example.text, "answer": "yes" if i % 2 else "no"}))
    (folder / "test.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measured on data that anyone can find."""
    folder = tmp_path_factory.mktemp("verify") / "m"
    labels = sorted({answer for split in ("train", "test") for e in _easy().load(split) for answer in e.targets})
    mmzoo.build(tiny("cnn-product-lstm", task={"labels": labels}), seed=0).save(folder)
    mmzoo.evaluate(folder, dataset=EASY, metrics=["accuracy"], seed=3, progress=False)
    return folder


def _easy():
    from mmzoo.data.open import open_dataset

    return open_dataset("easy-vqa")


@pytest.fixture
def model(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "m")


def change(folder, change, card=None):
    """Record something else, as its author can."""
    record = json.loads((folder / "run.json").read_text())
    change(record["evaluations"][0])
    checkpoint.update_run(folder, record, (folder / "README.md").read_text() if card is None else card)
    if card is None:
        checkpoint.update_run(folder, record, mmzoo.load(folder).card())


def test_what_was_measured_is_reproduced(model):
    found = mmzoo.verify(model, progress=False)
    assert found.reproduced
    (rerun,) = found.reruns
    assert (rerun.dataset, rerun.split, rerun.examples, rerun.measured) == ("easy-vqa", "test", 24, 24)
    assert [(c.metric, c.control, c.claimed == c.found) for c in rerun.checks] == [
        ("accuracy", "", True),
        ("accuracy", "shuffled", True),
        ("accuracy", "blanked", True),
    ]


@pytest.mark.parametrize("control", ["", "shuffled"])
@pytest.mark.parametrize(
    "claim",
    [
        {"value": 0.99, "low": 0.98, "high": 1.0},
        {"value": 0.99, "low": -1e9, "high": 1e9},
        {"value": 9.0, "low": 0.0, "high": 1.0},
    ],
    ids=["too good", "an interval without end", "outside its interval"],
)
def test_a_claim_that_is_not_so(model, control, claim):
    change(model, lambda said: (said["controls"][control] if control else said["scores"])["accuracy"].update(claim))
    found = mmzoo.verify(model, progress=False)
    assert not found.reproduced
    assert [c.control for c in found.reruns[0].checks if not c.reproduced] == [control]
    assert "NOT reproduced" in str(found)


def test_a_claim_within_its_interval_is_reproduced(model):
    def nearly(said):
        score = said["scores"]["accuracy"]
        score["value"] += (score["high"] - score["value"]) / 2

    change(model, nearly)
    assert mmzoo.verify(model, progress=False).reproduced


def test_other_data_are_not_measured(model):
    change(model, lambda said: said.update(fingerprint="0" * 64))
    (rerun,) = mmzoo.verify(model, progress=False).reruns
    assert "the data are not those of the claim" in rerun.why
    assert (rerun.checks, rerun.reproduced) == ([], False)


def test_a_card_that_claims_more_than_the_record(model):
    path = model / "README.md"
    value = json.loads((model / "run.json").read_text())["evaluations"][0]["scores"]["accuracy"]["value"]
    path.write_text(path.read_text().replace(f"value: {value}\n", "value: 0.99\n", 1))
    found = mmzoo.verify(model, progress=False)
    assert all(rerun.reproduced for rerun in found.reruns)
    assert (found.reproduced, found.unrecorded) == (False, ["accuracy 0.99 on split test"])


def test_a_model_that_claims_nothing(tmp_path):
    mmzoo.build(tiny("cnn-product-lstm")).save(tmp_path / "m")
    found = mmzoo.verify(tmp_path / "m")
    assert not found.reproduced
    assert "nothing is claimed" in str(found)


def test_data_of_the_authors_own(measured, pets, tmp_path):
    folder = shutil.copytree(measured, tmp_path / "m")
    part = PartConfig.of({"use": str(pets), "text_column": "ask"}, "data")
    mmzoo.evaluate(folder, dataset=part, metrics=["accuracy"], controls=(), progress=False)
    assert str(pets) not in (folder / "run.json").read_text()
    easy, own = mmzoo.verify(folder, progress=False).reruns
    assert (easy.reproduced, own.reproduced) == (True, False)
    assert "--dataset PATH" in own.why
    # A copy, wherever it lies; the columns are those that were recorded.
    copy = shutil.copytree(pets, tmp_path / "elsewhere")
    assert mmzoo.verify(folder, dataset=str(copy), progress=False).reproduced
    (copy / "test.jsonl").write_text((copy / "test.jsonl").read_text().replace("yes", "no"))
    assert "the data are not those" in mmzoo.verify(folder, dataset=str(copy), progress=False).reruns[1].why
    with pytest.raises(DataError, match="no such file"):
        mmzoo.verify(folder, dataset="./nowhere.csv", progress=False)


@pytest.mark.parametrize(
    "claim",
    [
        {"dataset": "files", "dataset_options": {"variant": "/etc"}},
        {"dataset": "files:/etc/passwd"},
        {"dataset": "/etc/passwd"},
        {"dataset": "../x"},
        {"dataset": "easy-vqa", "dataset_options": {"use": "/etc/passwd", "limit": 24}},
    ],
    ids=str,
)
def test_a_path_in_a_record_is_not_opened(model, claim, monkeypatch):
    opened = []
    monkeypatch.setattr("mmzoo.evaluation.verify.open_dataset", lambda part: opened.append(part) or _easy())
    change(model, lambda said: said.update(claim))
    (rerun,) = mmzoo.verify(model, progress=False).reruns
    assert [part.use for part in opened] == (["easy-vqa"] if "limit" in claim.get("dataset_options", {}) else [])
    assert bool(rerun.why) == (not opened)


def test_a_look_at_the_first_examples(model):
    found = mmzoo.verify(model, limit=6, progress=False)
    assert found.reruns[0].measured == 6
    assert "measured on the first 6: a look, no proof" in str(found)


def test_a_claim_that_cannot_be_measured(model):
    def unknown(said):
        said["scores"] = {"acuracy": said["scores"]["accuracy"]}

    change(model, unknown)
    assert "did you mean 'accuracy'" in mmzoo.verify(model, progress=False).reruns[0].why


def test_a_generating_model_with_its_options(tmp_path, pets):
    mmzoo.build(tiny("cnn-prefix-gpt"), seed=0).save(tmp_path / "m")
    for beams in (1, 2):
        mmzoo.evaluate(
            tmp_path / "m", dataset=Sample(4), controls=(), metrics=["bleu-1"], progress=False, num_beams=beams, max_new_tokens=3
        )
    found = mmzoo.verify(tmp_path / "m", dataset=Sample(4), progress=False)
    assert [rerun.reproduced for rerun in found.reruns] == [True, True]
    assert "num_beams=2" in (tmp_path / "m" / "README.md").read_text()


def test_a_repository_at_a_commit(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    repo = f"file://{tmp_path}/zoo/me/m"
    commit = mmzoo.push(measured, repo).commit
    found = mmzoo.verify(repo, revision=commit, progress=False)
    assert (found.reproduced, found.commit) == (True, commit)
    with pytest.raises(HubError, match="no revision"):
        mmzoo.verify(repo, revision="v9")


def test_texts_that_are_private_are_not_recorded(model):
    for count in (0, 2):
        command = ("evaluate", model, "--dataset", "easy-vqa", "--data", "limit=24", "--samples", count, "--json")
        assert len(json.loads(run(*command).stdout)["samples"]) == count
        assert ("## Sample predictions" in (model / "README.md").read_text()) == bool(count)


def test_the_command(measured, model, tmp_path):
    assert "accuracy, images shuffled" in run("verify", measured).stdout
    assert json.loads(run("verify", measured, "--json").stdout)["reproduced"] is True
    change(model, lambda said: said["scores"]["accuracy"].update(value=0.99, low=0.98, high=1.0))
    assert run("verify", model, code=1).stdout.endswith("\nnot reproduced\n")
    said = json.loads(run("verify", model, "--json", code=1).stdout)
    assert [check["reproduced"] for check in said["reruns"][0]["checks"]] == [False, True, True]
    assert "no such folder" in run("verify", tmp_path / "nothing", code=2).stderr
    assert "no revision" in run("verify", model, "--revision", "v1", code=2).stderr
    assert "name it with --dataset" in run("verify", model, "--data", "limit=2", code=2).stderr


@pytest.mark.parametrize("name", ["folder:/etc", "file:///etc/passwd", "C:/Users", "s3://a/b"])
def test_a_record_names_no_data_set_by_a_scheme_or_a_drive(name):
    with pytest.raises(DataError, match="file, folder or object of the model's author"):
        provenance.reopen({"dataset": name})
