"""Every registered entry and recipe, tiny and offline: builds, runs, trains two steps, saves and reloads."""

import datasets
import pytest

import mmzoo
from mmzoo import catalogue
from mmzoo.data import open_dataset
from mmzoo.errors import DataError
from mmzoo.inputs import open_image
from mmzoo.metrics import Metric, measure
from mmzoo.plugins import host
from mmzoo.recipe import Part
from mmzoo.testing import Sample, no_network, round_trip, tiny, tiny_parts

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
    assert [part.use for part in loaded.recipe.parts().values()] == [part.use for part in recipe.parts().values()]


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    """A user's folder, for the data sets that need one."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for i, example in enumerate(Sample().load("train")):
        example.image.save(folder / f"{i}.png")
        rows.append({"image": (folder / f"{i}.png").read_bytes(), "text": example.text, "target": example.targets[0]})
    table = {key: [row[key] for row in rows] for key in rows[0]}
    datasets.Dataset.from_dict(table).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("entry", [e for e in catalogue.entries("dataset") if e.load().modality == "image"], ids=name)
def test_dataset(entry, own_files, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    needs_folder = any(o["name"] == "variant" and o["default"] == "required" for o in catalogue.options(entry))
    part = Part(use=f"{entry.name}:{own_files}" if needs_folder else entry.name, **entry.tiny)
    found = open_dataset(part)
    for split in found.splits():
        example = found.load(split)[0]
        assert open_image(example.image).mode == "RGB"
        assert example.id
        assert example.targets
    options = {"max_steps": 2, "batch_size": 2, "precision": "fp32"}
    run = mmzoo.train(tiny("cnn-prefix-gpt"), dataset=part, output=tmp_path / "m", progress=False, train=options)
    assert run.steps == 2


@pytest.mark.parametrize("entry", catalogue.entries("metric"), ids=name)
def test_metric(entry):
    metric = entry.load()
    assert issubclass(metric, Metric)
    try:
        scorer = metric(metric.Options())
    except DataError as error:  # Java, or a package of an extra; tests/test_caption_metrics.py reads the message
        pytest.skip(str(error))
    captions = ["two dogs run after one ball", "some birds sit over there again"]
    perfect = measure(scorer, captions, [[caption] for caption in captions], [0, 1])
    wrong = measure(scorer, captions, [[caption] for caption in reversed(captions)], [0, 1])
    assert perfect.value == pytest.approx(metric.perfect, abs=1e-6)
    assert wrong.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("entry", catalogue.entries(), ids=name)
def test_entry_says_what_it_is(entry):
    assert entry.problems() == []
    assert entry.license
    assert entry.source, "where does it come from?"
    assert len(entry.summary) <= 120
