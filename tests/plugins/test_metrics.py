"""Compare metrics with scikit-learn, and check that their statistics add up and that intervals are right."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from mmzoo.errors import BadRecipe, DataError
from mmzoo.evaluation.statistics import measure as measure_predictions
from mmzoo.interfaces import Prediction
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig

SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


def metric(name, **options):
    resolved = resolve("metric", PartConfig(use=name, **options))
    return resolved.cls(resolved.options)


def said(texts):
    return [Prediction(label=text) for text in texts]


def measure(chosen, texts, *more, **options):
    return measure_predictions(chosen, said(texts), *more, **options)


def total(chosen, predictions, references):
    return float(chosen.score(chosen.rows(predictions, references).sum(0)))


def score(name, texts, references, **options):
    return total(metric(name, **options), said(texts), references)


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
    rows = chosen.rows(said(predictions), [[label] for label in truth])
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
    rows = chosen.rows(said("ab"), [["a"], ["b"]])
    assert chosen.score(rows[0]) == 1  # of a resample without "b"
    assert np.isnan(chosen.score(rows[0] * 0))


def test_wrong_use_is_refused():
    with pytest.raises(BadRecipe, match="average"):
        metric("f1", average="mean")
    with pytest.raises(DataError, match="example 2 has no reference"):
        metric("f1").rows(said("ab"), [["a"], []])
    with pytest.raises(ValueError, match="zip"):
        metric("accuracy").rows(said("ab"), [["a"]])
    with pytest.raises(DataError, match="no predictions"):
        measure(metric("accuracy"), [], [], [])


def test_too_many_classes_are_refused_before_the_memory_is_used(monkeypatch):
    monkeypatch.setattr("mmzoo_metrics.classification.MAX_BYTES", 1000)
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(DataError, match=r"10 classes of 10 examples are too many.*micro"):
        metric("f1").rows(said(names), [[name] for name in names])
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


# Numbers


def numbers(seed, values):
    random = np.random.default_rng(seed)
    truth = random.choice([-3.0, 1.25, 2.0, 7.5, 11.0], (30, values)) + 1e6 * (seed == 2)
    estimates = truth + random.choice([0.0, 0.5, -2.0, 9.0], truth.shape)  # some are equal
    predictions = [Prediction(value=row[0]) if values == 1 else Prediction(values=tuple(row)) for row in estimates.tolist()]
    return predictions, [[repr(number) for number in row] for row in truth.tolist()], estimates, truth


def mean_of(correlation):
    return lambda truth, estimates: np.mean([correlation(x, y).statistic for x, y in zip(truth.T, estimates.T, strict=True)])


NUMBERS = {
    "mae": sk.mean_absolute_error,
    "mse": sk.mean_squared_error,
    "r2": sk.r2_score,
    "pearson": mean_of(stats.pearsonr),
    "spearman": mean_of(stats.spearmanr),
}


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_scored_as_in_sklearn_and_scipy(name, values):
    for seed in range(8):
        predictions, references, estimates, truth = numbers(seed, values)
        assert total(metric(name), predictions, references) == pytest.approx(NUMBERS[name](truth, estimates), abs=1e-9), seed
        perfect = [Prediction(values=tuple(row)) for row in truth.tolist()]
        assert total(metric(name), perfect, references) == pytest.approx(metric(name).perfect)
        if name != "spearman":  # whose ranks are those of all examples
            weights = np.random.default_rng(seed).integers(0, 3, (4, len(truth)))
            again = [np.repeat(np.arange(len(truth)), each) for each in weights]
            wanted = [NUMBERS[name](truth[each], estimates[each]) for each in again]
            together = metric(name).score(weights @ metric(name).rows(predictions, references))
            assert together == pytest.approx(np.array(wanted), abs=1e-9)


def test_errors_are_better_the_smaller_they_are():
    assert {name for name in NUMBERS if metric(name).smaller_is_better} == {"mae", "mse"}
    assert {name for name in NUMBERS if metric(name).compares_all} == {"spearman"}


def test_numbers_that_never_change_explain_nothing(recwarn):
    same, other = [Prediction(value=0.1)] * 3, [Prediction(value=x) for x in (1.0, 2.0, 4.0)]
    truth, constant = [["1"], ["2"], ["4"]], [["0.1"]] * 3
    for name in ("pearson", "spearman"):
        assert total(metric(name), same, truth) == total(metric(name), other, constant) == 0
    assert total(metric("r2"), same, constant) == 1
    assert total(metric("r2"), other, constant) == 0 == sk.r2_score([0.5] * 3, [1, 2, 4])
    measure_predictions(metric("r2"), same, truth, range(3))
    assert not recwarn.list


def test_what_is_no_number_is_refused():
    assert score("mae", ["1.5", " 2"], [["1"], ["2"]]) == 0.25
    with pytest.raises(DataError, match="example 2: could not convert.*'red'.*compares numbers"):
        score("mae", ["1", "red"], [["1"], ["2"]])
    for predicted, right in ((["1"], [["1", "2"]]), (["1", "2"], [["1"], ["1", "2"]]), (["1"], [[]])):
        with pytest.raises(DataError, match="1 numbers are predicted"):
            score("mae", predicted, right)


# Sets of labels


def sets(seed, count=40):
    """Return predictions of up to 5 labels, some equally probable, with the arrays that scikit-learn takes; every label is right
    or predicted for an example."""
    random = np.random.default_rng(seed)
    names = np.array(["a", "b", "c", "d", "e"])
    scores, truth = random.integers(0, 8, (count, 5)) / 8, random.random((count, 5)) < 0.3
    truth[0] = True
    chosen = scores > 0.5
    predictions = [
        Prediction(labels=tuple(names[own]), scores=dict(zip(names, row.tolist(), strict=True)))
        for own, row in zip(chosen, scores, strict=True)
    ]
    return predictions, [list(names[row]) for row in truth], chosen, truth, scores


def test_sets_of_labels_are_scored_as_in_sklearn():
    for seed in range(20):
        predictions, references, chosen, truth, scores = sets(seed)
        for average in ("macro", "micro", "weighted"):
            wanted = sk.f1_score(truth, chosen, average=average, zero_division=0)
            assert total(metric("multi-label-f1", average=average), predictions, references) == pytest.approx(wanted)
        micro = sk.f1_score(truth, chosen, average="micro")
        assert total(metric("multi-label-f1-micro"), predictions, references) == pytest.approx(micro)
        assert total(metric("subset-accuracy"), predictions, references) == pytest.approx(sk.accuracy_score(truth, chosen))
        precision = sk.average_precision_score(truth, scores, average="macro")
        assert total(metric("map"), predictions, references) == pytest.approx(precision)


def test_a_set_may_be_empty_and_a_label_alone():
    nothing = Prediction(labels=())
    assert total(metric("subset-accuracy"), [nothing, nothing], [[], ["a"]]) == 0.5
    assert total(metric("multi-label-f1"), [nothing, Prediction(labels=("a",))], [[], ["a"]]) == 1
    assert np.isnan(total(metric("multi-label-f1"), [nothing], [[]]))
    for name in ("multi-label-f1", "multi-label-f1-micro", "subset-accuracy", "map"):
        assert score(name, ["a", "b"], [["a"], ["b"]]) == 1 > score(name, ["b", "a"], [["a"], ["b"]])


def test_too_many_labels_are_refused_before_the_memory_is_used(monkeypatch):
    monkeypatch.setattr("mmzoo_metrics.classification.MAX_BYTES", 1000)
    names = [f"class {i}" for i in range(10)]
    for name in ("multi-label-f1", "map"):
        with pytest.raises(DataError, match="10 classes of 10 examples are too many"):
            score(name, names, [[each] for each in names])
    assert score("multi-label-f1-micro", names, [[each] for each in names]) == 1


# Retrieval

RETRIEVAL = {"recall-at-1": 1, "recall-at-5": 5, "recall-at-10": 10, "mrr": None}


def pairs_of(inputs, texts):
    unit = lambda rows: np.asarray(rows, float) / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    return [Prediction(vectors={"photo": tuple(a), "text": tuple(b)}) for a, b in zip(unit(inputs), unit(texts), strict=True)]


@pytest.mark.parametrize("block", [1 << 24, 70])
@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_is_that_of_sorting(name, block, monkeypatch):
    monkeypatch.setattr("mmzoo_metrics.retrieval.BLOCK", block)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(40, 4))
    texts = inputs + random.normal(size=(40, 4))
    predictions, references = pairs_of(inputs, texts), [[f"text {i}"] for i in range(40)]
    x, y = (np.array([p.vectors[side] for p in predictions]) for side in ("photo", "text"))
    for prefix, similar in (("", x @ y.T), ("text-", y @ x.T)):
        ranks = np.array([1 + list(np.argsort(-row)).index(i) for i, row in enumerate(similar)])
        wanted = (1 / ranks).mean() if RETRIEVAL[name] is None else (ranks <= RETRIEVAL[name]).mean()
        assert total(metric(prefix + name), predictions, references) == pytest.approx(wanted)
        assert metric(prefix + name).compares_all


def test_every_right_partner_counts_and_equal_ones_are_one_candidate():
    axes = np.eye(4)
    # Examples 0 and 1 share a text, 2 and 3 an input; 3's text is nearest to both.
    predictions = pairs_of(axes[[0, 1, 2, 2]], [axes[1], axes[1], axes[3], axes[2]])
    references = [["same"], ["same"], ["first"], ["second"]]
    recall, back = metric("recall-at-1"), metric("text-recall-at-1")
    # Input 0 is like no text: all three tie.
    assert recall.rows(predictions, references)[:, 0] == pytest.approx([1 / 3, 1, 0, 1])
    assert metric("mrr").rows(predictions, references)[:, 0] == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, 1, 5 / 12, 1])
    # The text of 2 is like no input; that of 3 finds the input twice, of which only one is its own.
    assert back.rows(predictions, references)[:, 0] == pytest.approx([1, 1, 1 / 4, 1 / 2])
    recall.groups = back.groups = ["a", "b", "c", "c"]
    assert recall.rows(predictions, references)[:, 0] == pytest.approx([1 / 3, 1, 1, 1])
    assert back.rows(predictions, references)[:, 0] == pytest.approx([1, 1, 1 / 3, 1])
    several = [["same"], ["same"], ["first", "second"], ["second"]]
    assert metric("recall-at-1").rows(predictions, several)[:, 0] == pytest.approx([1 / 3, 1, 1, 1])


def test_inputs_that_are_all_the_same_find_texts_by_chance():
    random = np.random.default_rng(0)
    blanked = pairs_of(np.ones((50, 4)), random.normal(size=(50, 4)))
    collapsed = pairs_of(np.ones((50, 4)), np.ones((50, 4)))
    references = [[f"text {i}"] for i in range(50)]
    broken = [Prediction(vectors={"photo": (np.nan,) * 4, "text": (0.5,) * 4})] * 50
    for prefix in ("", "text-"):
        assert total(metric(prefix + "recall-at-1"), blanked, references) == pytest.approx(1 / 50)
        for wrong in (collapsed, broken):
            assert total(metric(prefix + "recall-at-10"), wrong, references) == pytest.approx(10 / 50)
            assert total(metric(prefix + "mrr"), wrong, references) == pytest.approx((1 / np.arange(1, 51)).mean())


def test_retrieval_needs_vectors_and_texts():
    with pytest.raises(DataError, match="contrastive"):
        score("recall-at-1", ["a"], [["a"]])
    with pytest.raises(DataError, match="example 1 has no reference"):
        total(metric("mrr"), pairs_of([[1.0]], [[1.0]]), [[]])
