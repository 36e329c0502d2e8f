"""Test that recipes and entries are checked and built at once without a network, to the sizes of the real checkpoints."""

import json
import socket

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

import mmzoo
from mmzoo.backbones.repository import Source, Unreachable
from mmzoo.cli import app
from mmzoo.data.collate import tensors
from mmzoo.errors import SourceError
from mmzoo.interfaces import Example
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample
from mmzoo_transformers.vision import CARRIED

# Of the tower or model that is built: published with each checkpoint, or counted from the paper's table of layers.
PARAMETERS = {
    "clip": 87_849_216,  # 87,456,000 and the projection's 768 x 512
    "siglip": 92_884_224,
    "vit": 85_798_656,
    "dinov2": 86_579_712,  # 86,580,480 without the mask token
    "gpt2": 124_439_808,
    "smollm2": 134_515_008,
    "qwen3": 596_049_920,
    "opt": 125_239_296,
    "bert": 108_891_648,  # 109,482,240 without the pooler
    "bert-decoder": 109_514_298,  # with the prediction head
    "t5": 60_506_624,
    "hf-audio": 8_208_384,  # the encoder's
    "open_clip": 87_849_216,
}
SHAPES = {"clip": "49 tokens x 768, pooled 512", "siglip": "196 tokens x 768", "vit": "196 tokens x 768"}
SHAPES |= {"dinov2": "256 tokens x 768", "gpt2": "context 1024", "opt": "context 2048", "qwen3": "context 40960"}
QUICK = ("dinov2", "t5", "hf-audio", "open_clip")  # the others are in a recipe, or large
RECIPES = [entry.name for entry in plugin_manager().registry.entries("recipe")]
LARGE = ("siglip-projector-smollm2", "vit-concat-bert")


@pytest.fixture(autouse=True)
def attempts(monkeypatch, tmp_path):
    """Cut the network, with an empty cache; return the connections that are attempted."""
    attempted = []

    def refuse(*arguments, **_):
        attempted.append(arguments[0])
        raise socket.gaierror(-2, "Name or service not known")

    def wait(seconds):
        raise AssertionError(f"waits {seconds} s to try again")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return attempted


def parts_of(name, kind):
    others = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini", "task": "vqa"}
    parts = {**others, kind: name}
    if name == "bert":
        parts |= {"fusion": "late-product", "task": "classify"}
    return parts


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PARAMETERS])
def test_a_default_variant_has_the_sizes_of_the_real_checkpoint(name, attempts):
    (entry,) = [entry for entry in mmzoo.entries() if entry.name == name and entry.kind in ("encoder", "language_model")]
    summary = mmzoo.check(**parts_of(name, entry.kind))
    (part,) = [part for part in summary.parts if part.use == name]
    assert part.parameters == PARAMETERS[name]
    assert SHAPES.get(name, "") in part.shape
    assert attempts == []


def test_every_default_variant_is_known():
    """A new entry with a default variant brings its configuration too."""
    own = [entry for entry in mmzoo.entries() if entry.plugin == "mmzoo" and entry.variant]
    assert {entry.name for entry in own} == set(PARAMETERS)


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in RECIPES])
def test_every_recipe_is_checked_without_a_request(recipe, attempts):
    done = CliRunner().invoke(app, ["check", recipe, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["fits"] is True
    for part in report["parts"]:
        adapters = part["trained"] if part["policy"].startswith("lora") else 0
        assert part["parameters"] - adapters == PARAMETERS.get(part["use"], part["parameters"] - adapters)
    assert attempts == []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_built_with_random_weights_and_runs(recipe, attempts):
    parts = {"language_model": {"tokenizer": "bytes"}} if mmzoo.check(recipe).parts[-2].use in PARAMETERS else {}
    model = mmzoo.build(recipe, pretrained=False, seed=0, **parts)
    checked = [(p.parameters, p.shape) for p in mmzoo.check(recipe, **parts).parts]
    assert [(p.parameters, p.shape) for p in model.summary().parts] == checked
    examples = list(Sample(2, modality=model.modality).load("test"))
    batch = tensors(model.collator(training=False)(examples), "cpu")
    with torch.no_grad():
        outputs = model.task_outputs(batch)
        assert all(bool(own.hidden.isfinite().all()) for own in outputs.values())
    assert attempts == []


def test_a_tokenizer_that_cannot_be_fetched_is_named_with_the_way_out(attempts):
    model = mmzoo.build(encoder="cnn", fusion="prefix-mlp", language_model="bert-decoder", task="caption", pretrained=False)
    assert attempts == []
    with pytest.raises(SourceError, match=r"tokenizer\.json.*language_model\.tokenizer=bytes needs no file"):
        model.collator(training=False)([Example("1", Sample().load("test")[0].image)])


def test_weights_that_cannot_be_fetched_are_one_error_after_one_request(attempts):
    with pytest.raises(Unreachable, match="'openai/clip-vit-base-patch32': config.json: the connection to") as raised:
        mmzoo.build("clip-prefix-gpt2")
    assert len(str(raised.value).splitlines()) == 1
    assert len(attempts) == 1
    timm = {"encoder": "timm:test_vit", "fusion": "prefix-mlp", "language_model": "gpt-mini", "task": "vqa"}
    with pytest.raises(SourceError, match="the connection to"):
        mmzoo.build(**timm)
    assert len(attempts) == 2


def test_a_revision_is_asked_of_the_hub(attempts):
    with pytest.raises(Unreachable):
        mmzoo.check("clip-prefix-gpt2", encoder="clip@main")
    assert len(attempts) == 1


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, attempts):
    folder = tmp_path / "openai-community" / "gpt2"
    folder.mkdir(parents=True)
    small = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(small))
    monkeypatch.chdir(tmp_path)
    summary = mmzoo.check(**{**parts_of("gpt2", "language_model"), "language_model": {"use": "gpt2", "tokenizer": "bytes"}})
    assert "dim 32" in summary.parts[2].shape
    assert attempts == []


def test_a_source_by_itself_asks_the_hub(attempts):
    with pytest.raises(Unreachable):
        Source("openai-community/gpt2", carried=CARRIED).config()
    assert len(attempts) == 1
