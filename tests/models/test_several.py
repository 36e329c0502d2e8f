"""Several encoders, fusions and tasks in one model, and several callers of it."""

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import mmzoo
from mmzoo import Example
from mmzoo.data.collate import tensors
from mmzoo.errors import BadRecipe, DataError, DoesNotFit
from mmzoo.models.sequence import fuse_input
from mmzoo.recipes.reading import read_recipe
from mmzoo.testing.small import Sample, tiny

SAMPLE = Sample(8)
ENCODERS = {"image": "cnn", "audio": "log-mel-gru"}
TASKS = {"sentiment": {"use": "classify"}, "topic": {"use": "classify", "weight": 0.5}}
LATE = dict(encoders=ENCODERS, fusion="late-concat", language_model="lstm", tasks=TASKS)


def build(**parts):
    """Return a tiny model, with the words of the sample as its vocabulary."""
    recipe = tiny(read_recipe(**parts))
    return mmzoo.build(recipe, seed=0)


def inputs(number):
    example = SAMPLE.load("train")[number]
    return {"image": example.image, "audio": example.audio}


@pytest.fixture(scope="module")
def late():
    return build(**LATE)


@pytest.fixture(scope="module")
def writer():
    """A model that writes, with a deep and a late fusion, whose fusions are loud enough to change what it writes."""
    model = build(
        encoders=ENCODERS,
        fusions={"image": "cross-attention", "audio": "late-product"},
        language_model="gpt-mini",
        task={"use": "vqa", "max_new_tokens": 8},
    )
    with torch.no_grad():
        for name, parameter in model.fusions.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=2.0 if "gates" in name else 0.5)
        for parameter in model.language_model.parameters():
            parameter.mul_(3)
    return model


# Predictions


def test_each_task_predicts_and_an_input_may_be_missing(late):
    whole = late.predict(text="so it goes", **inputs(0))
    assert list(whole) == ["sentiment", "topic"]
    assert {type(prediction) for prediction in whole.values()} == {type(late.predict(text="so", task="topic"))}
    without = late.predict(text="so it goes", image=inputs(0)["image"])
    assert without["sentiment"].score != whole["sentiment"].score  # the clip counts where it is there
    assert all(np.isfinite(prediction.score) for prediction in late.predict(text="so it goes").values())


def test_a_missing_input_says_the_same_alone_and_in_a_batch(late):
    full, half, bare = (
        Example("1", text="so", inputs=inputs(1)),
        Example("2", inputs(2)["image"], "so it"),
        Example("3", text="a"),
    )
    together = late.predict_examples([full, half, bare])
    for example, row in zip([full, half, bare], together, strict=True):
        ((alone),) = late.predict_examples([example])
        assert {n: p.label for n, p in alone.items()} == {n: p.label for n, p in row.items()}
        assert alone["topic"].score == pytest.approx(row["topic"].score, abs=1e-5)


def test_lists_are_paired_by_modality(late):
    images, clips = [inputs(i)["image"] for i in range(3)], [inputs(i)["audio"] for i in range(3)]
    rows = late.predict(image=images, audio=clips, text="so")
    assert [row["topic"].score for row in rows] == pytest.approx(
        [late.predict(image=i, audio=a, text="so")["topic"].score for i, a in zip(images, clips, strict=True)], abs=1e-5
    )
    assert len(late.predict(image=images, text="so")) == 3
    with pytest.raises(DataError, match="3 images and 2 audio"):
        late.predict(image=images, audio=clips[:2], text="so")


def test_unknown_tasks_options_and_modalities_are_refused(late):
    with pytest.raises(BadRecipe, match=r"no task 'topics'; did you mean 'topic'"):
        late.predict(text="so", task="topics")
    with pytest.raises(BadRecipe, match="num_beams: no task of this model has such an option"):
        late.predict(text="so", num_beams=2)
    with pytest.raises(DataError, match=r"takes images and audio: give image=... or audio=..., not video="):
        late.predict(text="so", video="a.mp4")
    with pytest.raises(DataError, match=r"'<video>', and this model takes images and audio; add an encoder of video"):
        late.predict(text="a <video> of it", **inputs(0))


# One pass


def test_an_encoder_runs_once_a_batch_and_the_language_model_once_a_text(late):
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in [*late.encoders.items(), ("language_model", late.language_model)]
    ]
    late.predict(text="so it goes", **inputs(0))
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["audio", "image", "language_model"]


def test_captions_of_one_image_encode_it_once(late):
    batch = late.collator(training=False)([Example(str(i), inputs(0)["image"], "so") for i in range(4)])
    assert len(batch["encoders"]["image"]["inputs"]) == 1
    assert batch["encoders"]["audio"]["index"].tolist() == [[-1]] * 4
    assert batch["tasks"]["topic"]["text_of"] == "sentiment"
    assert "ids" not in batch["tasks"]["topic"]


def test_a_task_without_the_fused_pass_never_runs_it():
    model = build(encoders=ENCODERS, fusion="prefix-mlp", language_model="gpt-mini", task="contrastive")
    batch = tensors(model.collator(training=True)(list(SAMPLE.load("train"))), "cpu")
    for fusion in model.fusions.values():
        fusion.register_forward_hook(lambda *_: pytest.fail("a fusion ran"))
        fusion.early = lambda *_: pytest.fail("a fusion ran")
    assert torch.isfinite(model(**batch)["loss"])
    assert build(encoder="cnn", fusion="none", language_model="lstm", task="contrastive").fusion.places() == []


def test_the_loss_is_the_weighted_sum_of_the_terms(late):
    examples = [
        Example(e.id, text=e.text, inputs=e.inputs, targets={"sentiment": ("label_0",), "topic": ("label_1",) if i else ()})
        for i, e in enumerate(SAMPLE.load("train"))
    ]
    out = late(**tensors(late.collator(training=True)(examples), "cpu"))
    terms = out["terms"]
    assert out["loss"].item() == pytest.approx(
        terms["sentiment.cross-entropy"].item() + 0.5 * terms["topic.cross-entropy"].item(), rel=1e-6
    )
    rows = late(**tensors(late.collator(training=True, task="topic")(examples[1:]), "cpu"))["terms"]
    assert terms["topic.cross-entropy"].item() == pytest.approx(rows["topic.cross-entropy"].item(), rel=1e-5)


# Positions in the text


@pytest.mark.parametrize("fusion", ["prefix-mlp", "projector", "resampler"])
def test_placeholders_place_each_modality_and_the_default_is_the_order_of_the_encoders(fusion):
    model = build(encoders=ENCODERS, fusion=fusion, language_model="gpt-mini", task="vqa")
    features = model.features(tensors(model.collator(training=False)([Example("1", inputs=inputs(0))]), "cpu")["encoders"])
    none = torch.zeros(1, 0, model.language_model.spec.dim), torch.zeros(1, 0)
    added = {name: model.fusions[name].early(own, *none) for name, own in features.items()}
    tokens = {name: fused.embeddings[0, fused.mask[0].bool()] for name, fused in added.items()}
    ids = list(model.text_context().placeholders.values())
    word = torch.full((1, 1), 9)
    for row, order in (
        (word, ["image", "audio", 9]),
        (torch.tensor([[9, ids[1], 9, ids[0]]]), [9, "audio", 9, "image"]),
        (torch.tensor([[ids[0], 9, ids[1], 9]]), ["image", 9, "audio", 9]),
        (torch.tensor([[9, ids[1]]]), ["image", 9, "audio"]),
    ):
        fused, _ = fuse_input(model, features, row, torch.ones_like(row))
        text = model.language_model.embed(word)[0]
        wanted = torch.cat([text if part == 9 else tokens[part] for part in order])
        assert torch.allclose(fused.embeddings[0, fused.mask[0].bool()], wanted, atol=1e-6), order


def test_masked_tokens_of_a_missing_input_change_nothing_that_is_written(writer):
    image = inputs(0)["image"]
    model = build(encoders=ENCODERS, fusion="projector", language_model="gpt-mini", task="vqa")
    one = model.predict_examples([Example("1", image, "what?")])[0]
    pair = model.predict_examples([Example("1", image, "what?"), Example("2", text="what?", inputs=inputs(1))])[0]
    assert (one.label, one.score) == (pair.label, pytest.approx(pair.score, abs=1e-5))


# Several callers


def test_threads_get_what_each_gets_alone(writer):
    requests = [(inputs(i % 8), f"what {'color ' * (i % 3)}is it") for i in range(24)]
    alone = [writer.generate(prompt=text, max_new_tokens=6, **given) for given, text in requests]
    assert len(set(alone)) > 3  # the answers tell the requests apart
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: writer.generate(prompt=r[1], max_new_tokens=6, **r[0]), requests))
    assert together == alone


def test_open_streams_do_not_disturb_each_other(writer):
    alone = [writer.generate(prompt="what", max_new_tokens=6, **inputs(i)) for i in range(3)]
    streams = [writer.stream(prompt="what", max_new_tokens=6, **inputs(i)) for i in range(3)]
    texts = ["", "", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone


def test_predicting_while_another_thread_trains_keeps_the_mode(writer):
    model = copy.deepcopy(writer)
    model.train()
    inside, leave = threading.Event(), threading.Event()

    def predict():
        with model.evaluating():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=predict)
    thread.start()
    inside.wait(10)
    with model.evaluating():
        pass
    assert not model.training  # the other caller still evaluates
    leave.set()
    thread.join()
    assert model.training


def test_a_deep_copy_calls_its_own_fusions(writer):
    copied = copy.deepcopy(writer)
    before = writer.generate(prompt="what", max_new_tokens=6, **inputs(0))
    with torch.no_grad():
        for parameter in copied.fusions.parameters():
            parameter.copy_(torch.randn_like(parameter))
    changed = copied.generate(prompt="what", max_new_tokens=6, **inputs(0))
    assert writer.generate(prompt="what", max_new_tokens=6, **inputs(0)) == before != changed


# Recipes


def test_a_joint_fusion_reads_all_encoders_and_is_refused_for_one():
    model = build(**{**LATE, "fusion": "tensor-fusion"})
    assert list(model.fusions) == ["all"]
    assert model.recipe.fusions["all"].use == "tensor-fusion"
    with pytest.raises(DoesNotFit, match=r"'tensor-fusion' reads the features of several encoders together, .*only one"):
        mmzoo.check(encoder="cnn", fusion="tensor-fusion", language_model="lstm", task="classify")
    parts = {key: value for key, value in LATE.items() if key != "fusion"}
    with pytest.raises(DoesNotFit, match="Write it once, for all: fusion: gated"):
        mmzoo.check(**parts, fusions={"image": "gated", "audio": "late-sum"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusions": {"image": "late-sum", "video": "late-sum"}}, "fusions.video: there is no encoder of that name"),
        ({"fusions": {"image": "late-sum"}}, "encoder 'audio' has none; add fusions.audio"),
        ({"encoder": "cnn"}, "encoder and encoders are both given"),
        ({"tasks": {"topic": {"use": "classify", "weight": -1}}}, r"tasks.topic.weight: .*greater than or equal to 0"),
        ({"tasks": {"topic": {"use": "classify", "weight": float("nan")}}}, "tasks.topic.weight: .*finite"),
        ({"tasks": {"topic": {"use": "classify", "weight": "much"}}}, "tasks.topic.weight: .*valid number"),
        ({"tasks": {}}, "tasks: .*at least 1"),
        ({"encoders": {"all": "cnn", "audio": "log-mel-gru"}}, "encoders.all: no encoder may have this name"),
        ({"encoders": ["cnn"]}, "encoders: must be a mapping from names to parts, not list"),
    ],
)
def test_recipes_that_name_parts_wrongly_are_refused(changes, message):
    parts = {key: value for key, value in LATE.items() if not (key == "fusion" and "fusions" in changes)}
    with pytest.raises(BadRecipe, match=message):
        mmzoo.check(**{**parts, **changes})


def test_two_encoders_of_one_name_in_a_file_are_refused(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "encoders:\n  image: cnn\n  image: cnn\nfusion: late-sum\nlanguage_model: lstm\ntask: classify\n"
    )
    with pytest.raises(BadRecipe, match="image"):
        mmzoo.check(tmp_path / "r.yaml")


@pytest.mark.parametrize("other", ["encoder: cnn", "task: classify", "fusion: late-sum"])
def test_both_forms_in_a_file_are_refused_by_its_name(tmp_path, other):
    (tmp_path / "r.yaml").write_text(
        f"{other}\nencoders: {{image: cnn}}\nfusions: {{image: late-sum}}\nlanguage_model: lstm\ntasks: {{classify: classify}}\n"
    )
    kind = other.partition(":")[0]
    with pytest.raises(BadRecipe, match=rf"r\.yaml: (.|\n)*{kind} and {kind}s are both given"):
        mmzoo.check(tmp_path / "r.yaml")


def test_changes_add_and_remove_parts_by_name():
    two = mmzoo.build("cnn-concat-lstm", encoders={"audio": "log-mel-gru"}).recipe
    assert list(two.encoders) == list(two.fusions) == ["image", "audio"]
    one = mmzoo.build(two.to_dict(), encoders={"audio": None}, fusions={"audio": None}).recipe
    assert one.encoder.use == "cnn"
    with pytest.raises(BadRecipe, match=r"encoder: this recipe has several; name one: encoders.image, encoders.audio"):
        mmzoo.check(two, encoder={"image_size": 32})
    with pytest.raises(DoesNotFit, match="this model has several encoders: image, audio; name one"):
        _ = two.encoder


def test_a_model_of_several_is_saved_and_loaded(late, tmp_path):
    loaded = mmzoo.load(late.save(tmp_path / "model"))
    assert loaded.predict(text="so", **inputs(3)) == late.predict(text="so", **inputs(3))
    names = {name.rpartition(".")[0].split(".")[0] for name in loaded.state_dict()}
    assert names == {"encoders", "fusions", "language_model", "tasks"}
