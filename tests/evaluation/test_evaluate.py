"""Test evaluation: intervals, controls, and what is recorded."""

import json

import numpy as np
import pytest
from PIL import Image

import mmzoo
from mmzoo.errors import BadRecipe, CheckpointError, DataError, PluginBroken, UnknownName
from mmzoo.evaluation.controls import AS_IS, make_conditions
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.scoring import make_metrics, score_examples
from mmzoo.interfaces import Example
from mmzoo.registry.entries import Registry
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "m"
    options = {"max_steps": 40, "batch_size": 8, "learning_rate": 1e-2}
    mmzoo.train(tiny("cnn-product-lstm"), dataset=Sample(), output=folder, progress=False, training=options)
    return folder


def measure(model, dataset=None, **more):
    return mmzoo.evaluate(model, dataset=dataset or Sample(), progress=False, **more)


def test_a_model_that_uses_its_images_scores_above_its_controls(trained):
    evaluation = measure(trained)
    assert evaluation.scores["accuracy"].value == 1.0
    assert evaluation.controls["shuffled"]["accuracy"].value < 0.7
    assert evaluation.controls["blanked"]["accuracy"].value < 0.7
    assert not evaluation.ignores_images
    assert list(evaluation.scores) == ["accuracy", "precision", "recall", "f1"]
    assert "images shuffled" in str(evaluation)


def test_a_model_that_ignores_its_images_is_recognised(tmp_path):
    options = {"max_steps": 20, "batch_size": 8, "learning_rate": 1e-2, "blank_images": True}
    run = mmzoo.train(tiny("cnn-product-lstm"), dataset=Sample(), output=tmp_path / "m", progress=False, training=options)
    assert measure(run.model).ignores_images


def test_the_same_seed_gives_the_same_numbers(trained):
    a, b = (measure(trained, seed=1).to_dict() for _ in range(2))
    assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_scoring_alone_gives_the_same_scores_and_records_nothing(trained):
    model, examples = mmzoo.load(trained), Sample().load("test")
    recorded = len(model.provenance.run.get("evaluations", []))
    conditions = make_conditions(examples, ["shuffled"], seed=0, modalities=["image"])
    batches = []
    results = score_examples(
        model, examples, make_metrics(["f1"]), conditions, batch_size=7, advance=lambda count, name: batches.append((name, count))
    )
    assert len(model.provenance.run.get("evaluations", [])) == recorded
    assert sum(count for name, count in batches if name == "shuffled") == len(examples)
    evaluation = measure(model, metrics=["f1"], controls=["shuffled"])
    assert results[AS_IS].scores == evaluation.scores
    assert results["shuffled"].scores == evaluation.controls["shuffled"]
    with pytest.raises(DataError, match="no examples"):
        score_examples(model, [], {}, conditions)


def test_a_result_is_recorded_in_the_folder_and_its_card(trained):
    evaluation = measure(trained)
    record = json.loads((trained / "run.json").read_text())
    assert record["evaluations"][-1]["scores"]["accuracy"] == evaluation.scores["accuracy"].to_dict()
    assert record["training"]["fingerprint"]
    card = (trained / "README.md").read_text()
    assert str(evaluation.scores["accuracy"]) in card
    assert "model-index" in card
    mmzoo.load(trained)
    assert len(json.loads((trained / "run.json").read_text())["evaluations"]) == 1


def test_intervals_hold_the_score(trained):
    for score in measure(trained, controls=("shuffled",)).scores.values():
        assert 0 <= score.low <= score.value <= score.high <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "dev"}, DataError, "no split 'dev'"),
        ({"metrics": ["acuracy"]}, UnknownName, "accuracy"),
        ({"controls": ["inverted"]}, DataError, "inverted"),
        ({"dataset": "easy-vqua"}, UnknownName, "easy-vqa"),
        ({"dataset": "./nowhere.csv"}, DataError, "no such file"),
        ({"dataset": "files:"}, BadRecipe, "files"),
    ],
)
def test_bad_input(trained, options, error, message):
    with pytest.raises(error, match=message):
        measure(trained, **options)


def test_an_answer_outside_the_label_set(trained):
    class Odd(Sample):
        COLOURS = ("red", "gold")

    odd = Odd().load("test")
    evaluation = measure(trained, Odd())
    wrong = sum(example.targets == ("gold",) for example in odd)
    assert evaluation.scores["accuracy"].value <= 1 - wrong / len(odd)
    assert evaluation.outside_labels == {"classify": ["gold"] * wrong}
    assert evaluation.to_dict()["outside_labels"] == {"classify": wrong}
    assert f"{wrong} examples have a target outside the labels of 'classify', such as 'gold': counted as wrong" in str(evaluation)


def test_scores_are_returned_even_if_they_cannot_be_recorded(trained, monkeypatch):
    def refuse(*_):
        raise CheckpointError("read-only")

    monkeypatch.setattr("mmzoo.evaluation.run.update_run", refuse)
    evaluation = measure(trained)
    assert evaluation.scores["accuracy"].value == 1.0
    assert evaluation.unrecorded == "read-only"


def test_a_result_of_a_model_in_memory_cannot_be_recorded(trained):
    with pytest.raises(DataError, match="checkpoint folder"):
        measure(mmzoo.load(trained), record=True)


class Greys(mmzoo.Dataset):
    def __init__(self):
        super().__init__(None)

    def splits(self):
        return ["train", "test"]

    def load(self, split):
        return [Example(str(i), Image.new("RGB", (32, 32), (15 * i,) * 3), "how bright", (str(i / 4),)) for i in range(16)]


def test_a_regression_task_is_measured_and_a_smaller_error_is_better(tmp_path):
    options = {"max_steps": 60, "batch_size": 16, "learning_rate": 1e-2}
    recipe = tiny("cnn-product-lstm", task="regress", fusion="late-concat")
    run = mmzoo.train(recipe, dataset=Greys(), output=tmp_path / "m", progress=False, training=options)
    measured = measure(run.output, Greys())
    assert measured.scores["mae"].value < 0.5 < measured.controls["shuffled"]["mae"].value
    assert not measured.ignores_images
    assert measured.predictions[0].text == repr(measured.predictions[0].value)
    options["blank_images"] = True
    blind = mmzoo.train(recipe, dataset=Greys(), output=tmp_path / "blind", progress=False, training=options)
    assert measure(blind.model, Greys()).ignores_images


class OfNumbers(Metric):
    def rows(self, predictions, references):
        return np.array([[float(prediction.text), 1.0] for prediction in predictions])

    def score(self, totals):
        return totals[..., 0] / totals[..., 1]


class Breaks(Greys):
    def load(self, split):
        raise OSError("the disk is gone")


def test_an_error_of_a_data_set_or_metric_is_one_line(trained, monkeypatch):
    with pytest.raises(PluginBroken, match="^data set 'Breaks' cannot be loaded: OSError: the disk is gone$"):
        measure(trained, Breaks())
    registry = Registry()
    registry.add_all(plugin_manager().registry.entries(), plugin="mmzoo", version=mmzoo.__version__)
    about = {"summary": "no numbers", "license": "MIT", "source": "here"}
    registry.add_all([mmzoo.Entry("metric", "odd", target="test_evaluate:OfNumbers", **about)], plugin="mmzoo-odd", version="1")
    monkeypatch.setattr(plugin_manager(), "registry", registry)
    with pytest.raises(PluginBroken, match="^metric 'odd' failed on the predictions: ValueError: could not convert"):
        measure(trained, metrics=["odd"])
