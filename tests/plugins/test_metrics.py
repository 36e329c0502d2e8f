"""Compare metrics with scikit-learn, and check that their statistics add up and that intervals are right."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mmzoo.errors import BadRecipe, DataError
from mmzoo.evaluation.statistics import measure
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig

SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


def metric(name, **options):
    resolved = resolve("metric", PartConfig(use=name, **options))
    return resolved.cls(resolved.options)


def score(name, predictions, references, **options):
    chosen = metric(name, **options)
    return float(chosen.score(chosen.rows(predictions, references).sum(0)))


def draw(seed):
    """Return predictions and references over 1 to 6 classes, some of which only one of the two has."""
    random = np.random.default_rng(seed)
    classes = [f"class {i}" for i in range(random.integers(1, 7))]
    count = int(random.integers(1, 40))
    pick = lambda: [str(x) for x in random.choice(classes, count, p=random.dirichlet(np.ones(len(classes))))]  # noqa: E731
    return pick(), pick()


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", SKLEARN)
def test_equals_sklearn(name, average):
    for seed in range(60):
        predictions, truth = draw(seed)
        ours = score(name, predictions, [[label] for label in truth], average=average)
        assert abs(ours - SKLEARN[name](truth, predictions, average=average, zero_division=0)) < 1e-12, seed


def test_accuracy_equals_sklearn():
    for seed in range(60):
        predictions, truth = draw(seed)
        assert score("accuracy", predictions, [[label] for label in truth]) == pytest.approx(
            sk.accuracy_score(truth, predictions), abs=1e-12
        )


@pytest.mark.parametrize("name", ["accuracy", "exact-match", *SKLEARN])
def test_totals_are_scored_over_any_leading_axes(name):
    predictions, truth = draw(8)
    chosen = metric(name)
    rows = chosen.rows(predictions, [[label] for label in truth])
    assert rows.dtype == np.float64
    assert len(rows) == len(truth)
    weights = np.random.default_rng(0).integers(0, 3, (2, 5, len(rows)))
    together = chosen.score(weights @ rows)
    assert together.shape == (2, 5)
    for at in np.ndindex(2, 5):
        again = np.repeat(np.arange(len(rows)), weights[at])
        alone = score(name, [predictions[i] for i in again], [[truth[i]] for i in again])
        assert together[at] == pytest.approx(alone, abs=1e-12)


def test_any_reference_counts():
    references = [["cat", "a cat"], ["dog", "a dog"], ["bird"]]
    predictions = ["a cat", "dog", "fish"]
    assert score("accuracy", predictions, references) == pytest.approx(2 / 3)
    # "a cat" and "dog" are right; "fish" was never the reference, "bird" never predicted.
    assert score("f1", predictions, references) == pytest.approx(2 / 4)
    assert score("recall", ["fish"], [["cat", "a cat"]], average="weighted") == 0


def test_exact_match_folds_case_spaces_and_a_full_stop():
    assert score("exact-match", [" A  Cat. "], [["a cat"]]) == 1
    assert score("exact-match", ["a cat"], [["dog", "A\tcat ."]]) == 1
    assert score("exact-match", ["cats"], [["cat"]]) == 0
    assert score("accuracy", ["A cat"], [["a cat"]]) == 0


def test_a_class_without_reference_or_prediction_is_left_out():
    chosen = metric("f1")
    rows = chosen.rows(["a", "b"], [["a"], ["b"]])
    assert chosen.score(rows[0]) == 1  # of a resample without "b"
    assert np.isnan(chosen.score(rows[0] * 0))


def test_wrong_use_is_refused():
    with pytest.raises(BadRecipe, match="average"):
        metric("f1", average="mean")
    with pytest.raises(DataError, match="example 2 has no reference"):
        metric("f1").rows(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="zip"):
        metric("accuracy").rows(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="no predictions"):
        measure(metric("accuracy"), [], [], [])


def test_too_many_classes_are_refused_before_the_memory_is_used(monkeypatch):
    monkeypatch.setattr("mmzoo_metrics.classification.MAX_BYTES", 1000)
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(DataError, match=r"10 classes of 10 examples are too many.*micro"):
        metric("f1").rows(names, [[name] for name in names])
    assert score("f1", names, [[name] for name in names], average="micro") == 1


def test_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        right = np.random.default_rng(seed).random(150) < 0.7
        predictions = ["yes" if hit else "no" for hit in right]
        score = measure(metric("accuracy"), predictions, [["yes"]] * 150, range(150), seed=seed, resamples=400)
        assert score.low <= score.value <= score.high
        covered += score.low <= 0.7 <= score.high
    assert 88 <= covered <= 99


def test_interval_is_close_to_the_normal_one():
    predictions = ["yes"] * 600 + ["no"] * 400
    score = measure(metric("accuracy"), predictions, [["yes"]] * 1000, range(1000))
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert score.low == pytest.approx(0.6 - half, abs=0.005)
    assert score.high == pytest.approx(0.6 + half, abs=0.005)


def test_copies_in_one_group_make_the_interval_no_narrower():
    hits = ["yes" if i % 3 else "no" for i in range(60)]
    alone = measure(metric("accuracy"), hits, [["yes"]] * 60, range(60))
    copied, groups = hits * 10, [i for _ in range(10) for i in range(60)]
    grouped = measure(metric("accuracy"), copied, [["yes"]] * 600, groups)
    wrongly = measure(metric("accuracy"), copied, [["yes"]] * 600, range(600))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert grouped.high - grouped.low > 2 * (wrongly.high - wrongly.low)


def test_interval_is_deterministic():
    predictions, truth = draw(8)
    references, groups = [[label] for label in truth], [f"{i // 3}.png" for i in range(len(truth))]
    first = measure(metric("f1"), predictions, references, groups, seed=1)
    assert first == measure(metric("f1"), predictions, references, groups, seed=1)
    assert first != measure(metric("f1"), predictions, references, groups, seed=2)
    assert set(first.to_dict()) == {"value", "low", "high"}


def test_interval_does_not_depend_on_hashes():
    class Path(str):  # as another process would see it
        __hash__ = lambda self: hash(self[::-1])  # noqa: E731

    names = [f"{i // 2 * i}.png" for i in range(18)]
    predictions, references = ["a", "b", "b"] * 6, [["a"]] * 18
    found = measure(metric("accuracy"), predictions, references, names)
    assert found == measure(metric("accuracy"), predictions, references, [Path(name) for name in names])
