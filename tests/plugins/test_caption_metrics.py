"""Compare scores of captions and answers with those of pycocoevalcap and the VQA challenge, without their Java."""

import importlib.util
import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from caption_cases import FIXTURE, METRICS, original, pairs

import mmzoo
from mmzoo.errors import DataError
from mmzoo.evaluation.statistics import measure
from mmzoo.interfaces import Prediction
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import Sample, tiny
from mmzoo_metrics.ptb import tokenize
from mmzoo_metrics.vqa import normal

EMOJI = [("grinning face", "\U0001f600"), ("man cook", "\U0001f468\u200d\U0001f373"), ("flag: Wales", "\U0001f3f4")]
HERE = [name for name in METRICS if name != "meteor"]
needs_java = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason='compares with pycocoevalcap itself: needs Java and pip install "mmzoo[test-java]"; the fixture holds its answers',
)


def metric(name):
    resolved = resolve("metric", PartConfig(use=name))
    return resolved.cls(resolved.options)


def said(texts):
    return [Prediction(label=text) for text in texts]


def score(name, predictions, references):
    chosen = metric(name)
    return float(chosen.score(chosen.rows(said(predictions), references).sum(0)))


def check(cases, expected, names):
    """Check that the tokens and scores of ``cases`` are those that pycocoevalcap gave, ``expected``."""
    predictions, references = [prediction for prediction, _ in cases], [right for _, right in cases]
    assert list(tokenize(predictions)) == [tokens for tokens, _ in expected["tokens"]]
    flat = [caption for right in references for caption in right]
    assert list(tokenize(flat)) == [tokens for _, right in expected["tokens"] for tokens in right]
    for name in names:
        assert score(name, predictions, references) == pytest.approx(expected["scores"][name], abs=1e-6), name
    for name, scores in expected["each"].items():
        assert metric(name).rows(said(predictions), references)[:, 0] == pytest.approx(np.array(scores), abs=1e-6), name


def test_equals_pycocoevalcap_on_captions_of_every_awkward_kind():
    fixture = json.loads(FIXTURE.read_text())
    assert len(fixture["pairs"]) >= 1000
    check(fixture["pairs"], fixture, HERE)


@needs_java
def test_equals_pycocoevalcap_run_here():
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    cases = pairs(seed, emoji=EMOJI)
    check(cases, original(cases), METRICS)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog can't sit.", "a man 's dog ca n't sit"),
        ('He said "hi" (twice)...', "he said hi -lrb- twice -rrb-"),
        ("gonna visit the U.S. at 5 p.m.", "gon na visit the u.s. at 5 p.m."),
        ("1 1/2 cups & \u00bd, $5.00", "1\u00a01/2 cups & 1/2 $ 5.00"),
        (
            "AT&amp;T's www.example.com/xy \u201cquoted\u201d \u2014 t-shirt and/or",
            "at&t 's www.example.com/xy quoted t-shirt and/or",
        ),
        ("colour \U0001f600 :-) caf\u00e9 \u6771\u4eac so\u00adft", "colour :--rrb- caf\u00e9 \u6771\u4eac soft"),
        ("", ""),
        (" \t ...", ""),
    ],
)
def test_tokens(caption, tokens):
    assert tokenize([caption]) == (tokens,)


def test_a_caption_with_line_breaks_is_one_caption():
    broken = ["a\ncat\r\non", "a\x0bdog\x0c", "the\u2028end\x85", "last \r", '<a href="', 'x">']
    tokens = tokenize(broken)
    assert len(tokens) == len(broken)
    assert tokens[:4] == ("a cat on", "a dog", "the end", "last")
    assert tokenize([]) == ()
    assert tokenize(["", ""]) == ("", "")


def test_unpaired_surrogates_and_long_words_are_read():
    assert tokenize(["a \ud83d cat", "x" * 50_000, "a-" * 20_000])[0] == "a cat"


def test_rows_of_any_captions_add_up():
    cases = pairs(seed=3, count=60, emoji=EMOJI)
    predictions, references = [prediction for prediction, _ in cases], [right for _, right in cases]
    weights = np.random.default_rng(0).integers(0, 3, (2, 3, len(cases)))
    for name in [n for n in HERE if n != "cider-d"]:  # whose document frequencies are the whole set's
        chosen = metric(name)
        together = chosen.score(weights @ chosen.rows(said(predictions), references))
        assert together.shape == (2, 3)
        again = np.repeat(np.arange(len(cases)), weights[1, 2])
        alone = score(name, [predictions[i] for i in again], [references[i] for i in again])
        # Repeated captions have other neighbours, which can cost a full stop (see `tokenize`).
        assert together[1, 2] == pytest.approx(alone, abs=2e-3), name


def test_captions_without_words_score_zero_without_a_warning(recwarn):
    for name in HERE:
        assert score(name, ["", ""], [["a dog"], ["a cat", "two cats"]]) == 0
    assert score("rouge-l", [".", ""], [["..."], [""]]) == 1  # as in the original: equal, though empty
    assert score("cider-d", ["a dog runs far"], [["a dog runs far"]]) == 0  # one document says nothing of frequencies
    assert not recwarn.list


@pytest.mark.parametrize("name", [*HERE, "vqa-accuracy"])
def test_an_example_without_reference_is_refused(name):
    with pytest.raises(DataError, match="example 2 has no"):
        metric(name).rows(said("ab"), [["a"], []])
    with pytest.raises(ValueError, match="zip"):
        metric(name).rows(said("a"), [["a"], ["b"]])


def test_meteor_says_what_it_lacks(monkeypatch):
    entry = resolve("metric", PartConfig(use="meteor"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pycocoevalcap: pip install "mmzoo\[meteor\]"; cider-d'):
        entry.cls(entry.options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=["nowhere"]))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DataError, match=r"needs Java .*install a Java runtime"):
        entry.cls(entry.options)


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("The Dog.", "dog"),
        ("an  old\nman\t", "old man"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("it's 5:30", "it's 5:30"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("black/white", "black white"),
        ("3.5 ft.", "3.5 ft"),
        ("U.S.", "us"),
        ("t-shirt", "t shirt"),
        ("yes!?", "yes"),
        ("", ""),
    ],
)
def test_answers_are_normalised(answer, compared):
    assert normal(answer) == compared


def test_vqa_accuracy_leaves_one_out():
    answers = ["a cat"] * 2 + ["dog"] * 3 + ["bird"] * 4 + ["Fish"]
    # The mean over leaving out each of ten answers: for "dog", three times two others agree (2/3), seven times three (1).
    wanted = {"Cat.": (2 * 1 + 8 * 2) / 30, "dog": (3 * 2 + 7 * 3) / 30, "the bird": 1, "fish": 9 / 30, "horse": 0}
    for prediction, right in wanted.items():
        assert score("vqa-accuracy", [prediction], [answers]) == pytest.approx(right), prediction
    assert score("vqa-accuracy", ["Yes", "no"], [["yes"], ["yes"]]) == 0.5  # one answer is right or wrong
    assert score("vqa-accuracy", ["a", "b"], [["a", "b"], ["b", "b"]]) == pytest.approx(0.75)


def test_tasks_report_their_fields_scores(tmp_path):
    data = Sample()
    options = {"max_steps": 1, "batch_size": 2, "precision": "fp32"}
    model = mmzoo.train(tiny("cnn-prefix-gpt"), dataset=data, output=tmp_path / "m", progress=False, training=options).model
    result = mmzoo.evaluate(model, dataset=data, split="test", controls=("shuffled",), progress=False)
    assert list(result.scores) == ["vqa-accuracy", "exact-match"]
    result = mmzoo.evaluate(model, dataset=data, split="test", metrics=["bleu-4", "cider-d"], controls=(), progress=False)
    assert list(result.scores) == ["bleu-4", "cider-d"]
    assert all(0 <= s.low <= s.value <= s.high for s in result.scores.values())
    caption = resolve("task", PartConfig(use="caption")).cls
    assert caption.metrics == ("cider-d", "bleu-4", "rouge-l", "exact-match")


def test_intervals_of_many_captions_are_fast_and_hold_the_score():
    words = ["a", "man", "rides", "the", "red", "bike", "on", "some", "street", "with", "two", "dogs"]
    rng = random.Random(0)
    predictions = [" ".join(rng.choices(words, k=8)) for _ in range(400)]
    references = [[" ".join(rng.choices(words, k=8))] for _ in predictions]
    for name in HERE:
        result = measure(metric(name), said(predictions), references, [i // 2 for i in range(400)])
        assert 0 <= result.low < result.value < result.high
