"""Test the tasks on outputs that are given: losses are those of the formulas and of other libraries, what is learned is learned
once, wrong data are refused."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import two_processes
from open_clip.loss import SigLipLoss
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import CAUSAL, SEQ2SEQ, Example, Features, FeatureSpec, LanguageSpec, TextContext
from mmzoo.registry.manager import plugin_manager
from mmzoo_tasks import chunks
from mmzoo_tasks.contrastive import Contrastive
from mmzoo_transformers.bytes import byte_tokenizer

DIM, POOLED = 6, 5
ENCODERS = {"photo": FeatureSpec(4, POOLED, 3), "sound": FeatureSpec(4, POOLED + 2, 3, "audio")}


@dataclass
class Given:
    """Outputs of `count` examples, all random."""

    count: int
    text: TextContext = field(default_factory=lambda: TextContext(byte_tokenizer(), CAUSAL, None, {"image": 0, "audio": 3}))
    language_model: Any = None
    asked: list = field(default_factory=list)

    def __post_init__(self):
        random = torch.Generator().manual_seed(self.count)
        draw = lambda *size: torch.randn(*size, generator=random).requires_grad_()  # noqa: E731
        self.pooled, self.text_only = draw(self.count, DIM), draw(self.count, DIM)
        self.features = {
            name: Features(draw(self.count, 3, spec.dim), draw(self.count, spec.pooled_dim)) for name, spec in ENCODERS.items()
        }
        self.hidden = draw(self.count, 40, DIM)

    def predicting(self, rows, columns):
        return self.hidden[rows, columns - 1]

    def logits(self, rows, columns):
        self.asked.append("logits")
        return self.language_model.logits(self.predicting(rows, columns))

    def write(self, **options):
        self.asked.append(options)
        end = self.text.tokenizer.eos_token_id
        rows = self.text.tokenizer(["red", "no"], add_special_tokens=False)["input_ids"]
        return torch.tensor([[*row, end, *[0] * (3 - len(row))] for row in rows])

    def with_text(self, batch):
        self.asked.append(batch)
        return self


class Writer(nn.Module):
    """A language model that is only an output layer."""

    def __init__(self, tokenizer, trained=True):
        super().__init__()
        self.spec = LanguageSpec(CAUSAL, DIM, len(tokenizer), None, True, 0)
        self.end_ids = [tokenizer.eos_token_id]
        self.logits = nn.Linear(DIM, len(tokenizer)).requires_grad_(trained)

    def blocks(self):
        return ()


def make(name, architecture=CAUSAL, **options):
    cls = plugin_manager().registry.get("task", name).load()
    torch.manual_seed(0)
    return cls(cls.Options(**options), LanguageSpec(architecture, DIM, 260, None, True, 0), ENCODERS).eval()


def learn(name, examples, **options):
    cls = plugin_manager().registry.get("task", name).load()
    learned = cls.learn(cls.Options(**options), examples)
    again = cls.learn(cls.Options(**{**options, **learned}), examples)
    assert not again, "it is learned once"
    return learned


def examples(*targets):
    return [
        Example(str(i), f"{i}.png", "what", (own,) if isinstance(own, str) else tuple(own), audio=f"{i}.wav")
        for i, own in enumerate(targets)
    ]


def term(task, outputs, batch):
    ((name, (total, count)),) = task.loss(outputs, batch).items()
    assert total.ndim == count.ndim == 0
    return name, total, count


# Classes


def test_balanced_weights_are_those_of_sklearn():
    targets = ["a"] * 5 + ["b"] * 2 + ["c"]
    learned = learn("classify", examples(*targets), class_weights="balanced")
    assert learned["labels"] == ["a", "b", "c"]
    assert learned["label_weights"] == pytest.approx(
        compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=targets)
    )
    given = learn("classify", examples(*targets), class_weights="balanced", labels=["c", "d", "b", "a"])
    assert given == {"label_weights": pytest.approx([8 / 3, 1, 8 / 6, 8 / 15])}  # none is "d"
    assert learn("classify", examples(*targets)) == {"labels": ["a", "b", "c"]}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_the_focal_loss_is_that_of_the_paper(weights, gamma):
    options = {"class_weights": "balanced", "label_weights": weights} if weights else {}
    task, outputs = make("classify", labels=["a", "b", "c"], focal_gamma=gamma, **options), Given(4)
    batch = task.collate(examples("a", "c", "b", "c"), outputs.text, training=True)
    assert batch["labels"].tolist() == [0, 2, 1, 2]
    name, total, count = term(task, outputs, batch)
    right = task.head(outputs.pooled).softmax(-1)[range(4), batch["labels"]]
    alpha = torch.tensor(weights or [1.0] * 3)[batch["labels"]]
    assert (name, count) == ("cross-entropy", 4)
    torch.testing.assert_close(total, -(alpha * (1 - right) ** gamma * right.log()).sum())
    total.backward()
    assert torch.isfinite(outputs.pooled.grad).all()


def test_labels_are_smoothed_and_what_is_no_label_does_not_count():
    task, outputs = make("classify", labels=["a", "b", "c"], label_smoothing=0.3, focal_gamma=0.0), Given(3)
    batch = {"labels": torch.tensor([0, -100, 2])}
    _, total, count = term(task, outputs, batch)
    logs = task.head(outputs.pooled).log_softmax(-1)
    wanted = -sum(0.7 * logs[i, label] + 0.3 * logs[i].mean() for i, label in [(0, 0), (2, 2)])
    torch.testing.assert_close(total, wanted)
    assert count == 2


def test_classes_are_predicted():
    task, outputs = make("classify", labels=["a", "b", "c"]), Given(3)
    for row, prediction in zip(task.head(outputs.pooled).softmax(-1).tolist(), task.predict(outputs, {}), strict=True):
        assert prediction.label == "abc"[row.index(max(row))]
        assert list(prediction.scores.values()) == pytest.approx(row)
    with pytest.raises(BadRecipe, match="num_beams"):
        task.predict(outputs, {}, num_beams=2)


DECIMALS = [f"0.{i}" for i in range(31, 61)]


@pytest.mark.parametrize("targets", [DECIMALS, ["0.5", "0.25", "-1"], [str(389 + 7 * i) for i in range(300)], ["1e-3", "2.5"]])
def test_numbers_to_estimate_are_refused_as_classes(targets):
    with pytest.raises(DataError, match="regress"):
        learn("classify", examples(*targets))


@pytest.mark.parametrize(
    "targets",
    [
        [str(i) for i in range(10)],
        [str(year) for year in range(1950, 2025)],
        ["1.5", "2.5"] * 2,
        [*DECIMALS, "many"],
        ["nan", "infinity"],
        [str(i) for i in range(300)] * 2,
    ],
    ids=["digits", "years", "ratings", "words too", "words", "many of each"],
)
def test_numbers_that_are_classes_are_taken(targets):
    assert learn("classify", examples(*targets))["labels"] == sorted(set(targets))


def test_given_weights_count_without_balanced_classes():
    task, outputs = make("classify", labels=["a", "b"], label_weights=[1.0, 3.0]), Given(2)
    logs = task.head(outputs.pooled).log_softmax(-1)
    total = term(task, outputs, {"labels": torch.tensor([0, 1])})[1]
    torch.testing.assert_close(total, -(logs[0, 0] + 3 * logs[1, 1]))


def test_weights_are_one_for_each_label():
    with pytest.raises(ValueError, match="one number for each label"):
        make("classify", labels=["a", "b"], label_weights=[1.0])
    with pytest.raises(ValueError, match="negative"):
        make("classify", labels=["a", "b"], label_weights=[1.0, -1.0])


# Several labels


def test_labels_are_independent():
    data = examples(["a", "b"], [], ["c", "a"])
    learned = learn("multi-label", data)
    assert learned == {"labels": ["a", "b", "c"]}
    task, outputs = make("multi-label", **learned, threshold=0.4), Given(3)
    batch = task.collate(data, outputs.text, training=True)
    assert batch["labels"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    _, total, count = term(task, outputs, batch)
    p = task.head(outputs.pooled).sigmoid()
    wanted = -(batch["labels"] * p.log() + (1 - batch["labels"]) * (1 - p).log())
    torch.testing.assert_close(total / count, wanted.mean())
    assert count == batch["labels"].numel() == 9
    for row, prediction in zip(p.tolist(), task.predict(outputs, {}), strict=True):
        assert prediction.labels == tuple(label for label, score in zip("abc", row, strict=True) if score >= 0.4)
        assert list(prediction.scores.values()) == pytest.approx(row)
        assert prediction.label is None
    assert task.references(data[1]) == []
    odd = examples(["a", "d"])
    assert (task.references(odd[0]), task.outside_labels(odd[0])) == (["a", "d"], ["d"])
    assert task.collate(odd, outputs.text, training=True)["labels"].tolist() == [[1, 0, 0]]
    with pytest.raises(DataError, match="no training example has a label"):
        learn("multi-label", examples([], []))


# Numbers


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_numbers_are_learned_in_their_own_scale(loss):
    data = examples(["10", "-3"], ["20", "-3"], ["60", "-3"])
    learned = learn("regress", data)
    assert learned == {"mean": pytest.approx([30, -3]), "scale": pytest.approx([np.std([10, 20, 60]), 1])}
    task, outputs = make("regress", **learned, loss=loss), Given(3)
    batch = task.collate(data, outputs.text, training=True)
    truth = (torch.tensor([[10, -3], [20, -3], [60, -3.0]]) - torch.tensor(learned["mean"])) / torch.tensor(learned["scale"])
    torch.testing.assert_close(batch["labels"], truth)
    name, total, count = term(task, outputs, batch)
    error = (task.head(outputs.pooled) - truth).abs()
    wanted = {"mse": error**2, "mae": error, "huber": torch.where(error < 1, error**2 / 2, error - 0.5)}[loss]
    torch.testing.assert_close(total, wanted.sum())
    assert (name, count) == (loss, 6)
    missing = {"labels": batch["labels"].clone().index_put_((torch.tensor(1), torch.tensor(0)), torch.tensor(math.nan))}
    _, part, fewer = term(task, outputs, missing)
    torch.testing.assert_close(part, wanted.sum() - wanted[1, 0])
    assert fewer == 5
    part.backward()
    assert torch.isfinite(outputs.pooled.grad).all()
    expected = task.head(outputs.pooled).double() * torch.tensor(learned["scale"]) + torch.tensor(learned["mean"])
    for row, prediction in zip(expected.tolist(), task.predict(outputs, {}), strict=True):
        assert prediction.values == pytest.approx(row)
        assert prediction.value is None


def test_one_number_is_a_value_and_large_ones_stay_precise():
    times = [str(1_700_000_000 + i) for i in range(5)]
    task = make("regress", **learn("regress", examples(*times)))
    labels = task.collate(examples(*times), Given(5).text, training=True)["labels"]
    assert labels.squeeze(1).tolist() == pytest.approx([(i - 2) / np.std(range(5)) for i in range(5)])
    nn.init.zeros_(task.head[-1].weight), nn.init.zeros_(task.head[-1].bias)
    assert task.predict(Given(1), {})[0].value == 1_700_000_002
    constant = learn("regress", examples("0.1", "0.1", "0.1"))
    assert constant["scale"] == [1.0]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["1", "two"], r"example 1: the target 'two' is no number.*classify"),
        (["1", "nan"], "'nan' is not finite"),
        (["1", "-inf"], "'-inf' is not finite"),
        ([["1", "2"], ["1"]], "example 1 has 1 numbers as targets where others have 2"),
        ([[], []], "no training example has a number"),
        (["1e308", "-1e308"], "too large"),
    ],
)
def test_what_is_no_number_is_refused(targets, said):
    with pytest.raises(DataError, match=said):
        learn("regress", examples(*targets))


def test_a_number_that_is_missing_or_no_number_is_refused_by_a_learned_task():
    task = make("regress", mean=[0.0], scale=[1.0])
    for target, said in {"x": "classify", (): "no number", ("1", "2"): "2 numbers"}.items():
        with pytest.raises(DataError, match=said):
            task.references(examples(target)[0])
    for wrong in ({"mean": [0.0]}, {"mean": [0.0], "scale": [1.0, 2.0]}, {"mean": [0.0], "scale": [0.0]}):
        with pytest.raises(ValueError, match="scale"):
            make("regress", **wrong)


# Pairs

CAPTIONS = ["a cat", "a dog", "a bird", "two cats", "no one"]


def logits_of(task, outputs):
    """Return the scaled similarities [inputs, texts] by the formula, without the task's own code."""
    one, other = outputs.features[task.encoder].pooled @ task.input.weight.T, outputs.text_only @ task.text.weight.T
    cosines = one / one.norm(dim=1, keepdim=True) @ (other / other.norm(dim=1, keepdim=True)).T
    return cosines * task.scale.exp(), cosines


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("encoder", [None, "sound"])
def test_the_loss_of_pairs_is_that_of_clip_and_siglip(loss, encoder):
    task, outputs = make("contrastive", dim=7, loss=loss, encoder=encoder), Given(5)
    assert task.encoder == (encoder or "photo")
    batch = task.collate(examples(*CAPTIONS), outputs.text, training=True)
    name, total, count = term(task, outputs, batch)
    logits, cosines = logits_of(task, outputs)
    if loss == "infonce":
        assert task.scale.exp().item() == pytest.approx(1 / 0.07)
        wanted = image_text_contrastive_loss(logits.T)
    else:
        assert (task.scale.exp().item(), task.bias.item()) == pytest.approx((10, -10))
        one = F.normalize(task.input(outputs.features[task.encoder].pooled), dim=-1)
        wanted = SigLipLoss()(one, F.normalize(task.text(outputs.text_only), dim=-1), task.scale.exp(), task.bias)
    torch.testing.assert_close(total / count, wanted)
    assert (name, count, batch["labels"].shape) == (loss, 5, (5,))
    for i, prediction in enumerate(task.predict(outputs, {})):
        assert prediction.score == pytest.approx(cosines[i, i].item(), abs=1e-6)
        assert set(prediction.vectors) == {task.encoder, "text"}
        dot = np.dot(prediction.vectors[task.encoder], prediction.vectors["text"])
        assert dot == pytest.approx(prediction.score, abs=1e-6)


def loss_by_hand(task, outputs, left_out, rows):
    """Return the sum of the losses of ``rows`` without the pairs ``left_out``, one term after another."""
    logits, total = logits_of(task, outputs)[0], 0
    for i in rows:
        others = [j for j in range(len(logits)) if (i, j) not in left_out and (j, i) not in left_out]
        if task.options.loss == "infonce":
            for one in (logits[i], logits[:, i]):
                total = total - (one[i] - torch.stack([one[j] for j in others]).logsumexp(0)) / 2
        else:
            for j in others:
                total = total - F.logsigmoid((1 if i == j else -1) * (logits[i, j] + task.bias))
    return total


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_other_positives_are_no_negatives_and_what_is_no_pair_does_not_count(loss):
    data = examples("a cat", "a dog", "a cat", "a bird", "two cats")
    data[3] = Example("3", "1.png", "", ("a bird",))  # the input of 1
    data[4] = Example("4", None, "", ("two cats",), audio="4.wav")
    task, outputs = make("contrastive", dim=7, loss=loss), Given(5)
    batch = task.collate(data, outputs.text, training=True)
    assert batch["labels"][4] == -100
    _, total, count = term(task, outputs, batch)
    no_pair = {(i, 4) for i in range(4)}
    torch.testing.assert_close(total, loss_by_hand(task, outputs, {(0, 2), (1, 3), *no_pair}, range(4)))
    assert count == 4
    total.backward()
    assert not outputs.text_only.grad[4].any()
    task = make("contrastive", dim=7, loss=loss, repeats="negative")
    torch.testing.assert_close(term(task, outputs, batch)[1], loss_by_hand(task, outputs, no_pair, range(4)))


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_an_input_that_training_leaves_out_is_neither_a_pair_nor_a_negative(loss):
    task, outputs = make("contrastive", dim=7, loss=loss), Given(5)
    outputs.features["photo"].present = torch.tensor([[True], [False], [True], [True], [True]])
    _, total, count = term(task, outputs, task.collate(examples(*CAPTIONS), outputs.text, training=True))
    rows = [0, 2, 3, 4]
    torch.testing.assert_close(total, loss_by_hand(task, outputs, {(i, 1) for i in rows}, rows))
    assert count == 4


def test_the_temperature_stays_below_its_limit():
    task, outputs = make("contrastive", dim=7), Given(5)
    nn.init.constant_(task.scale, 9.0)
    term(task, outputs, task.collate(examples(*CAPTIONS), outputs.text, training=True))
    assert task.scale.exp().item() == pytest.approx(100)


def test_the_text_of_a_pair_is_its_first_target():
    task, text = make("contrastive"), Given(1).text
    with_target = Example("1", "1.png", "what", ("a cat", "cats"))
    decode = lambda example, training: text.tokenizer.decode(  # noqa: E731
        task.collate([example], text, training=training)["ids"][0], skip_special_tokens=True
    )
    assert decode(with_target, True) == decode(with_target, False) == "a cat"
    assert decode(Example("2", "2.png", "what"), False) == "what"
    assert (task.collate([with_target], text, training=True)["ids"] >= 0).all(), "no place for an input"
    for targets in ((), ("",)):
        with pytest.raises(DataError, match="no text"):
            task.collate([Example("3", "3.png", "what", targets)], text, training=True)
    with pytest.raises(BadRecipe, match="no encoder 'x' has an input; these have: photo, sound"):
        make("contrastive", encoder="x")


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    """Over gloo, with 3 and 2 of the pairs, under `DistributedDataParallel`."""
    subprocess.run([sys.executable, two_processes.__file__, str(tmp_path)], check=True, timeout=120)
    found = torch.load(tmp_path / "found")
    for loss in two_processes.LOSSES:
        (total, count), gradients = found[loss]
        model = two_processes.Towers(loss)
        wanted, number = model(*two_processes.whole_batch())
        assert count == number == 4
        torch.testing.assert_close(total, wanted.detach())
        (wanted / number).backward()
        assert gradients.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert parameter.grad.any(), name
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_the_loss_of_pairs_compiles():
    task, outputs = make("contrastive", dim=7), Given(5)
    batch = task.collate(examples(*CAPTIONS), outputs.text, training=True)
    compiled = torch.compile(Contrastive.loss, backend="eager")(task, outputs, batch)
    torch.testing.assert_close(compiled["infonce"][0], task.loss(outputs, batch)["infonce"][0])


# Texts


@pytest.mark.parametrize("trained", [True, False])
def test_the_loss_of_texts_is_that_of_their_tokens(trained):
    outputs = Given(2)
    outputs.language_model = writer = Writer(outputs.text.tokenizer, trained)
    task = make("vqa", template="{text}")
    assert chunks.apply_to(writer) != trained
    batch = task.collate(examples("red", "no"), outputs.text, training=True)
    name, total, count = term(task, outputs, batch)
    rows, columns = (batch["labels"] != -100).nonzero(as_tuple=True)
    wanted = F.cross_entropy(writer.logits(outputs.hidden[rows, columns - 1]), batch["ids"][rows, columns], reduction="sum")
    torch.testing.assert_close(total, wanted)
    assert (name, count) == ("tokens", len(" red") + len(" no") + 2)
    assert outputs.asked == (["logits"] if trained else [])


@torch.no_grad()
@pytest.mark.parametrize("architecture", [CAUSAL, SEQ2SEQ])
def test_a_written_text_has_its_probability(architecture):
    outputs = Given(2, TextContext(byte_tokenizer(architecture), architecture, None, {"image": 0}))
    outputs.language_model = Writer(outputs.text.tokenizer)
    task = make("vqa", architecture, template="{text}", max_new_tokens=9)
    batch = task.collate(examples("red", "no"), outputs.text, training=False)
    predictions = task.predict(outputs, batch, num_beams=2, scores=True)
    options, again = outputs.asked
    assert options == {"max_new_tokens": 9, "num_beams": 2}
    assert [prediction.text for prediction in predictions] == ["red", "no"]
    assert ("decoder_ids" in again) == (architecture == SEQ2SEQ)
    for i, prediction in enumerate(predictions):
        columns = (again["labels"][i] != -100).nonzero().squeeze(1)
        labels = again["labels"][i, columns]
        assert labels.tolist() == [*outputs.text.tokenizer(prediction.text, add_special_tokens=False)["input_ids"], 2]
        logs = outputs.language_model.logits(outputs.hidden[i, columns - 1]).log_softmax(-1)
        assert prediction.score == pytest.approx(float(logs[range(len(labels)), labels].sum().exp()))


def test_a_chat_has_the_inputs_of_every_modality(monkeypatch):
    seen = []
    monkeypatch.setattr("mmzoo_tasks.generative.render_chat", lambda text, turns, inputs: seen.append(inputs) or "hi")
    task = make("vqa", chat=True)
    task.collate([Example("1", ["1.png", "2.png"], "what")], Given(1).text, training=False)
    assert seen == [{"image": 2, "audio": 0}]
