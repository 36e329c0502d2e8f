"""Several seeds of one recipe: a model for each, and the mean of their numbers with its interval in one card."""

import json
import os
import signal
import statistics
import subprocess

import pytest
import torch
from command_line import run as command
from launcher import head
from scipy import stats

import mmzoo
from mmzoo.errors import BadRecipe, CheckpointError, DataError, TrainingError
from mmzoo.evaluation.statistics import t_quantile
from mmzoo.testing import Sample
from mmzoo.training.callbacks import StopOnSignal

RUN = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "log_every": 1}


def train(recipe, dataset, output, **more):
    return mmzoo.train_seeds(recipe, dataset=dataset, output=output, progress=False, training=RUN, **more)


def weights(folder):
    return mmzoo.load(folder).state_dict()


def same(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(classifier, tmp_path_factory):
    output = tmp_path_factory.mktemp("seeds") / "out"
    train(classifier, Sample(), output)
    return output


@pytest.fixture
def arguments(classifier, tmp_path):
    """The arguments of a `mmzoo train` on a folder, up to the seeds."""
    (tmp_path / "recipe.json").write_text(json.dumps(classifier.to_dict()))
    (tmp_path / "data").mkdir()
    rows = []
    for i, example in enumerate(Sample().load("train")):
        example.image.save(tmp_path / "data" / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "text": example.text, "target": example.targets[0]}))
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    sets = [word for key, value in RUN.items() for word in ("--set", f"training.{key}={value}")]
    return ["train", tmp_path / "recipe.json", "--dataset", tmp_path / "data", "-o", tmp_path / "m", *sets]


@pytest.fixture
def stopping(monkeypatch):
    """Send SIGTERM at a step of the run with a seed, once."""

    def stop(seed, step):
        on_step_end = StopOnSignal.on_step_end

        def stopping(self, args, state, control, **more):
            if (args.seed, state.global_step) == (seed, step):
                self.signal = int(signal.SIGTERM)
            on_step_end(self, args, state, control, **more)

        monkeypatch.setattr(StopOnSignal, "on_step_end", stopping)
        return lambda: monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)

    return stop


def test_each_seed_is_what_it_is_alone(trained, classifier, sample, tmp_path):
    mmzoo.train(classifier, dataset=sample, output=tmp_path / "alone", progress=False, training={**RUN, "seed": 2})
    assert sorted(path.name for path in trained.glob("seed-*")) == ["seed-0", "seed-1", "seed-2"]
    assert same(trained / "seed-2", tmp_path / "alone")
    assert not same(trained / "seed-1", trained / "seed-2")
    assert run_record(trained / "seed-1")["training"]["seed"] == 1


def test_the_card_has_each_loss_and_their_mean_with_students_interval(trained):
    losses = [run_record(trained / f"seed-{seed}")["training"]["history"][-1]["loss"] for seed in range(3)]
    low, high = stats.t.interval(0.95, 2, statistics.mean(losses), stats.sem(losses))
    row = json.loads((trained / "seeds.json").read_text())["training"]["last loss"]
    assert row == {
        "mean": pytest.approx(statistics.mean(losses)),
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "values": losses,
    }
    card = (trained / "README.md").read_text()
    cells = " | ".join(f"{loss:.4f}" for loss in losses)
    assert f"| last loss | {cells} | {statistics.mean(losses):.4f} ± {(high - low) / 2:.4f} |" in card
    assert "Student's t for the mean of 3 seeds, with 2 degrees of freedom" in card


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 99])
def test_the_quantile_is_scipys(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_evaluation_measures_each_and_the_card_has_scores_beside_controls(trained, sample):
    table, evaluations = mmzoo.evaluate_seeds(trained, dataset=sample, metrics=["accuracy"], progress=False)
    values = [evaluation.scores["accuracy"].value for evaluation in evaluations.values()]
    assert [row.label for row in table.rows] == ["accuracy", "accuracy, inputs shuffled", "accuracy, inputs blanked"]
    assert list(table.rows[0].values) == values
    assert [run_record(trained / f"seed-{seed}")["evaluations"][0]["scores"]["accuracy"]["value"] for seed in range(3)] == values
    data = json.loads((trained / "seeds.json").read_text())["evaluations"]
    assert len(data) == 1
    assert data[0]["scores"]["accuracy"]["mean"] == pytest.approx(statistics.mean(values))
    assert data[0]["controls"]["blanked"]["accuracy"]["values"] == [
        evaluation.controls["blanked"]["accuracy"].value for evaluation in evaluations.values()
    ]
    assert "| accuracy, inputs shuffled |" in (trained / "README.md").read_text()
    mmzoo.evaluate(trained / "seed-0", dataset=sample, split="train", progress=False)  # of one seed only: not in the card
    mmzoo.SeedSummary.read(trained).write()
    assert len(json.loads((trained / "seeds.json").read_text())["evaluations"]) == 1


def test_validation_scores_of_the_best_step_are_in_the_card(classifier, sample, tmp_path):
    summary = train(classifier, sample, tmp_path, seeds=2, validation=0.5, overwrite=True).summary
    paths = [tmp_path / f"seed-{seed}" / "run.json" for seed in (0, 1)]
    records = [json.loads(path.read_text()) for path in paths]
    validations = [record["training"]["validation"] for record in records]
    means = {row.label: row.values for row in summary.tables()[0].rows}
    assert means["best step"] == tuple(each["best"]["step"] for each in validations)
    assert means["validation accuracy"] == tuple(each["best"]["score"] for each in validations)
    assert "| validation accuracy |" in (tmp_path / "README.md").read_text()
    assert "| validation f1 |" in summary.card()
    for entry in validations[1]["history"]:
        entry["scores"]["f1"] = None  # not a number
    paths[1].write_text(json.dumps(records[1]))
    assert "| validation f1 |" not in mmzoo.SeedSummary.read(tmp_path).card()


def test_resume_keeps_the_finished_goes_on_with_the_stopped_and_starts_the_rest(trained, classifier, sample, tmp_path, stopping):
    go_on = stopping(1, 2)
    stopped = train(classifier, sample, tmp_path / "m")
    assert stopped.stopped.steps == 2
    assert list(stopped.summary.runs) == [0]
    written = (tmp_path / "m" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    go_on()
    seeds = []
    resumed = train(classifier, sample, tmp_path / "m", resume=True, after_each=lambda seed, run: seeds.append(seed))
    assert seeds == [1, 2]
    assert list(resumed.summary.runs) == [0, 1, 2]
    assert (tmp_path / "m" / "seed-0" / "model.safetensors").stat().st_mtime_ns == written
    assert all(same(trained / f"seed-{seed}", tmp_path / "m" / f"seed-{seed}") for seed in range(3))
    train(classifier, sample, tmp_path / "m", resume=True, seeds=[1, 5], after_each=lambda seed, run: seeds.append(seed))
    assert seeds == [1, 2, 5]  # more seeds are added
    assert json.loads((tmp_path / "m" / "seeds.json").read_text())["seeds"] == [0, 1, 2, 5]


def test_overwrite_replaces_what_was_there(classifier, sample, tmp_path, stopping):
    train(classifier, sample, tmp_path / "m", seeds=[3, 4])
    with pytest.raises(TrainingError, match=r"already holds .*--resume finishes them or adds more, --overwrite"):
        train(classifier, sample, tmp_path / "m", seeds=[3, 4])
    go_on = stopping(4, 1)
    train(classifier, sample, tmp_path / "m", seeds=[3, 4], overwrite=True)
    go_on()
    seeds = []
    train(classifier, sample, tmp_path / "m", seeds=[3, 4], resume=True, after_each=lambda seed, run: seeds.append(seed))
    assert seeds == [4]  # the old model of seed 4 is not taken for a new one


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, "at least two"), (0, "at least two"), ([3], "at least two"), ([0, 1, 0], "0 is there twice")],
)
def test_wrong_seeds(classifier, sample, tmp_path, seeds, said):
    with pytest.raises(TrainingError, match=said):
        train(classifier, sample, tmp_path / "m", seeds=seeds)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("seeds", [[0, -1], [0, 1 << 32]])
def test_a_seed_that_no_recipe_takes(classifier, sample, tmp_path, seeds):
    with pytest.raises(BadRecipe, match=r"training\.seed"):
        train(classifier, sample, tmp_path / "m", seeds=seeds)
    assert not (tmp_path / "m").exists()


def test_bad_data_leave_nothing(classifier, sample, tmp_path):
    with pytest.raises(DataError, match="split"):
        train(classifier, sample, tmp_path / "m", split="nowhere")
    assert not (tmp_path / "m").exists()


def test_a_folder_that_holds_something_else(trained, classifier, sample, tmp_path):
    single = trained / "seed-0"
    with pytest.raises(TrainingError, match="holds a single model"):
        train(classifier, sample, single)
    with pytest.raises(TrainingError, match="holds a single model"):
        train(classifier, sample, single, overwrite=True)
    with pytest.raises(TrainingError, match="holds the models of several seeds"):
        mmzoo.train(classifier, dataset=sample, output=trained, overwrite=True, training=RUN)
    with pytest.raises(TrainingError, match="the output is empty"):
        train(classifier, sample, "")
    with pytest.raises(TrainingError, match="no seeds to resume"):
        train(classifier, sample, tmp_path / "m", resume=True)
    with pytest.raises(TrainingError, match="were started with another recipe"):
        train(classifier, sample, trained, resume=True, task={"hidden": 9})
    with pytest.raises(TrainingError, match="were started with another data"):
        train(classifier, sample, trained, resume=True, split="test")
    with pytest.raises(TrainingError, match="were started with another data"):
        train(classifier, sample, trained, resume=True, validation=0.5)
    with pytest.raises(CheckpointError, match="models of several seeds; name one of them"):
        mmzoo.load(trained)
    with pytest.raises(CheckpointError, match=r"seeds\.json"):
        mmzoo.evaluate_seeds(tmp_path, dataset=sample)


def test_the_command_line(arguments, tmp_path):
    said = command(*arguments, "--seeds", "0,7")
    assert "seed 7 (2 of 2)" in said.stderr
    assert "trained 2 seeds; their card is" in said.stdout
    assert f"mmzoo evaluate {tmp_path / 'm'} --dataset {tmp_path / 'data'}" in said.stdout
    again = json.loads(command(*arguments, "--seeds", "0,7", "--resume", "--json").stdout)
    assert again["seeds"] == [0, 7]
    measure = ["evaluate", tmp_path / "m", "--dataset", tmp_path / "data", "--split", "train"]
    measured = json.loads(command(*measure, "--json").stdout)
    assert list(measured["seeds"]) == ["0", "7"]
    values = [measured["seeds"][seed]["scores"]["accuracy"]["value"] for seed in ("0", "7")]
    assert measured["scores"]["accuracy"]["mean"] == pytest.approx(statistics.mean(values))
    said = command(*measure, "--data", "text_column=text").stdout
    assert "examples, text_column=text\n" in said  # not as Markdown has it
    assert "±" in said
    assert "--seeds two: write how many, such as 3, or which: 0,7" in command(*arguments, "--seeds", "two", code=2).stderr


def test_a_signal_stops_all_seeds(arguments, stopping):
    stopping(0, 1)
    said = command(*arguments, "--seeds", "2", code=128 + signal.SIGTERM)
    assert "stopped at step 1" in said.stderr
    assert "--resume" in said.stderr
    assert "seed 1 (2 of 2)" not in said.stderr


@pytest.mark.slow
def test_two_processes(arguments, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [*head(), "-m", "mmzoo"]
    whole = [*launch, *map(str, arguments), "--seeds", "2", "--json"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout[done.stdout.index("{") :])["seeds"] == [0, 1]
    assert [run_record(tmp_path / "m" / f"seed-{seed}")["training"]["processes"] for seed in (0, 1)] == [2, 2]
