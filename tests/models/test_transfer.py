"""Test text alone, and parts that start from another checkpoint: the two stages of Frozen, on a small scale."""

import json
import shutil
import sys

import pytest
import torch

import mmzoo
from mmzoo import cli
from mmzoo.common.files import hash_file
from mmzoo.errors import BadRecipe, CheckpointError, DataError, DoesNotFit
from mmzoo.recipes.schema import PartConfig
from mmzoo.testing import Sample, tiny

ALONE = {"encoder": "none", "fusion": "none", "task": {"use": "vqa", "max_new_tokens": 4}}
LANGUAGE = {"use": "gpt-mini", "dim": 16, "layers": 1, "heads": 2}
THROUGH = {
    "encoder": {"use": "cnn", "image_size": 16, "channels": [8, 16]},
    "fusion": {"use": "prefix-mlp", "length": 3},
    "task": {"use": "vqa", "max_new_tokens": 4},
}


class Words(Sample):
    """`Sample` without images."""

    def load(self, split):
        return [mmzoo.Example(e.id, None, e.text, e.targets) for e in super().load(split)]


class Unreadable(Sample):
    """`Sample` whose image files do not exist."""

    def load(self, split):
        return [mmzoo.Example(e.id, "nowhere.png", e.text, e.targets) for e in super().load(split)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Return a language model that was trained on text alone."""
    folder = tmp_path_factory.mktemp("text") / "model"
    options = {"max_steps": 8, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2}
    mmzoo.train(**ALONE, language_model=LANGUAGE, dataset=Words(), output=folder, progress=False, training=options)
    return folder


def through(text, **changes):
    """Return the recipe of the second stage."""
    return {**THROUGH, "language_model": {"use": "gpt-mini", "weights": str(text), **changes}}


def language(model):
    return {name: value.clone() for name, value in model.language_model.state_dict().items()}


# Text alone


def test_text_alone_needs_no_image(text):
    model = mmzoo.load(text)
    assert isinstance(model.generate(prompt="what color", max_new_tokens=3), str)
    assert len(model.generate(prompt=["what", "what color"], max_new_tokens=3)) == 2
    predictions = model.predict(text=["what color is it", "what color is it?"])
    assert [p.label for p in predictions] == [model.predict(text=t).label for t in ("what color is it", "what color is it?")]
    assert sum(p.numel() for p in model.encoder.parameters()) == sum(p.numel() for p in model.fusion.parameters()) == 0
    assert "has no input" in str(model.summary())


def test_it_never_opens_an_image(text):
    model = mmzoo.load(text)
    assert model.predict(image="nowhere.png", text="what color is it") == model.predict(text="what color is it")
    seen = mmzoo.evaluate(model, dataset=Unreadable(), progress=False)
    assert seen.scores == seen.controls["shuffled"] == seen.controls["blanked"]


def test_a_model_with_an_encoder_needs_an_image(text, writer):
    with pytest.raises(DataError, match="an image is needed"):
        mmzoo.build(writer).predict(text="what color is it")


def test_unused_features_are_refused():
    with pytest.raises(DoesNotFit, match=r"ignores the features of encoder 'cnn'\.\n.*prefix-mlp.*\n.*encoder 'none'"):
        mmzoo.check(encoder="cnn", fusion="none", language_model="gpt-mini", task="vqa")
    with pytest.raises(DoesNotFit, match="reads token features"):
        mmzoo.check(encoder="none", fusion="projector", language_model="gpt-mini", task="vqa")


def test_a_file_without_images(tmp_path, quick):
    rows = [{"question": e.text, "answer": e.targets[0]} for e in Sample().load("train")]
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = PartConfig(use=str(tmp_path / "words.jsonl"), image_column="")
    run = mmzoo.train(
        **ALONE, language_model=LANGUAGE, dataset=words, output=tmp_path / "m", split="train", progress=False, training=quick
    )
    assert run.model.provenance.run["training"]["examples"] == len(rows)
    with pytest.raises(DataError, match="image_column to the one of the pictures .to an empty text"):
        mmzoo.train(**ALONE, language_model=LANGUAGE, dataset=str(tmp_path / "words.jsonl"), output=tmp_path / "n")


def test_text_alone_on_the_command_line(text, capsys, monkeypatch):
    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmzoo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out.strip()

    model = mmzoo.load(text)
    assert output("predict", str(text), "--text", "what color is it").startswith(model.predict(text="what color is it").label)
    assert json.loads(output("predict", str(text), "--text", "what color", "--json"))[0]["image"] is None
    assert output("generate", str(text), "--prompt", "what color") == model.generate(prompt="what color")


def test_a_prefix_of_nothing_is_a_learned_prompt(tmp_path, quick):
    recipe = mmzoo.Recipe(encoder="none", fusion={"use": "prefix-mlp", "length": 2}, language_model=LANGUAGE, task="vqa")
    run = mmzoo.train(recipe, dataset=Words(), output=tmp_path / "m", progress=False, training=quick)
    assert isinstance(mmzoo.load(run.output).generate(prompt="what", max_new_tokens=2), str)


# From a checkpoint


def test_a_frozen_language_model_is_copied_and_not_changed(text, tmp_path, quick):
    before = language(mmzoo.load(text))
    run = mmzoo.train(through(text, train="frozen"), dataset=Sample(), output=tmp_path / "m", progress=False, training=quick)
    assert run.model.recipe.language_model.options == mmzoo.load(text).recipe.language_model.options
    for name, value in language(run.model).items():
        assert torch.equal(value, before[name]), name
    assert any(name.startswith("language_model.") for name in run.model.saved_names())


def test_a_trained_language_model_starts_from_the_checkpoint(text, tmp_path, quick):
    run = mmzoo.train(through(text), dataset=Sample(), output=tmp_path / "m", progress=False, training=quick)
    before = language(mmzoo.load(text))
    assert all(not torch.equal(value, before[name]) for name, value in language(run.model).items() if value.is_floating_point())


def test_the_saved_model_does_not_need_the_other_checkpoint(text, tmp_path, quick):
    source = shutil.copytree(text, tmp_path / "source")
    run = mmzoo.train(through(source, train="frozen"), dataset=Sample(), output=tmp_path / "m", progress=False, training=quick)
    prediction = run.model.predict(image=Sample().load("test")[0].image, text="what color is it")
    shutil.rmtree(source)
    assert mmzoo.load(run.output).predict(image=Sample().load("test")[0].image, text="what color is it") == prediction
    assert "weights" not in json.loads((run.output / "mmzoo.json").read_text())["recipe"]["language_model"]
    origin = json.loads((run.output / "run.json").read_text())["weights"]["language_model"]
    assert origin["checkpoint"] == "source"
    assert origin["sha256"] == hash_file(text / "model.safetensors")
    assert "| language model | starts from `source`" in (run.output / "README.md").read_text()


def test_the_vocabulary_is_not_learned_anew(text, tmp_path, quick):
    class Others(Sample):
        COLOURS = ("red", "green", "magenta")

    run = mmzoo.train(through(text), dataset=Others(), output=tmp_path / "m", progress=False, training=quick)
    assert run.model.recipe.language_model.options["vocabulary"] == mmzoo.load(text).recipe.language_model.options["vocabulary"]


def test_an_encoder_and_a_task_can_start_from_one_too(tmp_path, quick, classifier):
    first = mmzoo.train(classifier, dataset=Sample(), output=tmp_path / "first", progress=False, training=quick).model
    parts = {"fusion": "late-sum", "language_model": {"use": "lstm", "dim": 16}}
    for kind in ("encoder", "task"):
        parts[kind] = {"use": getattr(first.recipe, kind).use, "weights": str(tmp_path / "first"), "train": "frozen"}
    model = mmzoo.train(parts, dataset=Sample(), output=tmp_path / "second", progress=False, training=quick).model
    assert model.task.labels == first.task.labels
    for kind in ("encoder", "task"):
        for name, value in getattr(model, kind).state_dict().items():
            assert torch.equal(value, getattr(first, kind).state_dict()[name])


def test_last_and_lora_start_from_it(text):
    before = language(mmzoo.load(text))
    for policy in ("last:1", "lora:2"):
        weights = language(mmzoo.build(through(text, train=policy), seed=0))
        original = {name.replace(".base_layer", ""): value for name, value in weights.items() if "lora_" not in name}
        assert original.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in original.items())


# Refusals


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"language_model.weights: .*nowhere: there is no such folder; name a folder"):
        mmzoo.check(through(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"language_model.weights: .*not a checkpoint folder.*mmzoo train"):
        mmzoo.check(through(tmp_path))


def test_another_entry(text):
    with pytest.raises(BadRecipe, match=r"is 'gpt-mini', not 'lstm'; write use: gpt-mini"):
        mmzoo.check({**THROUGH, "task": "classify", "language_model": {"use": "lstm", "weights": str(text)}})


def test_other_sizes(text):
    with pytest.raises(BadRecipe, match=r"language_model.layers is 2 here and 1 there. Leave them out"):
        mmzoo.check(through(text, layers=2))
    assert mmzoo.check(through(text, layers=1)).parameters


def test_two_sources(text):
    with pytest.raises(BadRecipe, match="exclude each other"):
        mmzoo.check(through(text, pretrained=True))


def test_a_part_that_is_not_in_the_checkpoint(tmp_path, monkeypatch):
    """Refuse a frozen pretrained backbone, which is locked and not saved."""
    recipe = tiny("vit-concat-bert")
    model = mmzoo.build(recipe, seed=0)
    for wanted in model.provenance.pretrained:
        model.provenance.pretrained[wanted] = wanted == "encoders.image"
    folder = model.save(tmp_path / "locked")
    started = recipe.with_part("encoder", weights=str(folder))
    with pytest.raises(CheckpointError, match=r"encoder.weights: .* holds 0 of the \d+ weights of its 'vit', .*full=True"):
        mmzoo.check(started)
    full = model.save(tmp_path / "full", full=True)
    built = mmzoo.build(recipe.with_part("encoder", weights=str(full)), seed=1)
    assert all(torch.equal(v, model.encoder.state_dict()[n]) for n, v in built.encoder.state_dict().items())
    assert built.recipe.encoder.pretrained is False


def test_a_fusion_beside_other_sizes(text, tmp_path):
    model = mmzoo.build({**THROUGH, "language_model": LANGUAGE}, seed=0)
    folder = model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"fusion.weights: .* is \[.*\] in .* and \[.*\] here"):
        mmzoo.check(
            {**THROUGH, "fusion": {"use": "prefix-mlp", "weights": str(folder)}, "language_model": {**LANGUAGE, "dim": 32}}
        )


def test_a_damaged_checkpoint(text, tmp_path):
    folder = shutil.copytree(text, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"language_model.weights: .*truncated"):
        mmzoo.check(through(folder))
