"""Faults that readers found in models of several encoders, fusions and tasks; each test failed before its mend."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from command_line import run

import mmzoo
from mmzoo import Example
from mmzoo.data.collate import tensors
from mmzoo.errors import BadRecipe, DataError, UnknownName
from mmzoo.evaluation.controls import make_conditions
from mmzoo.evaluation.run import Evaluation
from mmzoo.evaluation.statistics import Score
from mmzoo.recipes.reading import read_recipe
from mmzoo.testing.small import Sample, tiny

EXAMPLES = Sample(8).load("train")
RED, GREEN = EXAMPLES[0].image, EXAMPLES[1].image
BOTH = {"image": "cnn", "audio": "log-mel-gru"}
ONE_STEP = {"max_steps": 1, "batch_size": 8, "precision": "fp32"}


class Given(mmzoo.Dataset):
    """The examples that a test gives."""

    def __init__(self, *examples):
        super().__init__(None)
        self.examples = examples

    def splits(self):
        return ["train"]

    def load(self, split):
        return list(self.examples)


def build(**parts):
    """Return a tiny model whose gates are open."""
    model = mmzoo.build(tiny(read_recipe(**parts)), seed=0)
    with torch.no_grad():
        for name, parameter in model.fusions.named_parameters():
            parameter.fill_(1) if name.endswith("gates") else None
    return model


def train(recipe, dataset, output, **options):
    return mmzoo.train(recipe, dataset=dataset, output=output, progress=False, training={**ONE_STEP, **options})


def batch_of(model, *examples):
    return tensors(model.collator(training=True)(list(examples)), "cpu")


def values(model, *examples):
    return [prediction.value for prediction in model.predict_examples(list(examples))]


# States and positions


@pytest.mark.parametrize("fusion", ["prefix-mlp", "projector", "cross-attention"])
def test_an_input_after_the_last_word_counts(fusion):
    model = build(encoder="cnn", fusion=fusion, language_model="gpt-mini", task="regress")
    for text in ("what is <image>", "<image>"):
        red, green = values(model, Example("1", RED, text), Example("2", GREEN, text))
        assert abs(red - green) > 1e-5, text
    short = Example("1", RED, "<image>")
    both = values(model, short, Example("2", RED, "what color is this <image> in words"))
    assert both[0] == pytest.approx(values(model, short)[0], abs=1e-5)


def test_a_first_token_is_predicted_from_a_start_where_every_input_is_missing():
    model = build(encoders=BOTH, fusion="prefix-mlp", language_model="gpt-mini", task="caption")

    def first(target):
        batch = batch_of(model, Example("1", targets=(target,)))
        column = (batch["tasks"]["caption"]["labels"][0] != -100).nonzero()[0]
        return model.task_outputs(batch)["caption"].predicting(torch.zeros_like(column), column)

    assert torch.allclose(first("a cat"), first("a big dog"), atol=1e-6)


def test_an_lstm_reads_and_writes_where_every_input_is_missing():
    model = build(encoders=BOTH, fusion="prefix-mlp", language_model="lstm", task="caption")
    bare, full = Example("1"), Example("2", RED, audio=EXAMPLES[0].audio)
    alone, together = model.predict_examples([bare])[0], model.predict_examples([bare, full])[0]
    assert (alone.label, alone.score) == (together.label, pytest.approx(together.score, abs=1e-6))
    assert isinstance(model.generate(max_new_tokens=3), str)


@pytest.mark.parametrize("language", ["t5", "gpt-mini"])
def test_a_row_without_placeholder_attends_the_same_beside_one_with_it(language):
    fusions = {"image": "cross-attention", "audio": "prefix-mlp"}
    model = build(encoders=BOTH, fusions=fusions, language_model=language, task="regress")
    without = Example("1", RED, "what is it", audio=EXAMPLES[0].audio)
    placed = Example("2", GREEN, "is <image> it", audio=EXAMPLES[1].audio)
    assert values(model, without, placed)[0] == pytest.approx(values(model, without)[0], abs=1e-5)
    assert values(model, without, placed)[1] == pytest.approx(values(model, placed)[0], abs=1e-5)


@pytest.mark.parametrize("task", ["regress", "vqa"])
def test_many_images_beside_a_long_text_fit_the_context(task):
    model = build(encoder="cnn", fusion="projector", language_model="gpt2", task=task)  # with 256 learned positions
    count = 200 // model.fusion.added_tokens
    many, long = Example("1", [RED] * count, "<image>" * count), Example("2", GREEN, "<image>" + "x" * 200)
    together = model.predict_examples([many, long], scores=True)
    for example, row in zip([many, long], together, strict=True):
        (alone,) = model.predict_examples([example], scores=True)
        assert row.label == alone.label
        assert [row.value or row.score] == pytest.approx([alone.value or alone.score], rel=1e-4)


# Targets by name


@pytest.fixture
def colours():
    return tiny(read_recipe(encoder="cnn", fusion="late-sum", language_model="lstm", tasks={"colour": "classify"}))


def test_a_named_target_that_is_not_there_is_refused(colours, tmp_path):
    data = Given(*(Example(e.id, e.image, e.text, {"hue": e.targets}) for e in EXAMPLES))
    single = read_recipe(colours.to_dict(), tasks={"colour": None, "classify": {"use": "classify", "target": "nope"}})
    with pytest.raises(DataError, match="no example has a target 'nope'.*the data has hue"):
        train(single, data, tmp_path / "m")
    (tmp_path / "a.csv").write_text("image,text,hue,label\na.png,what,red,x\na.png,what,blue,y\n")
    with pytest.raises(DataError, match="no column serves the task 'nope'"):
        train(single, str(tmp_path / "a.csv"), tmp_path / "m")


def test_a_single_task_of_its_own_name_reads_its_own_targets_only(colours, tmp_path):
    named = [Example(e.id, e.image, e.text, {"colour" if i % 2 else "mood": e.targets}) for i, e in enumerate(EXAMPLES)]
    named[0] = Example("0", RED, "what", {"mood": ("good",)})
    model = train(colours, Given(*named), tmp_path / "m").model
    assert model.recipe.task.options["labels"] == sorted({e.targets[0] for e in EXAMPLES[1::2]})
    assert batch_of(model, *named)["tasks"]["colour"]["rows"].tolist() == [1, 3, 5, 7]
    measured = mmzoo.evaluate(model, dataset=Given(*named), metrics=["accuracy"], controls=[], progress=False)
    right = [p.label == e.targets["colour"][0] for p, e in zip(measured.predictions, named, strict=True) if "colour" in e.targets]
    assert measured.scores["accuracy"].value == sum(right) / 4


def test_targets_are_texts():
    assert Example("1", targets="positive").targets == ("positive",)
    assert Example("1", targets={"mood": "good"}).targets == {"mood": ("good",)}
    for wrong in ((1,), {"mood": (None,)}):
        with pytest.raises(DataError, match="targets must be texts"):
            Example("1", targets=wrong)


# Tasks


def test_the_comparison_takes_the_first_encoder_with_an_input():
    model = build(encoders={"empty": "none", "image": "cnn"}, fusion="none", language_model="lstm", task="contrastive")
    assert model.task.encoder == "image"
    assert model.predict(image=RED, text="red").score != model.predict(image=GREEN, text="red").score


@pytest.mark.parametrize("tasks", [{"a": "regress", "b": "caption"}, {"a": "caption", "b": "caption"}])
def test_tasks_that_share_a_text_predict(tasks):
    model = build(encoder="cnn", fusion="prefix-mlp", language_model="gpt-mini", tasks=tasks)
    examples = [Example(e.id, e.image, e.text, {"a": (str(i),), "b": e.targets}) for i, e in enumerate(EXAMPLES[:2])]
    assert model.collator(training=False)(examples[:1])["tasks"]["b"]["text_of"] == "a"
    metrics = ["a/mae" if tasks["a"] == "regress" else "a/exact-match", "b/exact-match"]
    quick = {"controls": [], "progress": False, "max_new_tokens": 4}
    found = mmzoo.evaluate(model, dataset=Given(*examples), metrics=metrics, batch_size=1, **quick)
    for row, example in zip(found.predictions, examples, strict=True):
        alone = model.predict(image=example.image, text=example.text, task="b", max_new_tokens=4)
        assert row["b"].label == alone.label


def test_pairs_without_the_compared_input_are_not_measured():
    model = build(encoders=BOTH, fusion="late-sum", language_model="lstm", task="contrastive")
    data = [Example(str(i), e.image, targets=e.targets) for i, e in enumerate(EXAMPLES[:3])]
    without = Example("x", audio=EXAMPLES[0].audio, targets=("none",))
    few, more = (
        mmzoo.evaluate(model, dataset=Given(*rows), controls=[], progress=False).scores for rows in (data, [*data, without])
    )
    assert few == more


def test_several_images_train_beside_a_comparison(tmp_path):
    recipe = read_recipe(encoder="cnn", fusion="prefix-mlp", language_model="gpt-mini", tasks={"a": "vqa", "b": "contrastive"})
    pairs = [Example(str(i), [RED, GREEN], f"<image> or <image> {i}", (f"it is {i}",)) for i in range(4)]
    assert train(tiny(recipe), Given(*pairs), tmp_path / "m").steps == 1


def test_wrong_placeholders_are_found_before_the_first_step(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(mmzoo.MultimodalModel, "forward", lambda *_, **__: pytest.fail("a step was done"))
    late = Example("late", RED, "<image> <image>", ("red",))
    with pytest.raises(DataError, match="example late: 2 placeholders '<image>' in the text and 1 image"):
        train(colours, Given(*EXAMPLES * 3, late), tmp_path / "m", batch_size=1)


# Modes and several callers


@pytest.fixture
def writer():
    model = build(encoder="cnn", fusion="prefix-mlp", language_model="gpt-mini", task="vqa")
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(3)
    return model


def test_a_prediction_beside_an_open_stream_runs_in_evaluation_mode(writer):
    modes = []
    stream = writer.stream(RED, "what", max_new_tokens=64)
    assert next(stream)
    writer.train()
    writer.encoder.register_forward_hook(lambda *_: modes.append(writer.encoder.training))
    writer.predict(RED, "what", max_new_tokens=1)
    assert modes == [False]
    stream.close()
    assert writer.training


def test_evaluation_mode_that_is_set_beside_an_open_stream_stays(writer):
    writer.train()
    stream = writer.stream(RED, "what", max_new_tokens=64)
    assert next(stream)
    writer.eval()
    stream.close()
    assert not writer.training
    assert not writer.language_model.training


@torch.no_grad()
def test_a_call_of_a_masked_model_in_the_middle_of_another_does_not_disturb_it():
    language = build(encoder="cnn", fusion="late-concat", language_model="bert-decoder", task="caption").language_model
    given = [torch.randn(1, 3 + i, language.spec.dim) for i in range(8)]
    states = lambda each: language(each, torch.ones(each.shape[:2], dtype=torch.long))  # noqa: E731
    alone, inner = list(map(states, given)), []

    def disturb(*_):
        if not inner:
            inner.append(None)
            with ThreadPoolExecutor(1) as other:
                inner[0] = other.submit(states, given[1]).result()

    handle = language.model.register_forward_pre_hook(disturb)
    torch.testing.assert_close([states(given[0]), inner[0]], alone[:2])
    handle.remove()
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(states, given * 4)), alone * 4)


def test_recomputation_can_be_turned_off(writer):
    calls, batch = [], batch_of(writer, Example("1", RED, "what", ("red",)))
    inner = next(next(iter(writer.language_model.blocks())).children())
    inner.register_forward_pre_hook(lambda *_: calls.append(1))
    writer.train()
    for on, count in ((True, 2), (False, 1)):
        writer.checkpoint_blocks(on)
        calls.clear()
        writer(**batch)["loss"].backward()
        assert len(calls) == count


# Recipes


def test_changes_of_a_single_part_keep_its_name():
    late = read_recipe("cnn-concat-lstm", encoders={"audio": "log-mel-gru"}, fusions={"audio": "late-sum"})
    assert {name: part.use for name, part in late.fusions.items()} == {"image": "late-concat", "audio": "late-sum"}
    assert mmzoo.build(tiny(late), seed=0).recipe.fusions.keys() == {"image", "audio"}
    frozen = read_recipe("cnn-concat-lstm", fusions={"image": {"train": "frozen"}})
    assert (frozen.fusion.use, frozen.fusion.train) == ("late-concat", "frozen")
    named = read_recipe(encoder="cnn", fusion="late-sum", language_model="lstm", tasks={"colour": "classify"})
    assert read_recipe(named, task={"weight": 2}).tasks["colour"].weight == 2
    with pytest.raises(BadRecipe, match="encoder: this recipe has several; name one: encoders.image, encoders.audio"):
        read_recipe(late, encoder="cnn")
    with pytest.raises(BadRecipe, match="by name under fusions"):
        read_recipe(encoders=BOTH, fusion={"image": "late-sum", "audio": "late-sum"}, language_model="lstm", task="classify")


@pytest.mark.parametrize("name", ["text", "type", "training", "keys"])
def test_reserved_names_of_encoders(name):
    with pytest.raises(BadRecipe, match=f"encoders.{name}: this name is reserved"):
        mmzoo.check(encoders={name: "cnn", "b": "cnn"}, fusion="tensor-fusion", language_model="lstm", task="contrastive")


def test_too_many_parts():
    with pytest.raises(BadRecipe, match="tasks: .*at most 100"):
        mmzoo.check("cnn-concat-lstm", tasks={f"t{i}": "classify" for i in range(100)})


def test_names_that_a_model_does_not_have(writer):
    with pytest.raises(BadRecipe, match="no task"):
        writer.predict(RED, "what", task=["a"])
    with pytest.raises(UnknownName, match=r"no part 'encoders.x'; it has encoders.image"):
        writer.part("encoders.x")
    with pytest.raises(DataError, match="unknown control 'shuffled:'"):
        make_conditions(EXAMPLES, ["shuffled:"], seed=0, modalities=["image"])


def test_parts_start_from_models_of_other_numbers_of_encoders(tmp_path):
    parts = {"language_model": "lstm", "task": "classify"}
    fusions = {"image": "late-concat", "audio": "late-sum"}
    recipes = {
        "one": tiny(read_recipe(encoder="cnn", fusion="late-concat", **parts)),
        "two": tiny(read_recipe(encoders=BOTH, fusions=fusions, **parts)),
    }
    for i, (name, recipe) in enumerate(recipes.items()):
        mmzoo.build(recipe, seed=i).save(tmp_path / name, full=True)
    for here, there in (("one", "two"), ("two", "one")):
        key = next(key for key in recipes[here].parts() if key.startswith("fusions"))
        model = mmzoo.build(recipes[here].with_part(key, weights=str(tmp_path / there)), seed=2)
        saved = mmzoo.load(tmp_path / there).part("fusions.image").state_dict()
        own = {name: value for name, value in model.part("fusions.image").state_dict().items() if not name.startswith("missing.")}
        assert own.keys() == {name for name in saved if not name.startswith("missing.")}
        assert all(torch.equal(saved[name], value) for name, value in own.items())
    photo = tiny(read_recipe(encoders={"photo": "cnn", "sound": "log-mel-gru"}, fusion="late-sum", **parts))
    model = mmzoo.build(photo.with_part("encoders.photo", weights=str(tmp_path / "two")), seed=3)
    saved = mmzoo.load(tmp_path / "two").part("encoders.image").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.part("encoders.photo").state_dict().items())


# What is said


def test_what_is_ignored_is_named():
    low, high = Score(0.2, 0.1, 0.3), Score(0.8, 0.7, 0.9)
    controls = {
        "shuffled": {"a/accuracy": low, "b/mae": low},
        "shuffled:image": {"a/accuracy": low, "b/mae": low},
        "shuffled:audio": {"a/accuracy": high, "b/mae": low},
    }
    found = Evaluation("d", "test", 9, "", {"a/accuracy": high, "b/mae": low}, controls, modalities=("image", "audio"))
    found.errors = frozenset({"b/mae"})
    assert found.ignored == [
        "the task b scores no better than with shuffled images and audio",
        "the model scores no better than with shuffled audio in any task",
    ]
    alone = Evaluation("d", "test", 9, "", {"accuracy": low}, {"shuffled": {"accuracy": low}})
    assert alone.ignored == ["the model scores no better than with shuffled images"]


def test_every_part_of_a_pack_is_listed(tmp_path):
    model = build(encoders=BOTH, fusion="late-sum", language_model="lstm", tasks={"a": "classify", "b": "regress"})
    shown = run("load", mmzoo.pack(model, tmp_path / "a.mmzoo")).stdout
    keys = ["encoders.image", "encoders.audio", "fusions.image", "fusions.audio", "language model", "tasks.a", "tasks.b"]
    assert all(key in shown or key.replace(" ", "_") in shown for key in keys), shown
