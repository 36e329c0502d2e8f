"""Test saving and loading: outputs are identical, and errors name the damaged file."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmzoo
from mmzoo.checkpoints import folder as checkpoint
from mmzoo.errors import CheckpointError, MissingPlugin
from mmzoo.testing import Sample, tiny

NO_PARTS = ("x", "encoder", "encoders.", "encoders.a.b", "tasks.../x")
PICTURES = [e.image for e in Sample().load("test")]


@pytest.fixture
def saved(classifier, tmp_path):
    model = mmzoo.build(classifier, seed=3)
    return model.save(tmp_path / "model")


def edit(folder, **changes):
    """Change the manifest and update its digest."""
    path = folder / "mmzoo.json"
    manifest = {**json.loads(path.read_text()), **changes}
    manifest["digest"] = checkpoint.manifest_digest(manifest)
    path.write_text(json.dumps(manifest))


def test_outputs_are_equal_to_the_last_bit_in_a_new_process(classifier, tmp_path):
    model = mmzoo.build(classifier, seed=3)
    folder = model.save(tmp_path / "model")
    PICTURES[0].save(tmp_path / "p.png")
    expected = model.predict(image=str(tmp_path / "p.png"), text="what color")
    code = (
        "import mmzoo, json, sys; p = mmzoo.load(sys.argv[1]).predict(image=sys.argv[2], text='what color'); "
        "print(json.dumps([p.label, p.score.hex(), {k: v.hex() for k, v in p.scores.items()}]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "p.png")], capture_output=True, text=True, check=True
    )
    scores = {k: v.hex() for k, v in expected.scores.items()}
    assert json.loads(out.stdout) == [expected.label, expected.score.hex(), scores]


@pytest.mark.parametrize("policy", ["full", "last:1", "lora:2", "frozen"])
def test_every_policy_reloads_the_same(policy, sample, tmp_path, quick):
    recipe = tiny("cnn-prefix-gpt", language_model={"train": policy})
    run = mmzoo.train(recipe, dataset=sample, output=tmp_path / "m", progress=False, training=quick)
    loaded = mmzoo.load(tmp_path / "m").state_dict()
    assert loaded.keys() == run.model.state_dict().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in run.model.state_dict().items())


def test_the_folder_holds_no_pickle_and_no_training_leftovers(sample, classifier, tmp_path, quick):
    mmzoo.train(classifier, dataset=sample, output=tmp_path / "m", progress=False, training=quick)
    names = {path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob("*")}
    assert {"mmzoo.json", "model.safetensors", "run.json", "README.md", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")) or name.startswith((".", "checkpoints"))]


def test_a_full_save_loads_too(classifier, tmp_path):
    model = mmzoo.build(classifier, seed=1)
    model.save(tmp_path / "m", full=True)
    assert mmzoo.load(tmp_path / "m").predict(image=PICTURES) == model.predict(image=PICTURES)


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named(saved, name, damage):
    path = saved / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-3])
    else:
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(CheckpointError, match=f"{name}.* {damage}"):
        mmzoo.load(saved)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not valid JSON"), ("[]", "JSON object"), ("", "not valid JSON"), ("{}", "format")]
)
def test_a_damaged_manifest(saved, text, said):
    (saved / "mmzoo.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        mmzoo.load(saved)


def test_an_altered_manifest(saved):
    path = saved / "mmzoo.json"
    path.write_text(path.read_text().replace("late-product", "late-sum"))
    with pytest.raises(CheckpointError, match="altered"):
        mmzoo.load(saved)


@pytest.mark.parametrize("key", ["recipe", "plugins", "lock", "files", "full"])
@pytest.mark.parametrize("value", [None, 7, "x", [1]])
def test_a_manifest_of_wrong_shape(saved, key, value):
    edit(saved, **{key: value})
    with pytest.raises(CheckpointError):
        mmzoo.load(saved)


@pytest.mark.parametrize(
    "changed",
    [
        {"plugins": {"": "1"}},
        {"plugins": {"a; b": "1"}},
        *(
            {"lock": {key: {"source": "hub", "id": "x", "files": {}}}}
            for key in ("x", "encoder", "encoders.", "encoders.a.b", "tasks.../x")
        ),
    ],
)
def test_a_forged_manifest(saved, changed):
    edit(saved, **changed)
    with pytest.raises(CheckpointError, match="mmzoo.json: (plugins|lock)"):
        mmzoo.load(saved)


def test_what_a_killed_process_left_is_removed_by_the_next_save(classifier, tmp_path):
    left = tmp_path / "m" / (checkpoint.STAGING + "x")
    left.mkdir(parents=True)
    mmzoo.build(classifier).save(tmp_path / "m")
    assert not left.exists()


def test_a_newer_format(saved):
    edit(saved, format=checkpoint.FORMAT + 1)
    with pytest.raises(CheckpointError, match="pip install --upgrade mmzoo"):
        mmzoo.load(saved)


def test_an_older_format(saved):
    """Format 1 had one encoder, one fusion and one task, under other names."""
    manifest = json.loads((saved / "mmzoo.json").read_text())
    recipe = {"encoder": manifest["recipe"]["encoders"]["image"], "task": manifest["recipe"]["tasks"]["classify"]}
    edit(saved, format=1, recipe=recipe, lock={"encoder": {"source": "hub", "id": "x", "files": {}}})
    said = r"mmzoo\.json: format 1 is older than this mmzoo reads \(2\); load it with the mmzoo that saved it, or train"
    with pytest.raises(CheckpointError, match=said):
        mmzoo.load(saved)


@pytest.mark.parametrize("format", [0, -1, None, "2", 2.5, [2]])
def test_an_unknown_format(saved, format):
    edit(saved, format=format)
    with pytest.raises(CheckpointError, match=r"mmzoo\.json: format .* is unknown"):
        mmzoo.load(saved)


def test_a_plugin_that_is_not_installed(saved):
    edit(saved, plugins={"mmzoo-foo": "1.2"})
    with pytest.raises(MissingPlugin, match="pip install 'mmzoo-foo==1.2'"):
        mmzoo.load(saved)


def test_no_folder_and_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        mmzoo.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"mmzoo\.json"):
        mmzoo.load(tmp_path)


def test_tensors_that_the_recipe_does_not_expect(saved):
    from safetensors.torch import save_file

    weights = load_file(saved / "model.safetensors")
    weights["encoders.image.extra"] = torch.zeros(1)
    save_file(weights, saved / "model.safetensors")
    manifest = json.loads((saved / "mmzoo.json").read_text())
    manifest["files"]["model.safetensors"] = checkpoint.file_facts(saved / "model.safetensors").model_dump()
    edit(saved, **manifest)
    with pytest.raises(CheckpointError, match=r"encoders\.image\.extra"):
        mmzoo.load(saved)


def test_a_full_disk_leaves_the_last_good_checkpoint(saved, classifier, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    real = checkpoint.save_file

    def full(weights, path, metadata):
        real(weights, path, metadata)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*unchanged"):
        mmzoo.build(classifier, seed=4).save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    mmzoo.load(saved)


def test_a_folder_that_cannot_be_written(classifier, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        mmzoo.build(classifier).save(tmp_path / "file" / "model")


@pytest.mark.parametrize("full", [False, True])
def test_a_pretrained_part_is_saved_loaded_and_saved_again(tmp_path, full):
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmzoo_transformers.bytes import byte_tokenizer

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=264, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer("causal").save_pretrained(tmp_path / "gpt2")
    cnn = {"use": "cnn", "image_size": 16, "channels": [8]}
    language = f"hf-causal:{tmp_path / 'gpt2'}"
    model = mmzoo.build(encoder=cnn, fusion="prefix-linear", language_model=language, task="caption", seed=0)
    expected = model.predict(image=PICTURES)
    model.save(tmp_path / "once", full=full)
    assert any(name.startswith("language_model") for name in load_file(tmp_path / "once" / "model.safetensors")) is full
    mmzoo.load(tmp_path / "once").save(tmp_path / "twice")
    assert mmzoo.load(tmp_path / "twice").predict(image=PICTURES) == expected


def test_a_run_that_cannot_be_recorded_leaves_the_checkpoint_whole(classifier, tmp_path, monkeypatch):
    folder = mmzoo.build(classifier, seed=0).save(tmp_path / "m")
    real = Path.write_text

    def full(self, text, *arguments, **options):
        if '"digest"' in text:  # the manifest
            raise OSError(28, "No space left on device")
        return real(self, text, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="could not be recorded: No space left"):
        checkpoint.update_run(folder, {"training": None}, "# card")
    monkeypatch.undo()
    assert mmzoo.load(folder).provenance.run == {}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
