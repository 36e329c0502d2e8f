"""Trackers: what `training.report_to` logs is read back from TensorBoard's files; the others are stood for by fake modules."""

import io
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import mmzoo
from mmzoo.errors import PluginWarning, TrainingError
from mmzoo.interfaces import Example
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import SkipStepWithoutLoss
from mmzoo_trackers.samples import SIDE, markdown_table, numbered_grid, rows_of
from mmzoo_trackers.tracker import flatten_recipe

OPTIONS = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "fp32", "report_to": "tensorboard"}
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No settings of the user, and no network."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "TENSORBOARD_")):
            monkeypatch.delenv(name)


def train(recipe, output, dataset=None, **more):
    options = OPTIONS | more.pop("training", {})
    return mmzoo.train(recipe, dataset=dataset or Sample(), output=output, training=options, progress=False, **more)


def at_each_step(monkeypatch, act):
    """Call ``act(trainer, state)`` at the end of each step, as a validation does."""
    monkeypatch.setattr(SkipStepWithoutLoss, "on_step_end", lambda self, args, state, *_, **more: act(self.trainer, state), False)


def validate(trainer, state):
    """Report scores and sample predictions after step 2."""
    if state.global_step == 2:
        samples = [sample("a", Image.new("RGB", (600, 300), RED)), sample("b", "/nowhere/b.png"), sample("c", blue())]
        event = trainer.callback_handler.call_event
        event("on_evaluate", trainer.args, state, trainer.control, metrics={"classify/accuracy": 0.75}, samples=samples)


def sample(name, source):
    text, targets = "what | is *it*\n?", ["red", "crimson"]
    return {"id": name, "task": "classify", "text": text, "targets": targets, "prediction": "blue", "inputs": {"image": source}}


def blue():
    file = io.BytesIO()
    Image.new("RGB", (100, 200), BLUE).save(file, "PNG")
    return {"bytes": file.getvalue()}


def read(output):
    events = EventAccumulator(str(output / "logs"), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def curve(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def text(events, name):
    return events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_losses_by_term_and_rates_by_part_are_logged(tmp_path):
    tasks = {"colour": {"use": "classify"}, "answer": {"use": "vqa"}}
    parts = {"encoder": {"use": "cnn", "train": "frozen"}, "fusion": {"use": "prefix-mlp", "learning_rate": 1e-2}}
    recipe = tiny(mmzoo.Recipe.of({**parts, "language_model": "gpt-mini", "tasks": tasks}))
    data = [Example(e.id, e.image, e.text, {"colour": e.targets, "answer": e.targets}) for e in Sample().load("train")]
    given = type("Given", (Sample,), {"load": lambda self, split: data})()
    run = train(recipe, tmp_path / "m", given, training={"schedule": "constant", "learning_rate": 1e-3})
    events = read(tmp_path / "m")
    assert curve(events, "train/loss") == [(e["step"], pytest.approx(e["loss"])) for e in run.history]
    assert {term.partition(".")[0] for term in run.history[0]["terms"]} == {"colour", "answer"}
    for term in run.history[0]["terms"]:
        assert curve(events, f"train/losses/{term}") == [(e["step"], pytest.approx(e["terms"][term])) for e in run.history]
    rates = {name: curve(events, name)[-1][1] for name in events.Tags()["scalars"] if "learning_rate" in name}
    expected = {"fusions.image": 1e-2, "language_model": 1e-3, "tasks.colour": 1e-3}  # not the frozen encoder, nor vqa's head
    assert rates == {f"train/learning_rate/{part}": pytest.approx(rate) for part, rate in expected.items()}
    assert len(curve(events, "train/grad_norm")) == 4
    assert '"run_name": "m"' in text(events, "args")
    assert "    encoders.image.train: frozen" in text(events, "recipe").splitlines()
    assert "    training.seed: 0" in text(events, "recipe").splitlines()


def test_scores_and_sample_predictions_with_pictures_are_logged(classifier, tmp_path, monkeypatch):
    at_each_step(monkeypatch, validate)
    train(classifier, tmp_path / "m")
    events = read(tmp_path / "m")
    assert curve(events, "eval/classify/accuracy") == [(2, 0.75)]
    (event,) = events.Images("eval/samples")
    grid = Image.open(io.BytesIO(event.encoded_image_string))
    assert event.step == 2
    colours = {colour: count for count, colour in grid.getcolors(1 << 16)}
    assert colours[RED] == SIDE * SIDE // 2  # 256 x 128
    assert colours[BLUE] == 100 * 200  # not enlarged; the one that cannot be read is left out
    rows = text(events, "eval/samples").splitlines()
    assert len(rows) == 2 + 3
    assert rows[3] == r"| 2 | b | classify | what \| is \*it\* ? | red \| crimson | blue |"


def test_a_validation_is_logged_with_its_pictures(classifier, tmp_path):
    run = train(classifier, tmp_path / "m", training={"evaluate_every": 2, "metric": "loss"}, validation=0.5)
    events, history = read(tmp_path / "m"), run.validation["history"]
    for name in ("accuracy", "loss"):
        assert curve(events, f"eval/{name}") == [(entry["step"], pytest.approx(entry["scores"][name])) for entry in history]
    assert [event.step for event in events.Images("eval/samples")] == [2, 4]
    for event in events.Images("eval/samples"):
        grid = Image.open(io.BytesIO(event.encoded_image_string))
        assert len(grid.getcolors(1 << 16)) > 2  # not only white, and the numbers in black
    rows = text(events, "eval/samples").splitlines()[2:]
    assert len(rows) == run.validation["examples"]
    predictions = run.model.predict_examples(Sample().load("train"))
    by_id = {example.id: each.text for example, each in zip(Sample().load("train"), predictions, strict=True)}
    if run.validation["best"]["step"] == 4:  # whose weights the model has
        assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [by_id[row.split(" | ")[1]] for row in rows]


@pytest.mark.parametrize("stop", ["signal", "crash"])
def test_a_resumed_run_continues_its_curves(classifier, tmp_path, monkeypatch, stop):
    """After a crash at step 5, with step 4 logged and the checkpoint of step 3, step 4 is there once."""

    def act(trainer, state):
        if state.global_step == 5:
            if stop == "crash":
                raise RuntimeError("crash")
            trainer.stop.signal = int(signal.SIGTERM)

    at_each_step(monkeypatch, act)
    options = {"max_steps": 6, "save_every": 3}
    if stop == "crash":
        with pytest.raises(RuntimeError, match="crash"):
            train(classifier, tmp_path / "m", training=options)
        assert [step for step, _ in curve(read(tmp_path / "m"), "train/loss")] == [1, 2, 3, 4]
    else:
        train(classifier, tmp_path / "m", training=options)
    monkeypatch.undo()
    run = train(classifier, tmp_path / "m", training=options, resume=True)
    assert curve(read(tmp_path / "m"), "train/loss") == [(e["step"], pytest.approx(e["loss"])) for e in run.history]


def test_a_run_that_replaces_another_has_its_own_curves(classifier, tmp_path):
    train(classifier, tmp_path / "m", training={"max_steps": 8})
    run = train(classifier, tmp_path / "m", overwrite=True, training={"learning_rate": 1e-4})
    assert curve(read(tmp_path / "m"), "train/loss") == [(e["step"], pytest.approx(e["loss"])) for e in run.history]


def test_nothing_is_logged_unless_asked(classifier, tmp_path):
    train(classifier, tmp_path / "m", training={"report_to": []})
    train(classifier, tmp_path / "n", training={"report_to": "none"})
    assert not (tmp_path / "m" / "logs").exists()
    assert not (tmp_path / "n" / "logs").exists()


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'\\? There are: .*, wandb$"),
        ("comet_ml", "comet_ml is not installed; to install it: pip install comet-ml$"),
        ("kubeflow", "kubeflow cannot be used: .*KUBEFLOW_TRAINER_SERVER_URL"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_before_anything_is_written(classifier, tmp_path, monkeypatch, tracker, message):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(TrainingError, match=f"^training.report_to: {message}"):
        train(classifier, tmp_path / "m", training={"report_to": ["tensorboard", tracker]})
    assert not (tmp_path / "m").exists()


def test_a_tracker_that_cannot_write_stops_the_run_before_the_first_step(classifier, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    with pytest.raises(TrainingError, match="tensorboard cannot start a run: .*; free some space, or name another folder"):
        train(classifier, tmp_path / "m")


def test_a_tracker_that_fails_later_is_reported_once_and_training_goes_on(classifier, tmp_path, monkeypatch):
    def add_scalar(self, name, *_):
        raise OSError("No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    with pytest.warns(PluginWarning) as warned:
        run = train(classifier, tmp_path / "m")
    assert [str(w.message).count("No space left on device") for w in warned] == [1]
    assert "its TensorBoard.on_log failed" in str(warned[0].message)
    assert run.finished
    assert [e["step"] for e in run.history] == [1, 2, 3, 4]


def test_only_the_first_process_logs(classifier, tmp_path, monkeypatch):
    from mmzoo_trackers.trackers import make_trackers

    recipe = mmzoo.build(classifier).recipe.model_copy(deep=True)
    recipe.training.report_to = ["tensorboard"]
    assert len(make_trackers(recipe)) == 1
    monkeypatch.setenv("RANK", "1")
    assert make_trackers(recipe) == []
    recipe.training.report_to = ["tensorbord"]
    with pytest.raises(TrainingError):  # as in all processes
        make_trackers(recipe)


def test_what_is_logged_of_a_recipe_has_no_folders_and_no_long_lists(classifier):
    labels = [f"label {i}" for i in range(300)]
    recipe = mmzoo.Recipe.of(
        {
            "encoder": {"use": "hf-vision:/home/me/models/tower@main", "weights": "~/runs/first"},
            "fusion": "prefix-mlp",
            "language_model": "gpt-mini",
            "task": {"use": "classify", "labels": labels},
            "training": {"learning_rate": 1e-4},
        }
    )
    flat = flatten_recipe(recipe)
    assert flat["tasks.classify.labels"] == "300 items"
    assert flat["training.learning_rate"] == 1e-4
    assert flat["training.batch_size"] == 32  # defaults too
    assert flat["encoders.image.weights"] == "first"
    assert not any(name in str(flat) for name in ("/home", "~"))


def test_samples_without_pictures_have_a_table(classifier):
    rows = rows_of([{**sample("a", None), "inputs": {}, "text": None}], mmzoo.build(classifier))
    assert numbered_grid(rows) is None
    assert markdown_table(rows).splitlines()[-1] == r"| 1 | a | classify |  | red \| crimson | blue |"


# --- fake modules: what the callbacks of transformers and ours call


class Config(dict):
    def update(self, values, allow_val_change=True):
        super().update(values)


def install(monkeypatch, name, **attributes):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def stop_at_3(trainer, state):
    validate(trainer, state)
    if state.global_step == 3:
        trainer.stop.signal = int(signal.SIGTERM)


def test_trackio(classifier, tmp_path, monkeypatch):
    runs, logged = [], []
    space = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    install(
        monkeypatch,
        "trackio",
        init=lambda **options: runs.append(options),
        config=Config(),
        context_vars=space,
        log=lambda metrics, step=None: logged.append((step, metrics)),
        finish=lambda: runs.append("finished"),
        Table=lambda data: data,
        Image=lambda picture: picture.size,
    )
    at_each_step(monkeypatch, stop_at_3)
    train(classifier, tmp_path / "m", training={"report_to": "trackio"})
    train(classifier, tmp_path / "m", training={"report_to": "trackio"}, resume=True)
    assert [run if run == "finished" else (run["project"], run["name"], run["resume"]) for run in runs] == [
        ("mmzoo", "m", "never"),
        "finished",
        ("mmzoo", "m", "allow"),
        "finished",
    ]
    assert sys.modules["trackio"].config["training.seed"] == 0
    assert [step for step, metrics in logged if "train/loss" in metrics] == [1, 2, 3, 4]
    assert [(step, metrics["eval/classify/accuracy"]) for step, metrics in logged if "eval/classify/accuracy" in metrics] == [
        (2, 0.75)
    ]
    ((step, table),) = [(step, metrics["eval/samples"]) for step, metrics in logged if "eval/samples" in metrics]
    assert (step, [row.get("picture") for row in table]) == (2, [(256, 128), None, (100, 200)])
    assert table[0]["target"] == "red | crimson"


class FakeRun(SimpleNamespace):
    def _label(self, **_):
        pass


@pytest.fixture
def wandb(monkeypatch):
    logged, runs = [], []

    def init(**options):
        if options.get("project") == "offline":
            raise ConnectionError("api_key not configured (no-tty)")
        runs.append(options)
        module.run = FakeRun(id=options.get("id") or f"new{len(runs)}", summary={})
        return module.run

    def finish():
        runs.append("finished")
        module.run = None

    for name in ("wandb.sdk", "wandb.sdk.lib"):
        install(monkeypatch, name)
    install(monkeypatch, "wandb.sdk.lib.config_util", ConfigError=type("ConfigError", (Exception,), {}))
    module = install(monkeypatch, "wandb", run=None, config=Config(), init=init, finish=finish, log=logged.append)
    module.Image, module.Table = (lambda picture: picture.size), (lambda columns, data: (columns, data))
    module.runs, module.logged = runs, logged
    return module


def test_wandb(classifier, tmp_path, monkeypatch, wandb):
    at_each_step(monkeypatch, stop_at_3)
    train(classifier, tmp_path / "m", training={"report_to": "wandb"})
    train(classifier, tmp_path / "m", training={"report_to": "wandb"}, resume=True)
    train(classifier, tmp_path / "n", training={"report_to": "wandb", "max_steps": 1})
    ids = [run if run == "finished" else (run["name"], run["id"]) for run in wandb.runs]
    assert ids == [("m", None), "finished", ("m", "new1"), "finished", ("n", None), "finished"]
    assert wandb.runs[0]["project"] == "mmzoo"
    assert wandb.config["training.learning_rate"] == classifier.training.learning_rate
    assert [entry["train/global_step"] for entry in wandb.logged if "train/loss" in entry] == [1, 2, 3, 4, 1]
    ((columns, data),) = [entry["eval/samples"] for entry in wandb.logged if "eval/samples" in entry]
    assert columns == ["picture", "id", "task", "text", "target", "prediction"]
    assert [row[0] for row in data] == [(256, 128), None, (100, 200)]


def test_the_run_of_a_training_that_failed_gets_nothing_of_the_next_one(classifier, tmp_path, monkeypatch, wandb):
    def fail(trainer, state):
        raise RuntimeError("failed")

    at_each_step(monkeypatch, fail)
    with pytest.raises(RuntimeError):
        train(classifier, tmp_path / "m", training={"report_to": "wandb"})
    at_each_step(monkeypatch, lambda *_: None)
    train(classifier, tmp_path / "n", training={"report_to": "wandb"})
    assert [run if run == "finished" else run["name"] for run in wandb.runs] == ["m", "finished", "n", "finished"]


def test_a_run_that_the_user_started_is_used_and_stays_open(classifier, tmp_path, wandb):
    wandb.run = own = FakeRun(id="own", summary={})
    train(classifier, tmp_path / "m", training={"report_to": "wandb"})
    assert wandb.run is own
    assert wandb.runs == []
    assert len(wandb.logged) > 4


def test_a_tracker_that_needs_a_login_is_refused_with_what_to_do(classifier, tmp_path, monkeypatch, wandb):
    monkeypatch.setenv("WANDB_PROJECT", "offline")
    with pytest.raises(
        TrainingError, match=r"wandb cannot start a run: api_key not configured \(no-tty\); log in with `wandb login`"
    ):
        train(classifier, tmp_path / "m", training={"report_to": "wandb"})
    assert not (tmp_path / "m").exists()


def test_mlflow(classifier, tmp_path, monkeypatch):
    runs, params, logged, tables, images = [], {}, [], {}, []

    def start_run(run_id=None, run_name=None, **_):
        module.active = SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))
        runs.append(run_id or run_name)
        return module.active

    def end_run():
        module.active = None

    module = install(monkeypatch, "mlflow", start_run=start_run, end_run=end_run, active=None, __version__="3.0")
    module.utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
    module.is_tracking_uri_set, module.get_tracking_uri, module.active_run = (lambda: True), (lambda: ""), (lambda: module.active)
    module.log_params = lambda values, **_: params.update(values)
    module.log_metrics = lambda metrics, step, **_: logged.append((step, metrics))
    module.log_table = lambda columns, file: tables.update({file: columns})
    module.log_image = lambda image, key, step: images.append((key, step, image.size))
    module.Image = lambda picture: picture.getpixel((0, 0))
    at_each_step(monkeypatch, stop_at_3)
    train(classifier, tmp_path / "m", training={"report_to": "mlflow"})
    train(classifier, tmp_path / "m", training={"report_to": "mlflow"}, resume=True)
    assert runs == ["m", "new"]
    assert module.active is None
    assert params["training.seed"] == 0
    assert [step for step, entry in logged if "loss" in entry] == [1, 2, 3, 4]
    assert (2, {"eval_classify/accuracy": 0.75}) in logged
    assert tables["eval/samples-2.json"]["picture"] == [RED, (255, 255, 255), BLUE]
    assert tables["eval/samples-2.json"]["id"] == ["a", "b", "c"]
    assert [image[:2] for image in images] == [("eval/samples", 2)]
