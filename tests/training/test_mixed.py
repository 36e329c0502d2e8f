"""Runs on several data sets: each trains its tasks, and a killed run resumes to the weights of the unbroken one."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from launcher import head
from safetensors.torch import load_file
from test_resume_exact import check_equal, stopped_and_resumed
from test_train import Given

import mmzoo
from mmzoo.cli.root import app
from mmzoo.data.collate import Collator
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny

HELPER = Path(__file__).parents[1] / "helpers" / "mixed_run.py"
OPTIONS = {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "log_every": 2, "cache_features": False}
TASKS = {"colour": {"use": "classify", "dropout": 0.3}, "answer": {"use": "vqa"}}


def several(tasks=TASKS, **data):
    parts = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini"}
    return tiny(mmzoo.Recipe.of({**parts, "tasks": tasks, "data": data}))


def rows(name, count):
    """Coloured squares with the colour as the only target."""
    return [Example(f"{name}{i}", each.image, each.text, each.targets) for i, each in enumerate(Sample(count).load("train"))]


@pytest.fixture
def names(monkeypatch):
    """The ids of the examples of each batch that is collated."""
    found, real = [], Collator.__call__

    def spy(self, examples):
        found.append([example.id for example in examples])
        return real(self, examples)

    monkeypatch.setattr(Collator, "__call__", spy)
    return found


def mixed(recipe, given, output, **more):
    return mmzoo.train(recipe, datasets=given, output=output, progress=False, **more)


def test_each_data_set_trains_its_task(tmp_path, capsys):
    given = {"colour": Given(*rows("a", 12)), "answer": Given(*rows("b", 4))}
    recipe = several(weights={"colour": 1, "answer": 3})
    run = mmzoo.train(recipe, datasets=given, output=tmp_path / "m", training={**OPTIONS, "epochs": 2})
    assert all(set(entry["terms"]) <= {"colour.cross-entropy", "answer.tokens"} for entry in run.history)
    record = json.loads((tmp_path / "m" / "run.json").read_text())["training"]
    assert record["mixture"] == {
        "colour": {"examples": 12, "share": 0.25, "drawn": 8},
        "answer": {"examples": 4, "share": 0.75, "drawn": 24},
    }
    assert [each["task"] for each in record["datasets"]] == ["colour", "answer"]
    expected = (
        "mixing colour: 25.0% of the draws (0.67 passes over 12 examples), answer: 75.0% of the draws (6 passes over 4 examples)"
    )
    assert expected in capsys.readouterr().err
    answers = mmzoo.load(tmp_path / "m").predict(rows("a", 1)[0].image, text="what color is it")
    assert set(answers) == {"colour", "answer"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weights", [{"a": 1, "b": 3}, "round-robin", "temperature:3"])
def test_a_resumed_mixture_of_tables_has_the_bits_of_an_unbroken_run(tmp_path, monkeypatch, weights, workers):
    given = {"a": Given(*rows("a", 9)), "b": Given(*rows("b", 5))}
    recipe = several({"a": TASKS["colour"], "b": TASKS["colour"]}, weights=weights)
    monkeypatch.setattr("test_resume_exact.train", lambda recipe, data, output, **more: mixed(recipe, given, output, **more))
    options = {**OPTIONS, "epochs": 3, "workers": workers}
    whole = mixed(recipe, given, tmp_path / "whole", training=options)
    check_equal(whole, stopped_and_resumed(recipe, None, tmp_path / "parts", [2, 6], monkeypatch, options))
    records = [json.loads((tmp_path / name / "run.json").read_text())["training"]["mixture"] for name in ("whole", "parts")]
    assert records[0] == records[1]
    assert sum(own["drawn"] for own in records[0].values()) == 42


def test_each_source_walks_through_its_own_captions(tmp_path):
    """Where one is drawn from three times an epoch, a pass over it is a pass for its captions too."""
    captions = ("red one", "green one", "blue one")
    few = [Example(str(i), each.image, "", captions) for i, each in enumerate(rows("x", 2))]
    found, real = Counter(), Collator.__call__

    def spy(self, examples):
        batch = real(self, examples)
        found.update((e.id, e.draw[2], e.drawn(captions)) for e in examples if e.id in "01")
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collator, "__call__", spy)
        recipe = several({"few": {"use": "vqa"}, "many": {"use": "vqa"}}, weights={"few": 3, "many": 1})
        given = {"few": Given(*few), "many": Given(*rows("m", 6))}
        mixed(recipe, given, tmp_path / "m", training={**OPTIONS, "epochs": 1, "workers": 0})
    assert sorted((name, text) for name, _, text in found) == sorted((name, text) for name in "01" for text in captions)
    assert sorted(number for _, number, _ in found) == [0, 0, 1, 1, 2, 2]


def shards(folder, name, count, number):
    """Write pictures and colours in ``number`` shards of Parquet."""
    own = folder / name
    own.mkdir()
    for shard in range(number):
        part = [
            {"id": each.id, "image": {"bytes": png(each.image)}, "label": each.targets[0], "text": each.text}
            for each in rows(name, count)[shard::number]
        ]
        text = datasets.Value("string")
        features = datasets.Features({"id": text, "image": datasets.Image(), "label": text, "text": text})
        datasets.Dataset.from_list(part, features=features).to_parquet(own / f"train-{shard}.parquet")
    return {"use": f"datasets:{own}", "streaming": True, "id_column": "id"}


def png(image):
    from io import BytesIO

    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_mixture_of_streams_has_the_bits_of_an_unbroken_run(tmp_path, monkeypatch, workers):
    """Of two streams and a table, shuffled in a buffer; a resumed run does not read what was read before."""
    given = {"a": shards(tmp_path, "a", 13, 3), "b": shards(tmp_path, "b", 7, 2), "c": Given(*rows("c", 5))}
    tasks = dict.fromkeys(given, TASKS["colour"])
    recipe = several(tasks, weights={"a": 2, "b": 1, "c": 1}, shuffle_buffer=4)
    monkeypatch.setattr("test_resume_exact.train", lambda recipe, data, output, **more: mixed(recipe, given, output, **more))
    options = {**OPTIONS, "max_steps": 10, "workers": workers}
    whole = mixed(recipe, given, tmp_path / "whole", training=options)
    check_equal(whole, stopped_and_resumed(recipe, None, tmp_path / "parts", [3, 8], monkeypatch, options))
    record = json.loads((tmp_path / "parts" / "run.json").read_text())["training"]["mixture"]
    assert {name: own["examples"] for name, own in record.items()} == {"a": None, "b": None, "c": 5}
    assert sum(own["drawn"] for own in record.values()) == 40


def test_a_resumed_stream_goes_on_at_its_sample(tmp_path, monkeypatch, names):
    import mmzoo_datasets.hub as hub

    given = shards(tmp_path, "a", 30, 3)
    recipe = tiny("cnn-product-lstm")
    read, real = [], hub.RowReader.__call__
    monkeypatch.setattr(hub.RowReader, "__call__", lambda self, row, *more: read.append(row["id"]) or real(self, row, *more))
    options = {**OPTIONS, "max_steps": 7, "workers": 0}

    def resumed(recipe, data, output, **more):
        read.clear()
        names.clear()
        return mmzoo.train(recipe, dataset=given, output=output, progress=False, **more)

    monkeypatch.setattr("test_resume_exact.train", resumed)
    stopped_and_resumed(recipe, None, tmp_path / "m", [5], monkeypatch, options)
    every = [name for batch in names for name in batch]
    assert every == [f"a{i}" for shard in range(3) for i in range(shard, 30, 3)][20:28]
    before = 1 + 30  # the first example is looked at, and labels are learned from all of them
    assert read[before:] == every


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "data.weights.easy-vqa=-1"], "weights must not be negative"),
        (["--set", "data.weights.easy-vqa=0"], "all weights are 0"),
        (["--set", "data.weights.other=1"], "there is no data set 'other'; they are called easy-vqa"),
        (["--set", "data.balance=answer"], "data.balance: there is no task 'answer'; the tasks are classify"),
    ],
)
def test_bad_options_on_the_command_line(tmp_path, arguments, says):
    from typer.testing import CliRunner

    command = ["train", "cnn-product-lstm", "--dataset", "easy-vqa", "--data", "limit=20", "-o", str(tmp_path / "m"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code
    assert says in " ".join(f"{result.exception} {result.output}".split())
    assert not (tmp_path / "m").exists()


def test_the_command_that_it_advises_measures_the_task_of_the_data_set(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    def run(*command):
        result = CliRunner().invoke(app, list(command))
        assert result.exit_code == 0, f"{result.exception} {result.output}"
        return result.stdout

    monkeypatch.chdir(tmp_path)
    for name in ("colour", "answer"):
        lines = [
            json.dumps({"image": f"{i}.png", "text": "what?", "target": target}) for i, target in enumerate(["red", "blue"] * 4)
        ]
        Path(f"{name}s.jsonl").write_text("\n".join(lines))
    Path("plain.jsonl").write_text('{"image": "0.png", "text": "", "answer": "red"}')
    for i, each in enumerate(rows("x", 8)):
        each.image.save(f"{i}.png")
    Path("my.json").write_text(json.dumps(several().to_dict()))
    sets = [f"training.{key}={value}" for key, value in {**OPTIONS, "max_steps": 2}.items()]
    given = [
        "--dataset",
        "answer=answers.jsonl:train",
        "--dataset",
        "colour=colours.jsonl",
        "--data",
        "answer.limit=6",
        "--data",
        "colour.limit=7",
    ]
    said = run("train", "my.json", *given, *(word for each in sets for word in ("--set", each)), "-o", "m")
    advice = said.partition("measure it: ")[2].split()
    assert advice == ["mmzoo", "evaluate", "m", "--dataset", "answer=answers.jsonl", "--data", "limit=6"]
    found = json.loads(run(*advice[1:], "--no-controls", "--json"))
    assert (found["task"], found["examples"], {name.partition("/")[0] for name in found["scores"]}) == ("answer", 6, {"answer"})
    assert "reproduced" in run("verify", "m", "--dataset", "answers.jsonl")
    found = json.loads(run("evaluate", "m", "--dataset", "plain.jsonl", "--no-controls", "--json"))
    assert {name.partition("/")[0] for name in found["scores"]} == {"answer"}


def launch(folder, options, processes):
    """Run the helper in processes of gloo; return its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    start = head(count=processes) if processes > 1 else head(None)
    command = [*start, str(HELPER), str(folder), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_streams_over_two_processes(tmp_path, workers):
    """No sample twice and none lost in a pass; killed and resumed, the same samples and the same weights to the last bit."""
    given = [shards(tmp_path, "a", 26, 3), shards(tmp_path, "b", 14, 2)]
    training = {**OPTIONS, "max_steps": 10, "batch_size": 4, "workers": workers, "save_every": 2, "log_every": 1}
    options = {"datasets": given, "training": training, "data": {"weights": "round-robin", "shuffle_buffer": 6}}

    def run(output, **more):
        return launch(tmp_path, {**options, "output": output, "log": output, **more}, 2)

    def read(log):
        return {path.name: path.read_text().split() for path in sorted((tmp_path / f"{log}-names").iterdir())}

    done = run("whole", log="whole-names")
    assert done.returncode == 0, done.stderr[-3000:]
    whole = read("whole")
    assert len(whole) == 20
    samples = [name for step in range(10) for rank in range(2) for name in whole[f"{step:03}-{rank}"]]
    for name, count in (("a", 26), ("b", 14)):
        own = [each for each in samples if each.startswith(name)]
        assert len(own) == 40
        assert sorted(own[:count]) == sorted(f"{name}{i}" for i in range(count))
    assert run("parts", log="first-names", kill=5).returncode != 0
    assert (tmp_path / "parts" / "checkpoints" / "checkpoint-4").is_dir()
    done = run("parts", log="rest-names", resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read("rest") == {name: own for name, own in whole.items() if int(name[:3]) >= 4}
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
