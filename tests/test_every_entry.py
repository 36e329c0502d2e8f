"""Every registered entry and recipe, tiny and offline: builds, runs, trains two steps, saves and reloads."""

import pytest

from mmzoo import catalogue
from mmzoo.data import Dataset
from mmzoo.metrics import Metric, measure
from mmzoo.plugins import host
from mmzoo.testing import no_network, round_trip, tiny, tiny_parts

PARTS = [e for kind in ("encoder", "fusion", "language_model", "task") for e in catalogue.entries(kind)]


@pytest.fixture(autouse=True)
def offline():
    with no_network():
        yield


def name(entry):
    return f"{entry.kind}-{entry.name}"


def test_every_plugin_loads():
    assert host().failures == []


@pytest.mark.parametrize("entry", PARTS, ids=name)
def test_part(entry, tmp_path):
    round_trip(tiny_parts(entry), tmp_path / "model")


@pytest.mark.parametrize("entry", catalogue.entries("recipe"), ids=name)
def test_recipe(entry, tmp_path):
    recipe = tiny(entry.name)
    loaded = round_trip(recipe, tmp_path / "model")
    assert [part.use for part in loaded.recipe.parts().values()] == [
        part.use for part in recipe.parts().values()
    ]


@pytest.mark.parametrize("entry", catalogue.entries("dataset"), ids=name)
def test_dataset(entry):
    assert issubclass(entry.load(), Dataset)


@pytest.mark.parametrize("entry", catalogue.entries("metric"), ids=name)
def test_metric(entry):
    metric = entry.load()
    assert issubclass(metric, Metric)
    perfect = measure(metric(metric.Options()), ["a", "b"], [["a"], ["b"]], [0, 1])
    wrong = measure(metric(metric.Options()), ["b", "a"], [["a"], ["b"]], [0, 1])
    assert perfect.value == 1.0
    assert wrong.value == 0.0


@pytest.mark.parametrize("entry", catalogue.entries(), ids=name)
def test_entry_says_what_it_is(entry):
    assert entry.problems() == []
    assert entry.license
    assert entry.source, "where does it come from?"
    assert len(entry.summary) <= 120
