"""Test the harness of experiments/: records are made once, tables are made from records only."""

import json
from dataclasses import replace

import pytest

import mmzoo
from experiments import EXPERIMENTS, common, openmoji, report
from experiments.common import Experiment, ExperimentError, Model

LANGUAGE = {"use": "gpt-mini", "dim": 16, "layers": 1, "heads": 2}
SIGHT = {"encoder": {"use": "cnn", "image_size": 16, "channels": [8]}, "fusion": "prefix-linear", "task": "vqa"}
FROZEN = {**SIGHT, "language_model": {"use": "gpt-mini", "train": "frozen"}}

TINY = Experiment(
    name="tiny",
    title="A tiny one",
    about="To try the harness.",
    dataset="easy-vqa",
    split="test",
    metrics=("exact-match",),
    models=(
        Model("text", "text alone", {"encoder": "none", "fusion": "none", "language_model": LANGUAGE, "task": "vqa"}, sees=False),
        Model("frozen", "frozen", FROZEN, {"language_model": "text"}),
        Model("blind", "blind", FROZEN, {"language_model": "text"}, blind=True),
    ),
    seeds=(0, 1),
)


def run_tiny(folder, experiment=TINY, **options):
    return list(common.run(experiment, work=folder / "work", runs=folder / "runs", quick=True, **options))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    run_tiny(folder)
    return folder


@pytest.mark.slow
def test_a_record_a_model_and_seed(done):
    records = common.read(TINY, done / "runs")
    assert {name: [record["seed"] for record in rows] for name, rows in records.items()} == {
        "text": [0, 1],
        "frozen": [0, 1],
        "blind": [0, 1],
    }
    record = records["frozen"][1]
    assert record["training"]["seed"] == 1
    cards = sorted(path.name for path in (done / "runs" / "tiny").glob("*.md"))
    assert cards == ["blind-seed0.md", "frozen-seed0.md", "text-seed0.md"]
    assert len(record["training"]["fingerprint"]) == len(record["evaluation"]["fingerprint"]) == 64
    assert record["training"]["versions"]["torch"]
    assert record["evaluation"]["examples"] == common.QUICK_EXAMPLES
    assert set(record["evaluation"]["controls"]) == {"shuffled"}
    assert record["weights"]["language_model"]["checkpoint"] == "text-seed1"
    assert record["parameters"]["language_model"]["trained"] == 0 < record["parameters"]["language_model"]["all"]
    assert "weights" not in records["text"][0]
    assert records["blind"][0]["training"]["blank_images"]
    assert set(records["blind"][0]["evaluation"]["controls"]) == {"blanked"}


@pytest.mark.slow
def test_what_has_a_record_is_not_run_again(done, monkeypatch):
    monkeypatch.setattr(mmzoo, "train", lambda *_, **__: pytest.fail("it was trained again"))
    monkeypatch.setattr(mmzoo, "evaluate", lambda *_, **__: pytest.fail("it was measured again"))
    assert len(run_tiny(done)) == 6
    assert [path.name for path in run_tiny(done, only=["blind"], seeds=[1])] == ["blind-seed1.json"]


@pytest.mark.slow
def test_what_is_missing_is_made_with_what_it_starts_from(done, tmp_path):
    paths = run_tiny(tmp_path, only=["frozen"], seeds=[1])
    assert [path.name for path in paths] == ["frozen-seed1.json"]
    again, before = (json.loads((at / "runs" / "tiny" / "frozen-seed1.json").read_text()) for at in (tmp_path, done))
    assert again["weights"] == before["weights"], "the same seed gives the same language model"
    assert again["evaluation"]["scores"] == before["evaluation"]["scores"]


def test_records_of_other_settings_are_refused(done):
    text, *others = TINY.models
    wider = replace(TINY, models=(replace(text, recipe={**text.recipe, "language_model": {**LANGUAGE, "dim": 32}}), *others))
    with pytest.raises(ExperimentError, match=r"text-seed0.json was made with other settings .* remove it"):
        run_tiny(done, wider)
    with pytest.raises(ExperimentError, match="has no model 'frozn'; there are: text, frozen, blind"):
        run_tiny(done, only=["frozn"])


def test_a_missing_plugin_is_named(tmp_path):
    missing = Model("missing", "missing", {**FROZEN, "language_model": LANGUAGE, "encoder": "no-such-encoder"})
    with pytest.raises(ExperimentError, match=r"unknown encoder 'no-such-encoder'(.|\n)*experiments/README.md"):
        run_tiny(tmp_path, replace(TINY, models=(missing,)))


# Tables made from records


def make_record(seed, value, shuffled=None, blanked=None):
    def score(number):
        return {"exact-match": {"value": number, "low": number - 0.01, "high": number + 0.01}}

    controls = {name: score(n) for name, n in {"shuffled": shuffled, "blanked": blanked}.items() if n is not None}
    facts = {"dataset": "easy-vqa", "split": "test", "examples": 9, "fingerprint": "f" * 64, "versions": {"torch": "2"}}
    return {
        "seed": seed,
        "parameters": {"encoder": {"use": "cnn", "all": 1500, "trained": 1000}},
        "training": {"seconds": 60.0, "steps": 7},
        "evaluation": {**facts, "scores": score(value), "controls": controls, "seconds": 30.0},
    }


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    for seed, value in enumerate((0.8, 0.9, 1.0)):
        (folder / f"frozen-seed{seed}.json").write_text(json.dumps(make_record(seed, value, shuffled=0.5)))
    (folder / "blind-seed0.json").write_text(json.dumps(make_record(0, 0.1, blanked=0.625)))
    return tmp_path / "runs"


def test_means_with_students_interval():
    """Three values give 4.303 standard errors on either side."""
    mean = report.Mean.of([{"value": value, "low": 0, "high": 1} for value in (0.8, 0.9, 1.0)])
    assert mean.value == pytest.approx(0.9)
    assert mean.high - mean.value == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert str(mean) == "0.900 ± 0.248"
    assert str(report.Mean.of([{"value": 0.5, "low": 0.4, "high": 0.65}])) == "0.500 [0.400, 0.650]"


def test_the_page_is_of_the_records(runs):
    page = report.render([TINY], runs=runs)
    assert "## A tiny one\n\nTo try the harness." in page
    assert "| frozen | 0.900 ± 0.248 | 3 |" in page
    assert "| frozen | 0.500 ± 0.000 | 3 |" in page, "with images shuffled"
    assert "| blind | 0.625 [0.615, 0.635] | 1 |" in page, "a blind model's score is that on blank pictures"
    assert page.count("| blind |") == 2, "a table of scores and one of seeds: its pictures cannot be shuffled"
    assert "| frozen | 1 | 0.900 [0.890, 0.910] | 0.500 [0.490, 0.510] | 1.0 k of 1.5 k | 7 | 60 | 30 |" in page
    assert "text alone" not in page, "it has no record"
    assert "6 minutes in all; torch 2" in page
    assert report.render([TINY], runs=runs / "empty") == report.render([], runs=runs)


def test_the_plot_is_drawn(runs, tmp_path):
    assert report.plot(TINY, tmp_path, runs=runs).read_bytes().startswith(b"\x89PNG")


# The experiments themselves


def test_the_committed_page_is_up_to_date():
    page = report.DOCS / report.PAGE
    assert page.read_text(encoding="utf-8") == report.render(EXPERIMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_model_fits(experiment):
    names = [model.name for model in experiment.models]
    assert len(set(names)) == len(names)
    known = {entry.name for entry in mmzoo.entries("metric")}
    for model in experiment.models:
        assert known >= {name.rpartition("/")[2] for name in common.settings(experiment, model)["metrics"]}
        recipe = dict(model.recipe)
        if recipe.get("encoder") == openmoji.ENCODERS["lite0"][1]:
            recipe["encoder"] = "timm:tf_efficientnet_lite0"  # its architecture; the entry comes with examples/
        for kind, start in model.start.items():
            assert names.index(start) < names.index(model.name)
            recipe[kind] = next(other.recipe[kind] for other in experiment.models if other.name == start)
        assert mmzoo.check(recipe, pretrained=False).trained


def test_records_are_of_the_settings_in_the_code():
    for experiment in EXPERIMENTS:
        for model in experiment.models:
            for record in common.read(experiment).get(model.name, []):
                assert record["settings"] == common.settings(experiment, model), f"{experiment.name}: {model.name}"
