"""Test models that are built on folders: what is pushed can be loaded by others, and a folder that has moved can be named."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mmzoo
from mmzoo.backbones import repository
from mmzoo.cli import app
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, SourceError
from mmzoo.testing import Sample
from mmzoo_transformers.bytes import byte_tokenizer

RED = Image.new("RGB", (40, 36), "red")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
AUDIO = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
AUDIO |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 50, "num_mel_bins": 20, "vocab_size": 64}
AUDIO |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def save_language(folder, seed=0):
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.LlamaConfig(**SMALL, **ids, vocab_size=264, max_position_embeddings=128, initializer_range=0.5)
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [2, 70, 80]
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    # Old files name where they were made.
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "/home/author/private"}))
    return folder


def save_vision(folder):
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2] * 3).save_pretrained(folder)
    return folder


def save_audio(folder):
    torch.manual_seed(0)
    transformers.WhisperModel(transformers.WhisperConfig(**AUDIO)).save_pretrained(folder)
    return folder


@pytest.fixture
def bases(tmp_path, monkeypatch):
    """Folders in the folder where one works."""
    author = tmp_path / "author"
    for name, save in (("my-lm", save_language), ("my-vit", save_vision), ("my-whisper", save_audio)):
        (author / name).mkdir(parents=True)
        save(author / name)
    byte_tokenizer().save_pretrained(author / "my-tok")
    monkeypatch.chdir(author)
    return author


BUILDS = {
    "language model": ({"language_model": {"use": "hf-causal:./my-lm", "train": "frozen"}}, "./my-lm"),
    "no prefix": ({"language_model": {"use": "hf-causal:my-lm", "train": "lora:2"}}, "my-lm"),
    "absolute": ({"language_model": {"use": "hf-causal:AUTHOR/my-lm", "train": "frozen"}}, "AUTHOR/my-lm"),
    "variant as an option": ({"language_model": {"use": "hf-causal", "variant": "./my-lm"}}, "./my-lm"),
    "random weights": ({"language_model": {"use": "hf-causal:./my-lm", "pretrained": False}}, "./my-lm"),
    "encoder": ({"encoder": "vit:./my-vit"}, "./my-vit"),
    "audio": ({"encoder": "hf-audio:./my-whisper"}, "./my-whisper"),
    "tokenizer": ({"language_model": {"use": "hf-causal:./my-lm", "tokenizer": "./my-tok"}}, "./my-lm"),
}


def build(changes, author, **more):
    changes = json.loads(json.dumps(changes).replace("AUTHOR", str(author)))
    parts = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": "gpt-mini", "task": "caption", **changes}
    return mmzoo.build(**parts, seed=0, **more)


def says(model):
    examples = Sample(3, modality=model.modality).load("test")
    return [(p.label, p.score) for p in model.predict_examples(examples, scores=True, max_new_tokens=6)]


def shared(tmp_path):
    return (tmp_path / "zoo").as_uri() + "/me/model"


@pytest.mark.parametrize("name", BUILDS)
def test_a_push_is_refused_before_anything_is_sent(name, bases, tmp_path):
    changes, base = BUILDS[name]
    model = build(changes, bases)
    kind = "encoder" if "encoder" in changes else "language model"
    base = base.replace("AUTHOR", str(bases))
    saved = model.save(tmp_path / "run")
    for pushed in (model, saved):
        with pytest.raises(DoesNotFit, match=f"the {kind} is built on the folder '{base}' of this machine") as refused:
            mmzoo.push(pushed, shared(tmp_path))
        for way in ("--full", "mmzoo pack", f"--base {base}=owner/name"):
            assert way in str(refused.value)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("saved", [pytest.param(False, id="model", marks=pytest.mark.slow), pytest.param(True, id="folder")])
def test_a_full_push_loads_where_the_folder_is_not(name, saved, bases, tmp_path, monkeypatch):
    model = build(BUILDS[name][0], bases)
    expected, ends = says(model), model.language_model.end_ids
    mmzoo.push(model.save(tmp_path / "run") if saved else model, shared(tmp_path), full=True)
    shutil.rmtree(bases)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    loaded = mmzoo.load(shared(tmp_path))
    assert says(loaded) == expected
    assert loaded.language_model.end_ids == ends
    for file in mmzoo.pull(shared(tmp_path)).iterdir():
        if file.suffix in (".json", ".md"):
            assert str(bases) not in file.read_text()
            assert "/home/author" not in file.read_text()
    assert says(mmzoo.load(loaded.save("again"))) == expected, "and it can be saved again"


def test_a_full_push_that_would_lose_something_is_refused_too(bases, tmp_path):
    folder = bases / "my-waves"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 32}
    sizes |= {"conv_dim": (8, 8), "conv_kernel": (4, 2), "conv_stride": (4, 2), "num_feat_extract_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    model = build({"encoder": "hf-audio:./my-waves"}, bases)
    with pytest.raises(DoesNotFit, match="also with --full, since its class has no options") as refused:
        mmzoo.push(model, shared(tmp_path), full=True)
    assert "mmzoo pack" in str(refused.value)
    assert "--full (full=True)" not in str(refused.value)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    model = build({"encoder": "hf-audio:./my-waves"}, bases)
    mmzoo.push(model, shared(tmp_path), full=True)
    expected = says(model)
    shutil.rmtree(folder)
    assert says(mmzoo.load(shared(tmp_path))) == expected


def test_the_licence_of_the_entry_does_not_cover_a_folder(bases, tmp_path):
    mmzoo.push(build(BUILDS["encoder"][0], bases), shared(tmp_path), full=True)
    rows = {row.part: row for row in mmzoo.load(shared(tmp_path)).summary().parts}
    assert (rows["encoder"].use, rows["encoder"].license) == ("vit:./my-vit", "unknown")


def test_a_warm_start_on_a_folder_is_refused_too(bases, tmp_path):
    first = build({"language_model": {"use": "hf-causal:./my-lm", "train": "full"}}, bases).save(tmp_path / "first")
    second = build({"language_model": {"use": "hf-causal", "weights": str(first)}}, bases)
    with pytest.raises(DoesNotFit, match=r"'\./my-lm'"):
        mmzoo.push(second, shared(tmp_path))
    mmzoo.push(second, shared(tmp_path), full=True)
    expected = says(second)
    shutil.rmtree(bases / "my-lm")
    assert says(mmzoo.load(shared(tmp_path))) == expected


def test_a_pack_holds_the_folder(bases, tmp_path):
    model = build(BUILDS["language model"][0], bases)
    expected = says(model)
    pack = mmzoo.pack(model, tmp_path / "model.mmzoo")
    shutil.rmtree(bases / "my-lm")
    assert says(mmzoo.load(pack)) == expected
    with pytest.raises(DoesNotFit, match="mmzoo pack"):
        mmzoo.push(pack, shared(tmp_path))


def test_models_on_a_hub_or_from_scratch_are_pushed_as_before(bases, tmp_path):
    (bases / "cnn").mkdir()  # a folder with the name of an entry is no base
    assert mmzoo.push(build({}, bases), shared(tmp_path)).sent


@pytest.mark.parametrize("name", ["language model", "no prefix", "absolute", "variant as an option", "encoder", "audio"])
def test_a_folder_that_moved_is_named_and_its_hashes_confirm_it(name, bases, tmp_path):
    changes, base = BUILDS[name]
    base = base.replace("AUTHOR", str(bases))
    model = build(changes, bases)
    expected, folder = says(model), model.save(tmp_path / "run")
    moved = (bases / base.rpartition("/")[2]).rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError) as missing:
        mmzoo.load(folder)
    assert f"bases={{'{base}': 'FOLDER or owner/name'}}" in str(missing.value)
    assert f"--base {base}=FOLDER" in str(missing.value)
    loaded = mmzoo.load(folder, bases={base: moved})
    assert says(loaded) == expected
    assert says(mmzoo.load(loaded.save(tmp_path / "again"))) == expected, "it is now built on the other folder"


@pytest.fixture
def on_a_hub(bases, tmp_path, monkeypatch):
    """Stand in for a hub with ``me/base``, the same files as my-lm; return its commit."""
    commit = "c0ffee" + "0" * 34
    served = tmp_path / "hub" / "snapshots" / commit
    shutil.copytree(bases / "my-lm", served)

    def download(repository_id, name, revision=None):
        if repository_id != "me/base" or not (served / name).is_file():
            raise RemoteEntryNotFoundError(f"no {name}", response=SimpleNamespace(headers={}, request=None))
        return str(served / name)

    monkeypatch.setattr(repository, "hf_hub_download", download)
    return commit


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_base_that_was_shared_on_a_hub_makes_the_model_shareable(revision, on_a_hub, bases, tmp_path):
    model = build(BUILDS["language model"][0], bases)
    expected, folder = says(model), model.save(tmp_path / "run")
    shutil.rmtree(bases / "my-lm")
    mmzoo.push(folder, shared(tmp_path), bases={"./my-lm": f"me/base{revision}"})
    loaded = mmzoo.load(shared(tmp_path))
    assert says(loaded) == expected
    lock = loaded.lock()["language_model"]
    assert (lock["source"], lock["id"], lock["commit"]) == ("hub", "me/base", on_a_hub)
    assert "model.safetensors" in lock["files"]


def test_weights_that_the_checkpoint_holds_need_the_same_tokens(bases, tmp_path):
    folder = build(BUILDS["random weights"][0], bases).save(tmp_path / "run")
    moved = (bases / "my-lm").rename(tmp_path / "elsewhere")
    assert mmzoo.load(folder, bases={"./my-lm": moved}).recipe.language_model.use == f"hf-causal:{moved}"
    vocabulary = json.loads((moved / "tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    (moved / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CheckpointError, match="has other tokens than the tokenizer that this checkpoint was saved with"):
        mmzoo.load(folder, bases={"./my-lm": moved})


def test_other_files_are_refused_by_name(bases, tmp_path):
    folder = build(BUILDS["language model"][0], bases).save(tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    save_language(other, seed=1)
    with pytest.raises(CheckpointError, match=r"other: model.safetensors is not the file that this checkpoint was trained with"):
        mmzoo.load(folder, bases={"./my-lm": other})
    shutil.copytree(bases / "my-lm", tmp_path / "same")
    weights = load_file(tmp_path / "same" / "model.safetensors")
    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / "same" / "model.safetensors", {"format": "np"})
    with pytest.raises(CheckpointError, match="model.safetensors is not the file"):
        mmzoo.load(folder, bases={"./my-lm": tmp_path / "same"})
    (other / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"other' has no model\.safetensors"):
        mmzoo.load(folder, bases={"./my-lm": other})


def test_a_base_that_there_is_not_is_refused(bases, tmp_path):
    folder = build(BUILDS["language model"][0], bases).save(tmp_path / "run")
    with pytest.raises(BadRecipe, match=r"built on no './other', but on \./my-lm"):
        mmzoo.load(folder, bases={"./other": "./my-lm"})


def test_a_tokenizer_that_moved_is_named(bases, tmp_path):
    model = build(BUILDS["tokenizer"][0], bases)
    expected, folder = says(model), model.save(tmp_path / "run")
    moved = (bases / "my-tok").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"--base \./my-tok=FOLDER"):
        mmzoo.load(folder)
    assert says(mmzoo.load(folder, bases={"./my-tok": moved})) == expected
    other = tmp_path / "other"
    byte_tokenizer("seq2seq").save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        mmzoo.load(folder, bases={"./my-tok": other})


def test_the_commands_take_a_base(bases, tmp_path):
    folder = build(BUILDS["language model"][0], bases).save(tmp_path / "run")
    moved = (bases / "my-lm").rename(tmp_path / "elsewhere")
    RED.save(tmp_path / "red.png")
    base = ["--base", f"./my-lm={moved}"]
    picture = str(tmp_path / "red.png")
    for words in (["predict", str(folder), picture], ["generate", str(folder), picture], ["pack", str(folder), "out.mmzoo"]):
        failed = CliRunner().invoke(app, words)
        assert failed.exit_code != 0
        done = CliRunner().invoke(app, [*words, *base])
        assert done.exit_code == 0, done.output
    failed = CliRunner().invoke(app, ["predict", str(folder), picture, "--base", "./my-lm"])
    assert isinstance(failed.exception, BadRecipe)


def test_a_refused_push_names_every_folder_and_the_names_that_bases_take(bases, tmp_path):
    changes = {"encoder": "vit:./my-vit", "language_model": {"use": "hf-causal:./my-lm", "tokenizer": "./my-tok"}}
    saved = build(changes, bases).save(tmp_path / "run")
    moved = {"./my-lm": str(shutil.copytree(bases / "my-lm", tmp_path / "moved"))}
    for given in ({}, moved):
        with pytest.raises(DoesNotFit, match="the encoder is built on .*, the language model is built on") as refused:
            mmzoo.push(saved, shared(tmp_path), bases=given)
        assert "--base ./my-vit=owner/name --base ./my-lm=owner/name --base ./my-tok=owner/name" in str(refused.value)


def test_a_base_that_does_not_exist_is_not_said_to_be_the_recorded_one(bases, tmp_path):
    saved = build({"language_model": "hf-causal:./my-lm"}, bases).save(tmp_path / "run")
    with pytest.raises(SourceError, match="'./nowhere': there is no such folder") as refused:
        mmzoo.load(saved, bases={"./my-lm": "./nowhere"})
    assert "built on" not in str(refused.value)


def test_a_checkpoint_with_every_weight_is_built_on_nothing(bases, tmp_path):
    saved = build({"language_model": "hf-causal:./my-lm"}, bases).save(tmp_path / "run", full=True)
    with pytest.raises(BadRecipe, match="built on no './my-lm', but on nothing"):
        mmzoo.load(saved, bases={"./my-lm": str(bases / "my-lm")})


def test_a_part_starts_from_a_checkpoint_with_every_weight_and_its_tokenizer(bases, tmp_path):
    part = {"use": "hf-causal:./my-lm", "tokenizer": "./my-tok"}
    model = build({"language_model": part}, bases)
    saved = model.save(tmp_path / "run", full=True)
    shutil.rmtree(bases)
    started = build({"language_model": {"use": "hf-causal", "weights": str(saved)}}, tmp_path)
    assert started.language_model.tokenizer.get_vocab() == model.language_model.tokenizer.get_vocab()
    again = mmzoo.load(started.save(tmp_path / "started"))
    assert says(again) == says(started)
    assert torch.equal(again.language_model.model.lm_head.weight, model.language_model.model.lm_head.weight)


def test_a_replaced_base_gives_no_warning_of_the_library(bases, tmp_path, caplog):
    changes = {"language_model": {"use": "hf-causal:./my-lm", "pretrained": False}}
    saved = build(changes, bases).save(tmp_path / "run")
    transformers.utils.logging.enable_propagation()
    try:
        mmzoo.load(saved, bases={"./my-lm": str(bases / "my-lm")})
    finally:
        transformers.utils.logging.disable_propagation()
    assert not [record for record in caplog.records if "model of type" in record.getMessage()]
