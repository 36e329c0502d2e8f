"""Test `classify` on several targets of an example: votes, alternatives, labels that apply together; and answers that are no
label."""

import json
import math
from collections import Counter

import command_line
import pytest
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from torch.nn import functional as F

import mmzoo
from mmzoo.errors import DataError
from mmzoo.interfaces import CAUSAL, Example, FeatureSpec, LanguageSpec, Prediction, TextContext
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import tiny
from mmzoo_transformers.bytes import byte_tokenizer

DIM = 6
COLOURS = ("red", "green", "blue")
TEXT = TextContext(byte_tokenizer(), CAUSAL, None, {"image": 0})


class Given:
    def __init__(self, count):
        self.pooled = torch.randn(count, DIM, generator=torch.Generator().manual_seed(count)).requires_grad_()


def examples(*targets):
    return [Example(str(i), f"{i}.png", "what", tuple(own)) for i, own in enumerate(targets)]


def learn(targets, name="classify", **options):
    task = resolve("task", PartConfig(use=name, **options))
    learned = task.cls.learn(task.options, examples(*targets))
    again = resolve("task", PartConfig(use=name, **{**options, **learned}))
    assert not again.cls.learn(again.options, examples(*targets)), "it is learned once"
    return learned


def make(name="classify", **options):
    task = resolve("task", PartConfig(use=name, **options))
    torch.manual_seed(0)
    return task.cls(task.options, LanguageSpec(CAUSAL, DIM, 260, None, True, 0), {"image": FeatureSpec(4, 5, 3)}).eval()


def loss_of(task, *targets):
    """Return the loss and its count, and the task's logarithms of probabilities [batch, labels]."""
    outputs = Given(len(targets))
    batch = task.collate(examples(*targets), TEXT, training=True)
    ((total, count),) = task.loss(outputs, batch).values()
    total.backward()
    assert torch.isfinite(outputs.pooled.grad).all()
    return total, count, task.head(outputs.pooled).log_softmax(-1)


# What several targets are

VQA = [["yes"] * 7 + ["no"] * 3, ["no"] * 9 + ["nope"], ["red", "red", "crimson", *["pink"] * 7], ["yes"] * 10]
WORKERS = [["cat", "cat", "dog"], ["dog", "cat", "dog"], ["dog"] * 3]
COCO = [["person", "car"], ["dog"], ["person", "dog"], ["car", "dog", "bus"]]
INSTANCES = [["person", "person", "car"], ["dog", "person", "dog", "dog"], ["car", "car"], ["bus"] * 5 + ["car"], ["dog", "car"]]
ATTRIBUTES = [["red", "round"], ["blue", "square"], ["red", "square"], ["blue", "round"]]
PHRASES = [["yes", "yes, it is"], ["no"], ["no", "not really"], ["yes"]]


@pytest.mark.parametrize(
    ("targets", "kind", "labels"),
    [
        (VQA, "vote", ["no", "pink", "yes"]),
        (WORKERS, "vote", ["cat", "dog"]),
        ([*VQA, ["yes"]], "vote", ["no", "pink", "yes"]),
        (PHRASES, "any", ["no", "yes"]),
    ],
    ids=["ten answers", "three workers", "one answer too", "phrases"],
)
def test_the_kind_of_alternatives_is_learned(targets, kind, labels):
    assert learn(targets) == {"labels": labels, "alternatives": kind}
    assert learn(targets, labels=labels) == {"alternatives": kind}
    assert kind in make(labels=labels, alternatives=kind).shape


@pytest.mark.parametrize(
    "targets", [COCO, INSTANCES, ATTRIBUTES, [["a", "b"], ["b", "a"]]], ids=["labels", "instances", "attributes", "two orders"]
)
def test_labels_that_apply_together_are_not_trained_as_one(targets):
    with pytest.raises(DataError, match="such as '.*multi-label.*task.alternatives to vote.* to any"):
        learn(targets)
    with pytest.raises(DataError, match="multi-label"):
        learn(targets, labels=sorted({label for own in targets for label in own}))
    for kind in ("vote", "any"):
        assert learn(targets, alternatives=kind) == {"labels": sorted({Counter(own).most_common(1)[0][0] for own in targets})}
    assert "bus" not in learn([["a"], ["b"]])["labels"]
    assert learn(targets, "multi-label") == {"labels": sorted({label for own in targets for label in own})}


def test_one_target_an_example_is_as_before():
    assert learn([["a"], ["b"], ["a", "a"]]) == {"labels": ["a", "b"]}


def test_top_answers_are_the_most_frequent_of_all():
    assert learn(VQA, top_answers=3) == {"labels": ["no", "pink", "yes"], "alternatives": "vote"}
    assert learn([["b"], ["a"], ["c"], ["c"]], top_answers=2) == {"labels": ["a", "c"]}  # ties by name
    assert learn([["b"], ["a"]], top_answers=9) == {"labels": ["a", "b"]}
    assert learn([[str(i)] for i in range(300)], top_answers=5)["labels"] == ["0", "1", "10", "100", "101"]


def test_balanced_weights_count_votes():
    learned = learn(WORKERS, class_weights="balanced")
    cat, dog = 2 / 3 + 1 / 3, 1 / 3 + 2 / 3 + 1
    assert learned["label_weights"] == pytest.approx([1.5 / cat, 1.5 / dog])


# The loss


def test_votes_are_a_soft_target():
    task = make(labels=["no", "pink", "yes"], alternatives="vote")
    total, count, logs = loss_of(task, *VQA)
    soft = torch.tensor([[0.3, 0, 0.7], [1, 0, 0], [0, 1, 0], [0, 0, 1]])  # nope, red and crimson are no labels
    torch.testing.assert_close(total, -(soft * logs).sum())
    torch.testing.assert_close(total, F.cross_entropy(logs, soft, reduction="sum"))
    assert count == 4


def test_any_alternative_is_right():
    task = make(labels=["a", "b", "c"], alternatives="any")
    total, count, logs = loss_of(task, ["b", "a"], ["c"], ["c", "x", "b", "b"])
    p = logs.exp()
    torch.testing.assert_close(total, -(p[0, :2].sum().log() + logs[1, 2] + p[2, 1:].sum().log()))
    assert count == 3


@pytest.mark.parametrize("kind", ["vote", "any"])
def test_options_of_the_loss_hold_for_alternatives(kind):
    options = {"label_smoothing": 0.3, "focal_gamma": 2.0, "label_weights": [0.5, 1.0, 4.0]}
    task = make(labels=["a", "b", "c"], alternatives=kind, **options)
    total, _, logs = loss_of(task, ["a", "a", "b"], ["c"])
    p, w = logs.exp(), torch.tensor(options["label_weights"])

    def term(row, probability, weight):
        return (0.7 * -weight * math.log(probability) - 0.3 * (logs[row] * w).mean()) * (1 - probability) ** 2

    if kind == "vote":
        first = 2 / 3 * term(0, p[0, 0].item(), 0.5) + 1 / 3 * term(0, p[0, 1].item(), 1.0)
    else:
        first = term(0, (p[0, 0] + p[0, 1]).item(), 0.5)
    torch.testing.assert_close(total, first + term(1, p[1, 2].item(), 4.0))


def test_an_example_without_a_label_is_left_out_of_the_loss():
    task = make(labels=["a", "b"], alternatives="vote")
    total, count, logs = loss_of(task, ["x", "y"], ["b", "x"], ["x"])
    torch.testing.assert_close(total, -logs[1, 1])
    assert count == 1
    total, count, _ = loss_of(task, ["x"], ["y", "z"])
    assert (total, count) == (0, 0)


def test_the_scores_of_many_labels_are_those_of_the_best():
    labels = [f"{i:04}" for i in range(1200)]
    task, outputs = make(labels=labels), Given(2)
    for prediction, row in zip(task.predict(outputs, {}), task.head(outputs.pooled).softmax(-1), strict=True):
        best = row.argsort(descending=True)[:100]
        assert list(prediction.scores) == [labels[i] for i in best]
        assert prediction.label == labels[best[0]]
    assert task.metrics == ("accuracy",)
    assert make(labels=["a", "b"]).metrics == ("accuracy", "precision", "recall", "f1")
    assert make(labels=["a", "b"], alternatives="vote").metrics == ("accuracy", "vqa-accuracy", "precision", "recall", "f1")


# Training and evaluation


@pytest.fixture
def folder(tmp_path):
    for colour in COLOURS:
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def write(folder, name, *answers):
    """Write a split with the answers about red, green, blue, red, ... pictures."""
    rows = [{"image": f"{COLOURS[i % 3]}.png", "question": "what colour?", "answers": own} for i, own in enumerate(answers)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


TEN = [["red"] * 6 + ["crimson"] * 4, ["green"] * 10, ["blue"] * 8 + ["navy", "teal"]]
OPTIONS = {"max_steps": 60, "batch_size": 6, "precision": "fp32", "learning_rate": 1e-2}


def test_ten_answers_a_question(folder):
    write(folder, "train", *TEN * 4)
    write(folder, "test", *TEN, ["ruby"] * 10, ["red"] * 2 + ["lime"] * 8, ["teal", "blue", *["sky"] * 8])
    run = mmzoo.train(tiny("cnn-product-lstm"), dataset=str(folder), output=folder / "m", progress=False, training=OPTIONS)
    assert run.outside_labels == {}
    task = run.model.recipe.task
    assert (task.options["labels"], task.options["alternatives"]) == (["blue", "green", "red"], "vote")
    evaluation = mmzoo.evaluate(folder / "m", dataset=str(folder), split="test", progress=False)
    assert [prediction.label for prediction in evaluation.predictions] == ["red", "green", "blue"] * 2
    assert evaluation.scores["accuracy"].value == pytest.approx(4 / 6)
    # One of ten answers is left out in turn: of 1 that agrees, nine tenths of a third are left.
    assert evaluation.scores["vqa-accuracy"].value == pytest.approx((3 + 0.3) / 6)
    assert evaluation.outside_labels == {"classify": ["ruby"]}
    assert "1 example has a target outside the labels of 'classify', such as 'ruby': counted as wrong" in str(evaluation)
    record = json.loads((folder / "m" / "run.json").read_text())
    assert record["evaluations"][0]["outside_labels"] == {"classify": 1}
    assert record["training"]["outside_labels"] == {}


def test_answers_outside_the_labels_are_counted_and_said(folder):
    write(folder, "train", *TEN * 2, ["white"], ["black"])
    write(folder, "test", *TEN, ["white"])
    recipe = tiny("cnn-product-lstm", training={**OPTIONS, "max_steps": 2}, task={"use": "classify", "top_answers": 3})
    (folder / "r.json").write_text(json.dumps(recipe.to_dict()))
    done = command_line.run("train", folder / "r.json", "--dataset", folder, "--output", folder / "m")
    assert (
        "note: 2 examples have a target outside the labels of 'classify', such as 'white', 'black'; the loss leaves"
        in done.stderr
    )
    assert json.loads((folder / "m" / "run.json").read_text())["training"]["outside_labels"] == {"classify": 2}
    done = command_line.run("evaluate", folder / "m", "--dataset", folder)
    assert "1 example has a target outside the labels of 'classify', such as 'white': counted as wrong" in done.stdout


def test_no_answer_inside_the_labels(folder):
    write(folder, "train", ["red"], ["green"], ["blue"])
    with pytest.raises(
        DataError, match="3 examples have a target outside the labels of 'classify', such as 'red'.*nothing to train on"
    ):
        mmzoo.train(
            tiny("cnn-product-lstm"),
            dataset=str(folder),
            output=folder / "m",
            progress=False,
            task={"use": "classify", "labels": ["Red", "Green"]},
        )


def test_multi_label_counts_what_it_cannot_predict_as_missed(folder):
    write(folder, "train", ["red", "warm"], ["green"], ["blue", "cold"])
    write(folder, "test", ["red", "warm"], ["green"], ["blue", "cold", "dark"])
    recipe = tiny("cnn-product-lstm", task="multi-label")
    mmzoo.train(recipe, dataset=str(folder), output=folder / "m", progress=False, training={**OPTIONS, "max_steps": 100})
    evaluation = mmzoo.evaluate(folder / "m", dataset=str(folder), split="test", progress=False)
    assert evaluation.scores["subset-accuracy"].value == pytest.approx(2 / 3)
    assert evaluation.scores["multi-label-f1"].value == pytest.approx(5 / 6)
    assert evaluation.outside_labels == {"multi-label": ["dark"]}


def test_scores_by_class_with_an_answer_that_was_never_seen():
    truth, predicted = ["a", "b", "c", "a"], ["a", "b", "a", "b"]
    wanted = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), wanted, strict=False):
        metric = resolve("metric", PartConfig(use=name))
        rows = metric.cls(metric.options).rows([Prediction(label=label) for label in predicted], [[label] for label in truth])
        assert metric.cls(metric.options).score(rows.sum(0)) == pytest.approx(value)


def test_the_most_frequent_answer_is_the_one_that_was_missed():
    metric = resolve("metric", PartConfig(use="recall", average="weighted")).cls
    rows = metric(metric.Options()).rows([Prediction(label="x"), Prediction(label="b")], [["c", "a", "a"], ["a", "b", "a"]])
    assert rows.reshape(2, 3, 3)[:, :, 2].tolist() == [[1, 0, 0], [0, 1, 0]]  # of a, b, x
