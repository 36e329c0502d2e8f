"""Evaluation of several encoders and tasks: scores by task, controls of each modality, the record, the card and its check."""

import json
import shutil

import pytest
from test_verify import change

import mmzoo
from mmzoo.errors import BadRecipe, DataError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny

TONES = ("low", "middle", "high")
ACCURACIES = ["colour/accuracy", "tone/accuracy"]


class Pairs(mmzoo.Dataset):
    """Every colour with every tone; the first pair has no target of the tone."""

    def __init__(self):
        super().__init__(None)

    def splits(self):
        return ["train", "test"]

    def load(self, split):
        sources = Sample(3).load(split)
        examples = []
        for i, seen in enumerate(sources):
            for j, heard in enumerate(sources):
                targets = {"colour": seen.targets, "tone": (TONES[j],) if examples else ()}
                examples.append(Example(f"{i}{j}", seen.image, "what is it", targets, audio=heard.audio))
        return examples


def recipe(encoders):
    tasks = {"colour": {"use": "classify"}, "tone": {"use": "classify"}}
    parts = {"encoders": encoders, "fusion": "late-concat", "language_model": "lstm", "tasks": tasks}
    return tiny(mmzoo.Recipe.of(parts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "m"
    options = {"max_steps": 80, "batch_size": 9, "learning_rate": 1e-2, "modality_dropout": 0.2}
    mmzoo.train(
        recipe({"image": "cnn", "audio": "log-mel-gru"}), dataset=Pairs(), output=folder, progress=False, training=options
    )
    return folder


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "m")


def measure(model, **more):
    return mmzoo.evaluate(model, dataset=Pairs(), progress=False, **more)


def shares(predictions, task):
    """The share of right answers, by hand."""
    examples = [(p[task].label, e.targets[task]) for p, e in zip(predictions, Pairs().load("test"), strict=True)]
    right = [label in targets for label, targets in examples if targets]
    return sum(right) / len(right)


@pytest.mark.slow
def test_a_task_depends_on_its_modality_only(model):
    evaluation = measure(model)
    metrics = ["accuracy", "precision", "recall", "f1"]
    assert list(evaluation.scores) == [f"{task}/{metric}" for task in ("colour", "tone") for metric in metrics]
    single = [f"{control}:{modality}" for modality in ("image", "audio") for control in ("shuffled", "blanked")]
    assert list(evaluation.controls) == ["shuffled", "blanked", *single]
    assert evaluation.modalities == ("image", "audio")
    found = {name: [own[metric].value for metric in ACCURACIES] for name, own in evaluation.controls.items()}
    assert [evaluation.scores[metric].value for metric in ACCURACIES] == [1, 1]
    # Three distinct inputs in a cycle: every one is wrong.
    assert found["shuffled"] == [0, 0]
    assert (found["shuffled:image"], found["shuffled:audio"]) == ([0, 1], [1, 0])
    assert found["blanked:image"][0] == found["blanked"][0] == pytest.approx(1 / 3)
    assert found["blanked:audio"][1] <= 0.5 < found["blanked:audio"][0]
    assert not evaluation.ignores_images
    assert len(evaluation.predictions) == evaluation.examples == 9


def test_an_input_that_is_missing(model):
    evaluation = measure(model, metrics=["accuracy"], controls=["missing:audio", "missing:image", "shuffled:text"])
    loaded, examples = mmzoo.load(model), Pairs().load("test")
    for modality in ("audio", "image"):
        predictions = loaded.predict_examples([example.with_inputs(modality, []) for example in examples])
        scores = evaluation.controls[f"missing:{modality}"]
        assert {name: score.value for name, score in scores.items()} == {
            f"{task}/accuracy": pytest.approx(shares(predictions, task)) for task in ("colour", "tone")
        }
    assert evaluation.controls["missing:audio"]["colour/accuracy"].value == 1
    assert evaluation.controls["missing:audio"]["tone/accuracy"].value < 0.7
    assert {name: score.value for name, score in evaluation.controls["shuffled:text"].items()} == dict.fromkeys(ACCURACIES, 1)


def test_the_result_is_recorded_shown_and_verified(model):
    controls = ["shuffled", "blanked", "shuffled:image", "shuffled:audio", "missing:audio"]
    evaluation = measure(model, metrics=["accuracy"], controls=controls)
    (record,) = json.loads((model / "run.json").read_text())["evaluations"]
    assert record["scores"] == {name: score.to_dict() for name, score in evaluation.scores.items()}
    assert list(record["controls"]) == controls
    assert {row["text"] for row in record["samples"]} == {"colour: what is it", "tone: what is it"}
    card = (model / "README.md").read_text()
    titles = ["images and audio shuffled", "images and audio blanked", "images shuffled", "audio shuffled", "audio missing"]
    for text in (*titles, *ACCURACIES, *map(str, evaluation.scores.values())):
        assert text in card
        assert text in str(evaluation)
    verification = mmzoo.verify(model, dataset=Pairs(), progress=False)
    assert verification.reproduced, str(verification)
    checked = [(check.metric, check.control) for check in verification.evaluations[0].checks]
    assert checked == [(metric, control) for control in ["", *controls] for metric in ACCURACIES]
    assert "tone/accuracy, audio missing" in str(verification)


def test_a_false_claim_of_one_task_under_one_control_is_found(model):
    measure(model, metrics=["accuracy"], controls=["missing:audio"])
    claim = {"value": 0.99, "low": 0.98, "high": 1.0}
    change(model, lambda record: record["controls"]["missing:audio"].update({"tone/accuracy": claim}))
    (check,) = mmzoo.verify(model, dataset=Pairs(), progress=False).evaluations
    assert [(c.metric, c.control) for c in check.checks if not c.reproduced] == [("tone/accuracy", "missing:audio")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ["pitch/accuracy"]}, UnknownName, "no task 'pitch'; its tasks are colour, tone"),
        ({"metrics": ["tone/acuracy"]}, UnknownName, "accuracy"),
        ({"controls": ["shuffled:video"]}, DataError, "the modalities of this model are image, audio, text"),
        ({"num_beams": 2}, BadRecipe, "num_beams: no task of this model has such an option"),
        ({"task": "tone"}, BadRecipe, "metrics=\\['tone/accuracy'\\]"),
    ],
)
def test_bad_input(model, options, error, message):
    with pytest.raises(error, match=message):
        measure(model, **options)


def test_one_metric_of_one_task(model):
    assert list(measure(model, metrics=["tone/f1"], controls=()).scores) == ["tone/f1"]
    assert list(measure(model, metrics=["f1"], controls=()).scores) == ["colour/f1", "tone/f1"]


def test_two_encoders_of_one_modality(tmp_path):
    """Their input is one, so a control of it is a control of all."""
    tasks = {"colour": {"labels": list(Sample.COLOURS)}, "tone": {"labels": list(TONES)}}
    built = mmzoo.build(recipe({"one": "cnn", "two": "cnn"}), seed=0, tasks=tasks)
    built.save(tmp_path / "m")
    evaluation = measure(tmp_path / "m", metrics=["accuracy"])
    assert list(evaluation.controls) == ["shuffled", "blanked"]
    blanked = built.predict_examples(Pairs().load("test"), blank=["image"])
    assert evaluation.controls["blanked"]["tone/accuracy"].value == shares(blanked, "tone")
    assert list(measure(tmp_path / "m", controls=["missing"]).controls) == ["missing"]
    assert mmzoo.verify(tmp_path / "m", dataset=Pairs(), progress=False).reproduced


class Tones(Pairs):
    """Clips and their tones alone, which are not under the key of a task."""

    def load(self, split):
        heard = Sample(3).load(split)
        return [Example(f"{i}", heard[i].image, "what is it", (TONES[i],), audio=heard[i].audio) for i in range(3)]


def test_a_data_set_for_one_task(model):
    """As a model learns from a data set for each task, it is measured on one."""
    evaluation = mmzoo.evaluate(
        model, dataset={"tone": Tones()}, metrics=["accuracy"], controls=["shuffled:audio"], progress=False
    )
    assert {name: score.value for name, score in evaluation.scores.items()} == {"tone/accuracy": 1}
    (record,) = json.loads((model / "run.json").read_text())["evaluations"]
    assert record["task"] == "tone"
    assert mmzoo.verify(model, dataset=Tones(), progress=False).reproduced
    with pytest.raises(UnknownName, match="no task 'tune'"):
        mmzoo.evaluate(model, dataset={"tune": Tones()}, progress=False)
    with pytest.raises(DataError, match="one data set"):
        mmzoo.evaluate(model, dataset={"tone": Tones(), "colour": Tones()}, progress=False)
