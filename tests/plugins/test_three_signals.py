"""three-signals: any two inputs say nothing of the sentiment, all three decide it, and each can be read from its input."""

import pickle
from collections import Counter

import numpy as np
import pytest

from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import BadRecipe, DataError
from mmzoo.recipes.schema import PartConfig
from mmzoo_datasets.three_signals import TOPICS, ThreeSignals

GOOD = {"fine", "good", "great", "lovely", "nice", "superb"}


def load(split="train", **options):
    return load_split(open_dataset(PartConfig(use="three-signals", **options)), split)


def praises(text):
    return bool(GOOD & set(text.split()))


def smiles(image):
    """A mouth is the black that is lower than the eyes; a smile's ends are higher than its middle."""
    rows, columns = np.nonzero(np.asarray(image).max(-1) < 60)
    below = rows > (rows.min() + rows.max()) / 2
    rows, columns = rows[below], columns[below]
    inner = abs(columns - (columns.min() + columns.max()) / 2) <= np.ptp(columns) / 5
    return rows[inner].mean() > rows[~inner].mean()


def rises(clip):
    """The spectrum's highest peak, near the beginning and near the end."""
    samples = clip["array"]
    first, last = (
        np.abs(np.fft.rfft(part, 2**15)).argmax() for part in (samples[: len(samples) // 4], samples[-len(samples) // 4 :])
    )
    return last > first


def same(one, other):
    return (
        (one.id, one.text, one.targets, one.image) == (other.id, other.text, other.targets, other.image)
        and np.array_equal(one.audio["array"], other.audio["array"])
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    """The three signals, the topic and the sentiment of 96 examples."""
    examples = load(train_size=96)
    return [(*examples.case(i), example.targets["sentiment"][0]) for i, example in enumerate(examples)]


def test_every_case_comes_equally_often(cases):
    assert len(set(cases)) == 32
    assert set(Counter(cases).values()) == {3}


@pytest.mark.parametrize("known", [(0, 1, 3), (0, 2, 3), (1, 2, 3)], ids=str)
def test_two_signals_say_nothing_of_the_sentiment(cases, known):
    seen = Counter((tuple(case[i] for i in known), case[4]) for case in cases)
    assert len(seen) == 2 * 16
    assert set(seen.values()) == {3}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_inputs_themselves_decide(split):
    examples = load(split, noise=0, seed=3)
    for i in range(200):
        example = examples[i]
        signals = praises(example.text), smiles(example.image), rises(example.audio)
        assert signals == examples.case(i)[:3], example.id
        assert example.targets["sentiment"] == (
            ("positive",) if sum(not signal for signal in signals) % 2 == 0 else ("negative",)
        )
        (topic,) = example.targets["topic"]
        assert [name for name, nouns in TOPICS.items() if set(nouns) & set(example.text.split())] == [topic]


def test_inputs():
    for example in load()[:50]:
        assert list(example.targets) == ["sentiment", "topic", "remark", "face", "voice"]
        assert (example.image.mode, example.image.size) == ("RGB", (32, 32))
        clip = example.audio
        assert clip["sampling_rate"] == 16_000
        assert clip["array"].dtype == np.float32
        assert 8_000 <= len(clip["array"]) < 16_000
        assert 0.05 < abs(clip["array"]).max() <= 1


def test_an_example_depends_on_seed_split_and_number_alone():
    examples, again = load(), load(train_size=64)
    assert (len(examples), len(again), len(load("test"))) == (8000, 64, 1600)
    assert all(same(examples[i], again[i]) for i in range(64))
    assert same(examples[7], again[5:9][2])
    assert same(examples[-1], examples[7999])
    assert same(pickle.loads(pickle.dumps(examples))[3], examples[3])
    with pytest.raises(IndexError):
        again[64]
    for other in (load(seed=1), load("validation"), load("test")):
        assert examples[0].image != other[0].image
        assert not any(np.array_equal(examples[0].audio["array"], other[i].audio["array"]) for i in range(8))


def test_noise():
    silent, loud = load(noise=0)[0], load(noise=1)[0]
    assert silent.text == loud.text
    for quiet, noisy in (
        (np.asarray(silent.image) / 255, np.asarray(loud.image) / 255),
        (silent.audio["array"], loud.audio["array"]),
    ):
        assert quiet.shape == noisy.shape
        assert np.abs(np.diff(noisy, axis=0)).mean() > 1.5 * np.abs(np.diff(quiet, axis=0)).mean()


def test_missing_inputs():
    whole, some = load(), load(missing=0.5)
    lacking = Counter(tuple(some[i].modalities) for i in range(400))
    assert set(lacking) == {("image", "audio"), ("image",), ("audio",)}
    assert 160 < lacking["image", "audio"] < 240
    assert 60 < lacking["image",] < 140
    for i in range(50):
        assert (some[i].text, some[i].targets) == (whole[i].text, whole[i].targets)
        assert some[i].image in (None, whole[i].image)
    assert all(len(example.modalities) == 1 for example in load(missing=1)[:50])


def test_what_is_refused():
    for wrong in ({"train_size": 40}, {"test_size": 0}, {"missing": 1.5}, {"noise": -1}):
        with pytest.raises(BadRecipe, match=next(iter(wrong))):
            load(**wrong)
    data = ThreeSignals(ThreeSignals.Options())
    with pytest.raises(DataError, match="no split 'dev'"):
        data.load("dev")
    data.wanted = ("topic", "mood")
    with pytest.raises(DataError, match="no targets for the task 'mood': name the task sentiment, topic, remark, face or voice"):
        data.load("train")
    for data.wanted in (("mine",), ("topic", "sentiment")):
        assert len(data.load("train")) == 8000
