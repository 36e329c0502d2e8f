"""Test verification: the scores that a model claims are measured on the same data and compared one by one."""

import json
import shutil

import pytest
from command_line import run

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
    """Return a checkpoint that was measured on public data."""
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
    """Change the record and the card, as a model's author can."""
    record = json.loads((folder / "run.json").read_text())
    change(record["evaluations"][0])
    checkpoint.update_run(folder, record, (folder / "README.md").read_text() if card is None else card)
    if card is None:
        checkpoint.update_run(folder, record, mmzoo.load(folder).card())


def test_what_was_measured_is_reproduced(model):
    verification = mmzoo.verify(model, progress=False)
    assert verification.reproduced
    (check,) = verification.evaluations
    assert (check.dataset, check.split, check.examples, check.measured) == ("easy-vqa", "test", 24, 24)
    assert [(c.metric, c.control, c.claimed == c.measured) for c in check.checks] == [
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
def test_a_false_claim_is_not_reproduced(model, control, claim):
    change(model, lambda record: (record["controls"][control] if control else record["scores"])["accuracy"].update(claim))
    verification = mmzoo.verify(model, progress=False)
    assert not verification.reproduced
    assert [c.control for c in verification.evaluations[0].checks if not c.reproduced] == [control]
    assert "NOT reproduced" in str(verification)


def test_a_claim_within_its_interval_is_reproduced(model):
    def nearly(record):
        score = record["scores"]["accuracy"]
        score["value"] += (score["high"] - score["value"]) / 2

    change(model, nearly)
    assert mmzoo.verify(model, progress=False).reproduced


def test_other_data_are_not_measured(model):
    change(model, lambda record: record.update(fingerprint="0" * 64))
    (check,) = mmzoo.verify(model, progress=False).evaluations
    assert "the data differ from those of the claim" in check.reason
    assert (check.checks, check.reproduced) == ([], False)


def test_a_card_that_claims_more_than_the_record(model):
    path = model / "README.md"
    value = json.loads((model / "run.json").read_text())["evaluations"][0]["scores"]["accuracy"]["value"]
    path.write_text(path.read_text().replace(f"value: {value}\n", "value: 0.99\n", 1))
    verification = mmzoo.verify(model, progress=False)
    assert all(check.reproduced for check in verification.evaluations)
    assert (verification.reproduced, verification.unrecorded) == (False, ["accuracy 0.99 on split test"])


def test_a_model_that_claims_nothing(tmp_path):
    mmzoo.build(tiny("cnn-product-lstm")).save(tmp_path / "m")
    verification = mmzoo.verify(tmp_path / "m")
    assert not verification.reproduced
    assert "nothing is claimed" in str(verification)


def test_a_private_data_set_is_verified_with_a_copy(measured, pets, tmp_path):
    folder = shutil.copytree(measured, tmp_path / "m")
    part = PartConfig.of({"use": str(pets), "text_column": "ask"}, "data")
    mmzoo.evaluate(folder, dataset=part, metrics=["accuracy"], controls=(), progress=False)
    assert str(pets) not in (folder / "run.json").read_text()
    easy, own = mmzoo.verify(folder, progress=False).evaluations
    assert (easy.reproduced, own.reproduced) == (True, False)
    assert "--dataset PATH" in own.reason
    # A copy in another folder; the recorded columns are used.
    copy = shutil.copytree(pets, tmp_path / "elsewhere")
    assert mmzoo.verify(folder, dataset=str(copy), progress=False).reproduced
    (copy / "test.jsonl").write_text((copy / "test.jsonl").read_text().replace("yes", "no"))
    assert "the data differ from those" in mmzoo.verify(folder, dataset=str(copy), progress=False).evaluations[1].reason
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
    real = mmzoo.evaluation.verify.open_source
    monkeypatch.setattr("mmzoo.evaluation.verify.open_source", lambda recipe, part: opened.append(part) or real(recipe, _easy()))
    change(model, lambda record: record.update(claim))
    (check,) = mmzoo.verify(model, progress=False).evaluations
    assert [part.use for part in opened] == (["easy-vqa"] if "limit" in claim.get("dataset_options", {}) else [])
    assert bool(check.reason) == (not opened)


def test_a_limit_measures_only_the_first_examples(model):
    verification = mmzoo.verify(model, limit=6, progress=False)
    assert verification.evaluations[0].measured == 6
    assert "measured only on the first 6: not a full verification" in str(verification)


def test_a_claim_that_cannot_be_measured(model):
    def unknown(record):
        record["scores"] = {"acuracy": record["scores"]["accuracy"]}

    change(model, unknown)
    assert "did you mean 'accuracy'" in mmzoo.verify(model, progress=False).evaluations[0].reason


def test_a_control_without_a_name_does_not_hide_the_claim(model):
    def hide(claim):
        claim["controls"] = {"": dict(claim["scores"])}
        claim["scores"] = {"accuracy": {"value": 0.99, "low": 0.98, "high": 1.0}}

    change(model, hide)
    (check,) = mmzoo.verify(model, progress=False).evaluations
    said = "unknown control ''; use one of: shuffled, blanked, missing, or shuffled:MODALITY"
    assert (check.reproduced, check.reason) == (False, said)


@pytest.mark.parametrize("name", ["blank", "batch_size", "device", "outputs", "self", "task"])
def test_a_record_does_not_decide_how_it_is_verified(model, name):
    change(model, lambda claim: claim.update(options={name: True}))
    assert mmzoo.verify(model, progress=False).reproduced


def test_a_generating_model_with_its_options(tmp_path, pets):
    mmzoo.build(tiny("cnn-prefix-gpt"), seed=0).save(tmp_path / "m")
    for beams in (1, 2):
        mmzoo.evaluate(
            tmp_path / "m", dataset=Sample(4), controls=(), metrics=["bleu-1"], progress=False, num_beams=beams, max_new_tokens=3
        )
    verification = mmzoo.verify(tmp_path / "m", dataset=Sample(4), progress=False)
    assert [check.reproduced for check in verification.evaluations] == [True, True]
    assert "num_beams=2" in (tmp_path / "m" / "README.md").read_text()


def test_a_repository_at_a_commit(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    repo = f"file://{tmp_path}/zoo/me/m"
    commit = mmzoo.push(measured, repo).commit
    verification = mmzoo.verify(repo, revision=commit, progress=False)
    assert (verification.reproduced, verification.commit) == (True, commit)
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
    change(model, lambda record: record["scores"]["accuracy"].update(value=0.99, low=0.98, high=1.0))
    assert run("verify", model, code=1).stdout.endswith("\nnot reproduced\n")
    data = json.loads(run("verify", model, "--json", code=1).stdout)
    assert [check["reproduced"] for check in data["evaluations"][0]["checks"]] == [False, True, True]
    assert "no such folder" in run("verify", tmp_path / "nothing", code=2).stderr
    assert "no revision" in run("verify", model, "--revision", "v1", code=2).stderr
    assert "name it with --dataset" in run("verify", model, "--data", "limit=2", code=2).stderr


@pytest.mark.parametrize("name", ["folder:/etc", "file:///etc/passwd", "C:/Users", "s3://a/b"])
def test_a_record_names_no_data_set_by_a_scheme_or_a_drive(name):
    with pytest.raises(DataError, match="file, folder or object of the model's author"):
        provenance.reopen({"dataset": name})
