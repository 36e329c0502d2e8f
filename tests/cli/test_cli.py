"""The command line: what it prints, and how it refuses."""

import json
import subprocess
import sys

import pytest
from command_line import run

import mmzoo
from mmzoo.testing import Sample, tiny


def test_the_program_is_that_function():
    done = subprocess.run([sys.executable, "-m", "mmzoo", "check", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == run("check", "nothing", code=2).stderr


def test_version():
    assert run("--version").stdout == f"mmzoo {mmzoo.__version__}\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    mmzoo.build(tiny("cnn-product-lstm"), seed=0).save(folder / "reader")
    mmzoo.build(tiny("cnn-prefix-gpt"), seed=0).save(folder / "writer")
    rows = []
    for i, example in enumerate(Sample().load("test")):
        example.image.save(folder / f"{i}.png")
        label = f"label_{i % 2}"
        rows.append(json.dumps({"image": f"{i}.png", "question": example.text, "answer": label}))
    (folder / "test.jsonl").write_text("\n".join(rows))
    return folder


def test_list_in_words_and_in_json():
    assert "late-product" in run("list", "fusion").stdout
    assert "c = [v, l]" in run("list", "fusions").stdout
    rows = json.loads(run("list", "language-models", "--json").stdout)
    assert {"kind", "name", "summary", "plugin", "license", "source"} == set(rows[0])
    assert {row["kind"] for row in rows} == {"language_model"}
    assert {row["name"] for row in json.loads(run("list", "clip*", "--json").stdout)} == {
        "clip",
        "clip-concat-bert",
        "clip-prefix-gpt2",
        "clipcap",
    }
    assert {row["kind"] for row in json.loads(run("list", "lstm", "--json").stdout)} == {"language_model"}
    assert len(json.loads(run("list", "datasets", "--json").stdout)) > 1  # a kind, though a data set is called so too
    assert run("list", "nothing*", code=1).stdout == ""


def test_show():
    text = run("show", "prefix-mlp").stdout
    assert "length: int = 10" in text
    assert "arxiv.org/abs/2111.09734" in text
    assert "mmzoo check" in text
    assert json.loads(run("show", "gpt2", "--json").stdout)[0]["license"] == "MIT"


def test_check_says_yes_and_no():
    parts = ["--encoder", "cnn", "--language-model", "gpt-mini"]
    good = json.loads(
        run("check", *parts, "--fusion", "prefix-mlp", "--task", "vqa", "--set", "fusion.length=7", "--json").stdout
    )
    assert good["fits"]
    assert "+7 tokens" in next(p["shape"] for p in good["parts"] if p["part"] == "fusion")
    no = run("check", "--encoder", "cnn", "--language-model", "bag-of-words", "--fusion", "late-sum", "--task", "vqa", code=1)
    assert "Each language model that fits: " in no.stderr


def test_predict_generate_evaluate_and_card(saved):
    rows = json.loads(run("predict", saved / "reader", saved / "0.png", saved / "1.png", "--text", "what", "--json").stdout)
    assert [set(row) for row in rows] == [{"image", "label", "score", "value", "scores"}] * 2
    assert len(json.loads(run("generate", saved / "writer", saved / "0.png", "--prompt", "a", "--json").stdout)) == 1
    found = json.loads(run("evaluate", saved / "reader", "--dataset", saved / "test.jsonl", "--json").stdout)
    assert set(found["controls"]) == {"shuffled", "blanked"}
    assert found["examples"] == 8
    assert "| accuracy |" in run("card", saved / "reader").stdout


def test_what_is_said_after_training_can_be_done(saved, tmp_path):
    data = ["--dataset", str(saved / "test.jsonl"), "--data", "text_column=question", "--data", "target_column=answer"]
    options = [f"--set=training.{option}" for option in ("epochs=2", "batch_size=8", "precision=fp32")]
    command = ["train", "cnn-product-lstm", *data, "--split", "test", "--output", tmp_path / "m", *options]
    done = run(*command)
    assert f"measure it:  mmzoo evaluate {tmp_path / 'm'} {' '.join(data)}\n" in done.stdout
    assert "note: " not in done.stderr
    again = run(*command, "--overwrite", "--set=training.batch_size=100")
    assert "a batch of 100 holds all 8 examples" in again.stderr
    assert "--set training.batch_size=1," in again.stderr
    assert "holds a finished model" in run(*command, "--resume", code=2).stderr
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    assert "not finished" in run("predict", tmp_path / "half", saved / "0.png", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build"], "No such command"),
        (["check"], "name a recipe (`mmzoo list recipe`), or each of encoder,"),
        (["check", "--encoder", "cnn"], "fusion and language_model and task are missing"),
        (["list", "encodder"], "unknown kind"),
        (["show", "clpi"], "did you mean"),
        (["check", "clip-prefix-gpt3"], "did you mean 'clip-prefix-gpt2'"),
        (["check", "cnn-prefix-gpt", "--set", "fusion.length"], "KEY=VALUE"),
        (["check", "cnn-prefix-gpt", "--set", "fusion.lenght=2"], "fusion.lenght"),
        (["check", "cnn-prefix-gpt", "--set", "training.epochs=soon"], "training.epochs"),
        (["check", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "cnn-prefix-gpt", "--dataset", "easy-vqua", "-o", "OUT"], "easy-vqa"),
        (["train", "cnn-prefix-gpt", "--dataset", "test.jsonl", "-o", "OUT", "--data", "text_column=riddle"], "riddle"),
        (["train", "cnn-prefix-gpt", "--dataset", "test.jsonl", "-o", "OUT", "--split", "dev"], "dev"),
        (["train", "cnn-prefix-gpt", "--dataset", "test.jsonl"], "--output"),
        (["train", "cnn-prefix-gpt", "--dataset", "", "-o", "OUT"], "dataset"),
        (["train", "cnn-prefix-gpt", "--dataset", "test.jsonl", "-o", ""], "the output is empty"),
        (["train", "cnn-prefix-gpt", "--dataset", "test.jsonl", "--split", "test", "-o", "0.png/OUT"], "cannot be written"),
        (["evaluate", "reader", "--dataset", "test.jsonl", "--data", "limit"], "--data limit: write KEY=VALUE"),
        (["evaluate", "reader", "--dataset", "test.jsonl", "--metric", ""], "metric"),
        (["evaluate", "nowhere", "--dataset", "test.jsonl"], "nowhere"),
        (["predict", "reader", "nowhere.png"], "nowhere.png"),
        (["generate", "reader", "0.png"], "does not generate"),
        (["predict", "reader", "0.png", "--device", "warp"], "--device warp"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_input_is_one_message_and_exit_code_2(saved, arguments, said):
    done = run(*arguments, code=2, cwd=saved)
    assert said in done.stderr
    assert done.stdout == ""
    assert not (saved / "OUT").exists()
