"""Augmentation in training: only there, once for an input of a batch, the same bits whatever the workers, and what is refused."""

import json

import numpy as np
import pytest
import torch
from command_line import run as run_command
from PIL import Image
from test_resume_exact import RUN, Stream, check_equal, stopped_and_resumed, train

import mmzoo
from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadRecipe, DoesNotFit, TrainingError, UnknownName
from mmzoo.interfaces import Augmentation, Example
from mmzoo.models.augmentation import augment
from mmzoo.recipes.reading import read_recipe
from mmzoo.registry.entries import Registry
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import StopOnSignal

AUGMENT = {
    "image": ["crop", {"use": "color", "hue": 0.1}, "erase", "trivial-augment"],
    "audio": ["gain", "noise", "spec-augment"],
}
INVERT = {"image": [{"use": "v2:RandomInvert", "p": 1}]}


def recipe(augmentations=INVERT, **changes):
    base = tiny("cnn-product-lstm", encoder={"train": "full"}, **changes)
    return read_recipe(base, data={"augment": augmentations})


def both(augmentations=AUGMENT):
    encoders = {"image": "cnn", "audio": "log-mel-gru"}
    parts = {"encoders": encoders, "fusion": "late-concat", "language_model": "lstm", "task": "classify"}
    return read_recipe(tiny(mmzoo.Recipe.of(parts)), data={"augment": augmentations})


def data(count=10):
    return Stream(Sample(count=count).load("train"), streamed=False)


def collated(model, examples, **how):
    collator = augment(model.collator(training=True, **how), model.recipe)
    return collator(examples)["encoders"]


@pytest.mark.slow
def test_workers_and_a_resumed_run_draw_the_same(tmp_path, monkeypatch):
    options = {**RUN, "epochs": 2}
    whole = train(both(), data(8), tmp_path / "whole", training={**options, "workers": 0})
    parts = stopped_and_resumed(both(), data(8), tmp_path / "parts", [1], monkeypatch, {**options, "workers": 2})
    check_equal(whole, parts)


def test_only_training_is_augmented(tmp_path):
    run = train(recipe(), data(), tmp_path / "m", training={**RUN, "epochs": 1, "workers": 0})
    examples = Sample(count=4).load("test")
    pictures = [torch.tensor(np.asarray(each.image)) for each in examples]
    model = run.model
    plain = model.collator(training=False)(examples)["encoders"]["image"]["inputs"]
    assert torch.equal(model.collator(training=True)(examples)["encoders"]["image"]["inputs"], plain)
    inverted = [
        Example(e.id, Image.fromarray(255 - p.numpy()), e.text, e.targets) for e, p in zip(examples, pictures, strict=True)
    ]
    assert torch.equal(
        collated(model, examples)["image"]["inputs"], model.collator(training=False)(inverted)["encoders"]["image"]["inputs"]
    )
    same = mmzoo.load(tmp_path / "m")
    without = read_recipe(same.recipe, data={"augment": {"image": []}})
    other = mmzoo.build(without)
    other.load_state_dict(same.state_dict())
    assert same.predict_examples(examples, scores=True) == other.predict_examples(examples, scores=True)
    scores = [mmzoo.evaluate(each, dataset=Sample(), split="test", progress=False).scores for each in (same, other)]
    assert scores[0] == scores[1]


def test_blank_inputs_stay_blank():
    model = mmzoo.build(both())
    batch = collated(model, Sample(count=3).load("train"), blank=True)
    assert not batch["image"]["inputs"].any()
    assert not batch["audio"]["inputs"].any()


def test_a_picture_of_several_examples_is_augmented_once_and_each_encoder_sees_its_own():
    parts = {"encoders": {"one": "cnn", "two": "cnn"}, "fusion": "late-concat", "language_model": "lstm", "task": "classify"}
    turned = {"image": {"use": "v2:RandomRotation", "degrees": 90}}
    labelled = tiny(mmzoo.Recipe.of(parts)).with_part("task", labels=["blue", "red"])
    model = mmzoo.build(read_recipe(labelled, data={"augment": turned}))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    batch = collated(model, [Example(str(i), image, "why", ("red",)) for i in range(3)])
    assert batch["one"]["inputs"].shape[0] == 1
    assert batch["one"]["index"].tolist() == [0, 0, 0]
    assert not torch.equal(batch["one"]["inputs"], batch["two"]["inputs"])


def test_a_picture_is_augmented_before_it_is_cut_into_tiles():
    parts = {"encoder": "cnn", "fusion": {"use": "projector", "tiles": 2}, "language_model": "gpt-mini", "task": "vqa"}
    small = tiny(mmzoo.Recipe.of(parts)).with_part("fusion", tiles=2)
    model = mmzoo.build(read_recipe(small, data={"augment": {"image": [{"use": "flip", "horizontal": 1}]}}))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pictures = [Example(str(i), Image.fromarray(p), "why", ("red",)) for i, p in enumerate((pixels, pixels[:, ::-1].copy()))]
    assert torch.equal(
        collated(model, pictures[:1])["image"]["inputs"],
        model.collator(training=True)(pictures[1:])["encoders"]["image"]["inputs"],
    )


def test_features_of_augmented_inputs_are_not_cached(tmp_path):
    frozen = recipe({"image": ["flip"]}).with_part("encoder", train="frozen")
    cached = train(recipe({}).with_part("encoder", train="frozen"), data(), tmp_path / "a", training={"epochs": 2})
    run = train(frozen, data(), tmp_path / "b", training={"epochs": 2})
    used = [each.model.provenance.run["training"]["cached_features"] for each in (cached, run)]
    assert used == [True, False]
    with pytest.raises(BadRecipe, match=r"cache_features: data.augment.image changes the inputs each time.*leave out one"):
        train(frozen, data(), tmp_path / "c", training={"cache_features": True})
    assert not (tmp_path / "c").exists()


class Untouched(Dataset):
    """A data set that must not be read."""

    def splits(self):
        raise AssertionError("it was read")

    load = splits


def test_refused_before_any_data_are_read(tmp_path):
    for augmentations, error, message in (
        ({"audio": ["gain"]}, DoesNotFit, "data.augment.audio: the model takes no audio; the encoders take images"),
        ({"image": ["gain"]}, DoesNotFit, "'gain' changes audio, not images; those of images: .*flip"),
        ({"image": [{"use": "v2:GaussianBlur", "kernel_size": 2}]}, BadRecipe, "Kernel size"),
    ):
        with pytest.raises(error, match=message):
            train(recipe(augmentations), Untouched(None), tmp_path / "m")


def test_a_picture_that_an_augmentation_cannot_change_stops_the_run(tmp_path):
    """It is no bad picture, that could be skipped: the options are wrong."""
    large = recipe({"image": [{"use": "v2:RandomCrop", "size": 500}]})
    with pytest.raises(TrainingError, match=r"data.augment.image: Torchvision \(variant='RandomCrop'.*cannot change image.*500"):
        train(large, data(), tmp_path / "m", skip_bad=True, training={**RUN, "workers": 1})


def test_the_recipe_the_card_and_the_checkpoint_have_it(tmp_path):
    chosen = recipe({"image": "flip"})
    assert chosen.data.augment == {"image": ["flip"]}
    assert mmzoo.Recipe.of(json.loads(json.dumps(chosen.to_dict()))) == chosen
    train(chosen, data(), tmp_path / "m", training={**RUN, "epochs": 1})
    loaded = mmzoo.load(tmp_path / "m")
    assert loaded.recipe.data.augment == {"image": ["flip"]}
    assert "| augmentation of image | flip |" in (tmp_path / "m" / "README.md").read_text()


def test_a_model_loads_without_the_plugin_of_its_augmentations(tmp_path, monkeypatch):
    train(recipe({"image": ["flip"]}), data(), tmp_path / "m", training={**RUN, "epochs": 1})
    manager, fewer = plugin_manager(), Registry()
    fewer._entries = {key: entry for key, entry in manager.registry._entries.items() if entry.kind != "augmentation"}
    monkeypatch.setattr(manager, "registry", fewer)
    loaded = mmzoo.load(tmp_path / "m")
    assert loaded.predict(Image.new("RGB", (32, 32)), "what").label
    with pytest.raises(UnknownName, match="unknown augmentation 'flip'"):
        train(loaded.recipe, data(), tmp_path / "n")


def test_a_resumed_run_must_have_the_same_augmentation(tmp_path, monkeypatch):
    def stop(self, args, state, control, **more):
        self.signal, control.should_training_stop, control.should_save = 15, True, True

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stop)
        assert not train(recipe(), data(), tmp_path / "m", training=RUN).finished
    with pytest.raises(TrainingError, match=r"another recipe \(different: data\)"):
        train(recipe({"image": ["flip"]}), data(), tmp_path / "m", training=RUN, resume=True)


def test_the_command_line_shows_and_checks_them():
    shown = run_command("show", "flip").stdout
    assert "flip (augmentation, from mmzoo" in shown
    assert "--set data.augment.image=flip" in shown
    assert "spec-augment" in run_command("list", "augmentations").stdout
    refused = run_command("check", "cnn-product-lstm", "--set", "data.augment.audio=gain", code=1)
    assert "the model takes no audio" in refused.stderr


def test_an_entry_that_is_no_augmentation_is_named(monkeypatch):
    entry = mmzoo.Entry("augmentation", "odd", "test_augmentation:Data", "odd", "image", "MIT", "this test")
    registry = Registry()
    registry._entries = {**plugin_manager().registry._entries, ("augmentation", "odd"): entry}
    monkeypatch.setattr(plugin_manager(), "registry", registry)
    with pytest.raises(mmzoo.errors.PluginBroken, match="augmentation 'odd'.*not a mmzoo.api.Augmentation"):
        mmzoo.check(recipe({"image": ["odd"]}))


class Data:
    Options = Augmentation.Options
