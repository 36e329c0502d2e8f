"""Run the demo as a user does, and test its page."""

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import typer
from transformers import TrainerCallback
from typer.testing import CliRunner

import mmzoo
from mmzoo import cli
from mmzoo.data.open import open_dataset
from mmzoo.errors import BadRecipe, MmzooError, TrainingError, UnknownName
from mmzoo.interfaces import Example, Prediction
from mmzoo.registry.manager import plugin_manager
from mmzoo_demo import demo as command
from mmzoo_demo import report, steps
from mmzoo_demo.ask import in_fresh_process

TINY = """
encoder: {use: cnn, image_size: 16, channels: [8, 16]}
fusion: late-product
language_model: {use: bag-of-words, dim: 16}
task: classify
training: {learning_rate: 0.01, batch_size: 100, save_every: 5}
"""
VOID = {"meta", "img", "br", "hr", "link", "input"}


def run(*arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmzoo", "demo", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


class Page(HTMLParser):
    """Collect a page's elements, and its cards as mappings; fail on a tag that is not closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.cards, self.words, self.style = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if "card" in (attributes.get("class") or "").split():
            self.cards.append({})
        if tag == "img":
            self.cards[-1] |= attributes

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        self.style += data if tag == "style" else ""
        self.words.append(data)
        if attributes.get("class") in ("mark", "question"):
            self.cards[-1][attributes["class"]] = data
        elif tag == "dt" and self.cards:
            self.term = data
        elif tag == "dd" and self.cards:
            self.cards[-1][self.term] = data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Several threads on busy cores wait for each other most of the time.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run a quick demo; return its folder and its output."""
    folder = tmp_path_factory.mktemp("demo")
    done = run("--quick", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "mmzoo-demo", done


@pytest.fixture(scope="module")
def page(made):
    return Page((made[0] / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_json_is_all_that_is_on_stdout(made):
    output, done = made
    printed = json.loads(done.stdout)
    assert printed == json.loads((output / "demo.json").read_text(encoding="utf-8"))
    assert printed["finished"]
    assert printed["trained"] == ["model", "blind"]
    assert set(printed["seconds"]) == {"train", "train_blind", "measure", "reload", "report"}
    assert all(seconds > 0 for seconds in printed["seconds"].values())
    assert set(printed["scores"]) == set(steps.ROWS)
    assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in printed["scores"].values())
    for heading in ("1. Train", "2. Train its blind control", "3. Measure", "4. Load", "5. Write", "training:"):
        assert heading in done.stderr


def test_what_is_written(made):
    output, _ = made
    record = json.loads((output / "demo.json").read_text(encoding="utf-8"))
    for name in ("model", "blind"):
        run_record = mmzoo.load(output / name).provenance.run
        assert run_record["training"]["blank_images"] == (name == "blind")
        assert run_record["evaluations"][0]["split"] == "test"
        assert not (output / name / "checkpoints").exists()
    assert record["scores"]["model"] == mmzoo.load(output / "model").provenance.run["evaluations"][0]["scores"]["accuracy"]
    assert len(record["pictures"]) == 3
    for picture in record["pictures"]:
        assert (output / "images" / picture["file"]).read_bytes().startswith(b"\x89PNG")


def test_the_majority_row_is_the_commonest_answer(made):
    record = json.loads(made[1].stdout)
    examples = open_dataset(mmzoo.recipes.schema.PartConfig(use="easy-vqa", limit=steps.QUICK_LIMIT)).load("test")
    share = sum(example.targets[0] == record["commonest"] for example in examples) / len(examples)
    assert record["scores"]["majority"]["value"] == pytest.approx(share)


def test_page_needs_nothing_beside_it(page):
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for key, value in attributes.items():
            if key in ("src", "href", "xlink:href", "srcset", "action"):
                assert value.startswith(("data:image/png;base64,", "#"))
            assert "url(" not in (value or "").replace("url(#", "")
            assert not key.startswith("on")
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_cards_say_what_is_true(made, page):
    asked = {}
    examples = open_dataset("easy-vqa").load("test")
    for example in examples:
        asked.setdefault(Path(example.image).stem, {}).setdefault(example.text, example)
    assert 1 <= sum(card["mark"].endswith("Wrong") for card in page.cards) <= report.WRONG
    assert sum(card["mark"].endswith("Right") for card in page.cards) == report.RIGHT
    for card in page.cards:
        assert card["alt"].startswith("Test picture ")
        example = asked[card["alt"].removeprefix("Test picture ").partition(":")[0]][card["question"]]
        assert card["Truth"] == example.targets[0]
        assert card["mark"].endswith("Right") == (card["Answer"] == card["Truth"])
        assert 0 <= float(card["Confidence"].rstrip("%")) <= 100
        assert base64.b64decode(card["src"].partition(",")[2]) == Path(example.image).read_bytes()


def test_page_tells_how_it_was_made(made, page):
    record = json.loads(made[1].stdout)
    for fact in (
        record["command"],
        record["fingerprints"]["train"],
        record["fingerprints"]["test"],
        record["versions"]["torch"],
    ):
        assert fact in page.text
    for score in record["scores"].values():
        assert f"{score['value']:.4f}" in page.text
    assert f"asked {record['reload']['questions']} of these questions, the model gave the same answers" in page.text


def test_pictures_are_described_by_what_is_known_of_them():
    examples = [
        Example("0", "7.png", "what is the color of the circle?", ("teal",)),
        Example("1", "7.png", "is there a red shape?", ("no",)),
        Example("2", "8.png", "is there a red shape?", ("no",)),
    ]
    assert report.describe(examples) == {
        "7.png": "Test picture 7: a teal circle",
        "8.png": "Test picture 8: a coloured shape",
    }


@pytest.fixture
def strange(tmp_path):
    """Return examples whose words would be markup, with pictures, and a prediction for each."""
    source = open_dataset("easy-vqa").load("test")
    examples = [Example(f"{i}", e.image, f'<script>"{i}" & more</script>', (f"<i>{i}</i>",)) for i, e in enumerate(source[:40])]
    return examples


def render(made, examples, predictions):
    record = json.loads(made[1].stdout)
    run_record = {**mmzoo.load(made[0] / "model").provenance.run["training"], "history": []}
    gallery = report.choose(examples, predictions)
    training = {"model": run_record, "blind": run_record}
    return report.render(record, gallery, examples, predictions, training=training, recipe={"name": "<x>"}, summary="<y>")


def test_every_word_is_escaped(made, strange):
    predictions = [Prediction(label=f"<b>{i % 2}</b>" if i % 2 else e.targets[0], score=0.5) for i, e in enumerate(strange)]
    found = Page(render(made, strange, predictions))
    assert not {"script", "i", "b", "x", "y"} & {tag for tag, a in found.elements if "style" not in a}
    assert len(found.cards) == report.WRONG + report.RIGHT
    for card in found.cards:
        assert card["question"].startswith('<script>"')
        assert card["Truth"].startswith("<i>")


def test_a_model_without_a_wrong_answer_or_a_right_one(made, strange):
    right = [Prediction(label=example.targets[0]) for example in strange]
    text = Page(render(made, strange, right)).text
    assert "Nowhere in this split: all" in text
    assert "Confidence" not in text
    wrong = [Prediction(label="") for _ in strange]
    assert "Where it is right Nowhere in this split." in Page(render(made, strange, wrong)).text


def test_the_surest_wrong_answers_come_first():
    examples = [Example(str(i), f"{i}.png", "what shape is present?", ("circle",)) for i in range(30)]
    predictions = [Prediction(label="triangle" if i % 2 else "circle", score=i / 30) for i in range(30)]
    found = report.choose(examples, predictions)
    assert found.wrong == list(range(29, 5, -2))
    assert found.all_wrong == 15
    assert len(found.right) == report.RIGHT


def test_right_answers_are_of_every_kind():
    examples = open_dataset("easy-vqa").load("test")[:600]
    found = report.choose(examples, [Prediction(label=e.targets[0], score=1.0) for e in examples])
    shown = [examples[i] for i in found.right]
    assert found == report.choose(examples, [Prediction(label=e.targets[0], score=1.0) for e in examples])
    assert len({e.image for e in shown}) == report.RIGHT
    assert len({e.targets[0] for e in shown}) == 3 + 3 + 2


# The claim of equality


@pytest.mark.slow
def test_a_tampered_model_is_not_called_equal(made):
    output, done = made
    claimed = json.loads(done.stdout)["reload"]
    assert claimed == {"questions": claimed["questions"], "different": 0, "equal": True}
    examples = open_dataset("easy-vqa").load("test")[:40]
    asked = [str(e.image) for e in examples], [e.text for e in examples]
    model = mmzoo.load(output / "model")
    with torch.no_grad():
        model.task.head[-1].bias += 1e-3 * torch.arange(len(model.task.labels))
    found = steps.compare(model, output / "model", *asked)
    assert not found["equal"]
    assert found["different"] > 0


@pytest.mark.slow
def test_a_fresh_process_that_fails_is_an_error(tmp_path):
    with pytest.raises(MmzooError, match=r"could not use the model: .*no such folder"):
        in_fresh_process(tmp_path / "none", [], [])


# What to try next


def test_the_commands_at_the_end_work(made):
    record = json.loads(made[1].stdout)
    record["paths"] = {name: str(made[0].parent / path) for name, path in record["paths"].items()}
    commands = [shlex.split(line)[1:] for line in command.next_commands(record)]
    assert [words[0] for words in commands] == ["predict", "evaluate", "train", "list", "check"]
    group = typer.main.get_command(cli.app)
    for words in commands:  # each is parsed; what downloads or takes minutes is not run
        group.get_command(None, words[0]).make_context(words[0], words[1:])
    assert not mmzoo.load(made[0] / "model").training
    done = CliRunner().invoke(cli.app, commands[0])
    assert done.exit_code == 0
    assert done.stdout.startswith(record["pictures"][0]["answer"])
    assert CliRunner().invoke(cli.app, commands[3]).exit_code == 0


# What is refused


def test_a_second_run_needs_overwrite(made, monkeypatch, capsys):
    before = (made[0] / "report.html").stat().st_mtime_ns
    monkeypatch.chdir(made[0].parent)
    monkeypatch.setattr(sys, "argv", ["mmzoo", "demo", "--quick"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    output_text = capsys.readouterr()
    assert output_text.err == "error: mmzoo-demo already holds model; name another folder, or use --overwrite\n"
    assert output_text.out == ""
    assert (made[0] / "report.html").stat().st_mtime_ns == before


def call(output, **options):
    """Call the command as a function, with the defaults of its options."""
    given = {
        "recipe": command.RECIPE,
        "epochs": None,
        "quick": True,
        "resume": False,
        "overwrite": False,
        "as_json": False,
    }
    command.demo(output=Path(output), **{**given, **options})


def test_what_cannot_be_begun(made, tmp_path):
    with pytest.raises(TrainingError, match="holds no demo to resume"):
        call(tmp_path, resume=True)
    with pytest.raises(TrainingError, match="choose one"):
        call(made[0], resume=True, overwrite=True)
    with pytest.raises(TrainingError, match=r"was started with other options; resume with:  mmzoo demo .* --quick --resume"):
        call(made[0], resume=True, epochs=7)
    with pytest.raises(UnknownName, match="did you mean 'cnn-product-lstm'"):
        call(tmp_path, recipe="cnn-produkt-lstm")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        call(tmp_path / "file")
    (tmp_path / "bad.yaml").write_text("encoder: cnn")
    with pytest.raises(BadRecipe):
        call(tmp_path, recipe=str(tmp_path / "bad.yaml"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "file"]


@pytest.mark.parametrize("module", command.NEEDED)
def test_a_missing_package_is_named_before_training(module, monkeypatch, tmp_path):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MmzooError, match=rf'{command.NEEDED[module]} is not installed.*pip install "mmzoo\[demo\]"'):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_is_listed_without_torch():
    code = "import sys, mmzoo_demo.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Stopping


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            signal.raise_signal(signal.SIGINT)


class Interrupting:
    """Interrupt training like Ctrl-C, from a plugin."""

    @mmzoo.hookimpl
    def mmzoo_train_callbacks(self, recipe):
        return [Interrupt()]


@pytest.mark.slow
def test_a_stopped_demo_goes_on(tmp_path, monkeypatch, capsys):
    recipe, output = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(TINY)
    monkeypatch.setattr(steps, "QUICK_LIMIT", 300)
    plugin = Interrupting()
    plugin_manager().manager.register(plugin)
    try:
        with pytest.raises(typer.Exit) as stopped:
            call(output, recipe=str(recipe))
        assert stopped.value.exit_code == 128 + signal.SIGINT
        advice = capsys.readouterr().err.splitlines()[-1]
        assert advice.startswith("stopped at step ")
        assert f"continue with:  mmzoo demo --output {output} --recipe {recipe} --quick --resume" in advice
        record = json.loads((output / "demo.json").read_text())
        assert (record["finished"], record["trained"]) == (False, [])
        with pytest.raises(TrainingError, match="--resume continues it"):
            call(output, recipe=str(recipe))
        # The main model is past the step at which the plugin stops it; the control is not.
        with pytest.raises(typer.Exit):
            call(output, recipe=str(recipe), resume=True)
        assert json.loads((output / "demo.json").read_text())["trained"] == ["model"]
    finally:
        plugin_manager().manager.unregister(plugin)
    # An answer that differs is reported, and the exit code is that of a failed check.
    monkeypatch.setattr(steps, "compare", lambda *_: {"questions": 3, "different": 1, "equal": False})
    with pytest.raises(typer.Exit) as ended:
        call(output, recipe=str(recipe), resume=True)
    assert ended.value.exit_code == 1
    output_text = capsys.readouterr()
    assert "was trained before" in output_text.out
    assert "1 of 3 answers or confidences DIFFER" in output_text.out
    assert "the answers of the reloaded model differ" in output_text.err
    assert "1 of 3 answers or confidences differently" in Page((output / "report.html").read_text(encoding="utf-8")).text
    record = json.loads((output / "demo.json").read_text())
    assert (record["finished"], record["trained"]) == (True, ["model", "blind"])

    unbroken = mmzoo.train(
        recipe,
        dataset=steps.PartConfig(use="easy-vqa", limit=steps.QUICK_LIMIT),
        output=tmp_path / "unbroken",
        training={"epochs": steps.QUICK_EPOCHS, "log_every": 2},
        progress=False,
    )
    resumed = mmzoo.load(output / "model").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.model.state_dict().items())
