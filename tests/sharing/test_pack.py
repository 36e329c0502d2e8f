"""Test packs: a model in one file, for a machine without network and cache."""

import json
import resource
import shutil
import sys
import zipfile
from importlib.metadata import version

import pytest
from hub import environment, make_hub, run_script, serve

import mmzoo
from mmzoo.backbones import repository
from mmzoo.checkpoints import folder as checkpoint
from mmzoo.cli import main
from mmzoo.errors import CheckpointError, HubError, MissingPlugin
from mmzoo.sharing import unpack
from mmzoo.testing import Sample, no_network, tiny

CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"
PICTURES = [example.image for example in Sample().load("test")][:2]
COLOURS = tiny("cnn-product-lstm", task={"labels": ["red", "green", "blue"]})

SAY = """
import json, sys, torch
import mmzoo
from mmzoo.testing import Sample

pictures = [e.image for e in Sample().load("test")][:2]

def say(model):
    with torch.no_grad():
        pooled = model.encoder(torch.stack([model.encoder.transform(p) for p in pictures])).pooled
    bits = [value.hex() for value in pooled.double().flatten().tolist()]
    return [model.generate(image=pictures, prompt="a b", max_new_tokens=6), bits]
"""

MAKE = (
    SAY
    + """
folder, found = sys.argv[1], {}
random = {"pretrained": False, "encoder": "clip@main", "language_model": "gpt2@main"}  # with the small hub's configurations
for name, options, full in (("locked", {}, False), ("random", random, False), ("full", {}, True),
                            ("tokenizer", {"language_model": {"tokenizer": "openai/clip-vit-base-patch32"}}, False)):
    model = mmzoo.build("clip-prefix-gpt2", seed=0, **options)
    mmzoo.pack(model.save(f"{folder}/{name}", full=full), f"{folder}/{name}.mmzoo")
    found[name] = say(model)
print(json.dumps(found))
"""
)

LOAD = (
    SAY
    + """
folder, found = sys.argv[1], {}
for name in sys.argv[2:]:
    model = mmzoo.load(f"{folder}/{name}.mmzoo")
    found[name] = say(model)
    found[name + " lock"] = model.lock()
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serve(make_hub(tmp_path_factory.mktemp("hub"), CLIP, GPT2)) as served:
        yield served


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory):
    """Return packs made with a hub, the outputs of their models, and their folder."""
    folder = tmp_path_factory.mktemp("packs")
    env = environment(hub.url, tmp_path_factory.mktemp("cache"), MMZOO_CACHE=str(tmp_path_factory.mktemp("own")))
    return {**run_script(MAKE, str(folder), env=env), "folder": folder}


def test_packs_load_in_a_new_process_without_network_and_cache(made, tmp_path):
    env = environment("http://127.0.0.1:9", tmp_path / "home", HF_HUB_OFFLINE="1", MMZOO_CACHE=str(tmp_path / "own"))
    kinds = ("locked", "random", "full", "tokenizer")
    found = run_script(LOAD, str(made["folder"]), *kinds, env=env)
    assert {kind: found[kind] for kind in kinds} == {kind: made[kind] for kind in kinds}
    assert found["locked lock"] == json.loads((made["folder"] / "locked/mmzoo.json").read_text())["lock"]
    assert not (tmp_path / "home/hub").exists()


def test_what_a_pack_holds(made):
    sizes = {}
    for kind in ("locked", "full", "random"):
        with zipfile.ZipFile(made["folder"] / f"{kind}.mmzoo") as archive:
            names = archive.namelist()
            backbones = json.loads(archive.read("pack.json"))["backbones"]
            assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        assert {b["id"] for b in backbones} == {CLIP, GPT2}
        assert "mmzoo.json" in names
        sizes[kind] = sum("safetensors" in name for name in names)
    assert sizes == {"locked": 3, "full": 1, "random": 1}, "weights are packed once"


def test_a_locked_file_that_was_changed_in_the_pack(made, tmp_path):
    """The hashes in pack.json match the changed file; the hash in the checkpoint's lock does not."""
    path = tmp_path / "forged.mmzoo"
    rewrite(
        made["folder"] / "locked.mmzoo", path, {"backbones/1/model.safetensors": lambda data: data[:-1] + bytes([data[-1] ^ 1])}
    )
    with no_network(), pytest.raises(CheckpointError, match="is not the file that this checkpoint was trained with"):
        mmzoo.load(path)


def rewrite(source, target, changes):
    """Write the pack with some files changed, and update pack.json."""
    with zipfile.ZipFile(source) as old:
        files = {name: changes.get(name, lambda data: data)(old.read(name)) for name in old.namelist()}
    index = json.loads(files["pack.json"])
    for name, data in files.items():
        if name in index["files"]:
            index["files"][name] = {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}
    files["pack.json"] = json.dumps(index).encode()
    with zipfile.ZipFile(target, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)


# In this process


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Save a language model in a local folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmzoo_transformers.bytes import byte_tokenizer

    folder = tmp_path_factory.mktemp("own") / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=264, n_positions=64)).save_pretrained(folder)
    byte_tokenizer("causal").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(backbone):
    return mmzoo.build(
        encoder={"use": "cnn", "image_size": 16, "channels": [8]},
        fusion="prefix-linear",
        language_model={"use": f"hf-causal:{backbone}", "train": "frozen"},
        task="caption",
        seed=0,
    )


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    return mmzoo.pack(model, tmp_path_factory.mktemp("packed") / "out.mmzoo")


@pytest.fixture(autouse=True)
def own_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "mmzoo-cache"))


def said(model):
    return model.generate(image=PICTURES, prompt="what", max_new_tokens=5)


def test_a_backbone_of_a_folder_is_packed_too(model, packed, backbone, tmp_path):
    locked = model.lock()
    moved = backbone.rename(backbone.with_name("moved"))
    try:
        loaded = mmzoo.load(packed)
        assert said(loaded) == said(model)
        assert loaded.lock() == locked
        again = mmzoo.pack(packed, tmp_path / "again.mmzoo")
        assert again.read_bytes() == packed.read_bytes(), "a pack of a pack is the same"
    finally:
        moved.rename(backbone)


def test_an_unpacked_folder_is_a_checkpoint_with_its_backbones(model, packed, backbone, tmp_path, capsys):
    def command(*words):
        sys.argv = ["mmzoo", *map(str, words)]
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr()

    assert command("load", packed)[0] == 0
    code, out = command("load", packed, "--to", tmp_path / "to", "--json")
    assert code == 0, out.err
    assert json.loads(out.out)["parts"]["fusion"] == "prefix-linear"
    moved = backbone.rename(backbone.with_name("moved"))
    try:
        assert said(mmzoo.load(tmp_path / "to")) == said(model)
        PICTURES[0].save(tmp_path / "p.png")
        words = ("--prompt", "what", "--max-new-tokens", 5, "--json")
        assert json.loads(command("generate", packed, tmp_path / "p.png", *words)[1].out)[0]["text"] == said(model)[0]
        assert "prefix-linear" in command("card", packed)[1].out
        assert command("push", packed, f"file://{tmp_path}/zoo/me/x")[0] == 2, "nobody else has the folder"
        code, out = command("push", packed, f"file://{tmp_path}/zoo/me/x", "--full", "--json")
        assert code == 0, out.err
        assert not any(name.startswith(("pack", "backbones")) for name in json.loads(out.out)["sent"])
        assert command("pack", tmp_path / "to", tmp_path / "b.mmzoo")[0] == 0
        assert (tmp_path / "b.mmzoo").read_bytes() == packed.read_bytes()
    finally:
        moved.rename(backbone)
    (tmp_path / "to" / "backbones/0/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"backbones/0/config\.json: was altered"):
        mmzoo.load(tmp_path / "to")
    assert command("load", tmp_path / "to")[0] == 2


def test_measuring_a_pack_does_not_write_to_it(tmp_path):
    path = mmzoo.pack(mmzoo.build(COLOURS, seed=1), tmp_path / "c.mmzoo")
    before = path.read_bytes()
    assert mmzoo.evaluate(str(path), dataset=Sample(), progress=False).scores
    assert path.read_bytes() == before
    built = mmzoo.build(COLOURS, weights=path, seed=2)
    assert built.predict(image=PICTURES) == mmzoo.load(path).predict(image=PICTURES)


def test_a_pulled_checkpoint_replaces_an_unpacked_one_whole(packed, tmp_path):
    unpack.unpack(packed, tmp_path / "to")
    other = mmzoo.build(tiny("cnn-product-lstm"), seed=1)
    mmzoo.push(other, f"file://{tmp_path}/zoo/me/x")
    mmzoo.pull(f"file://{tmp_path}/zoo/me/x", to=tmp_path / "to")
    assert mmzoo.load(tmp_path / "to").predict(image=PICTURES) == other.predict(image=PICTURES)
    assert not {"pack.json", "backbones"} & {path.name for path in (tmp_path / "to").iterdir()}


def test_what_is_damaged_in_the_cache_is_unpacked_anew(model, packed, tmp_path):
    mmzoo.load(packed)
    for path in (tmp_path / "mmzoo-cache").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert said(mmzoo.load(packed)) == said(model)


def test_names_that_are_no_packs(model, packed, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such pack"):
        mmzoo.load("me/nothing.mmzoo")
    with pytest.raises(CheckpointError, match=r"ends in \.mmzoo"):
        mmzoo.pack(model, tmp_path / "out.zip")
    with pytest.raises(HubError, match="is a pack, which has no revision"):
        mmzoo.load(packed, revision="v1")


# Wheels


def wheel(folder, name="mmzoo_foo", number="1.2", content=b"data"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{number}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", content)
    return path


@pytest.fixture
def needy(tmp_path, monkeypatch):
    """Save a checkpoint that needs a plugin, and pretend that the plugin is installed."""
    folder = mmzoo.build(tiny("cnn-product-lstm"), seed=1).save(tmp_path / "needy")
    manifest = json.loads((folder / "mmzoo.json").read_text())
    manifest["plugins"]["Mmzoo.Foo"] = "1.2"
    manifest["lock"]["encoders.image"] = {"source": "package", "id": "some-weights", "commit": "3.0", "files": {}}
    manifest["digest"] = checkpoint.manifest_digest(manifest)
    (folder / "mmzoo.json").write_text(json.dumps(manifest))
    real = checkpoint.importlib.metadata.version
    monkeypatch.setattr(checkpoint.importlib.metadata, "version", lambda name: "1.2" if name == "Mmzoo.Foo" else real(name))
    return folder


def test_wheels_of_the_plugins(needy, tmp_path, monkeypatch, capsys):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", number="1.1")
    with pytest.raises(CheckpointError, match=r"has no wheel of Mmzoo\.Foo 1\.2.*\n.*pip download.*\n.*pip wheel"):
        mmzoo.pack(needy, tmp_path / "out.mmzoo", wheels=tmp_path / "wheels")
    wanted = wheel(tmp_path / "wheels")
    with pytest.raises(CheckpointError, match=r"has no wheel of some-weights 3\.0"):
        mmzoo.pack(needy, tmp_path / "out.mmzoo", wheels=tmp_path / "wheels")
    weights = wheel(tmp_path / "wheels", "some_weights", "3.0")
    own = wheel(tmp_path / "wheels", "mmzoo", version("mmzoo"))
    path = mmzoo.pack(needy, tmp_path / "out.mmzoo", wheels=tmp_path / "wheels")
    mmzoo.load(path)
    monkeypatch.undo()
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "mmzoo-cache"))
    with pytest.raises(MissingPlugin, match=rf"(?s)needs the plugin 'Mmzoo\.Foo'.*mmzoo load {path} --wheels.*{wanted.name}"):
        mmzoo.load(path)
    monkeypatch.setattr(sys, "argv", ["mmzoo", "load", str(path), "--wheels", str(tmp_path / "out"), "--json"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr()
    assert json.loads(out.out)["extracted"] == [
        str(tmp_path / "out" / name) for name in sorted(w.name for w in (own, wanted, weights))
    ], out.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in (own, wanted, weights)
    }


def test_a_pack_without_the_wheel_says_so(needy, tmp_path, monkeypatch):
    path = mmzoo.pack(needy, tmp_path / "out.mmzoo")
    monkeypatch.undo()
    with pytest.raises(MissingPlugin, match=r"pip install 'Mmzoo\.Foo==1\.2'.*has no wheel"):
        mmzoo.load(path)
    with pytest.raises(CheckpointError, match="has no wheels"):
        unpack.extract_wheels(path, tmp_path / "wheels")


def test_a_part_that_fetches_by_means_of_its_own_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        repository.local_backbones,
        "fetch_record",
        lambda id, revision: repository.local_backbones.LocalBackbone(id, revision, None),
    )
    with pytest.raises(CheckpointError, match=r"'hf-causal' of plugin 'mmzoo' does not say which files it fetches"):
        mmzoo.pack(model, tmp_path / "out.mmzoo")
    assert not (tmp_path / "out.mmzoo").exists()


# Disks


def test_a_full_disk_leaves_what_was_there(packed, tmp_path):
    """Limit the size of files (EFBIG), in place of a full file system (ENOSPC), which a test cannot make."""
    folder = mmzoo.build(tiny("cnn-product-lstm"), seed=1).save(tmp_path / "model")
    (tmp_path / "large.mmzoo").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"large\.mmzoo: cannot be written: File too large"):
            mmzoo.pack(folder, tmp_path / "large.mmzoo")
        with pytest.raises(CheckpointError, match="to: cannot be written: File too large"):
            unpack.unpack(packed, tmp_path / "to")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "large.mmzoo").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.mmzoo", "model"]


def test_a_disk_with_too_little_room(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(CheckpointError, match=r"MiB to be unpacked"):
        mmzoo.load(packed)
    assert not list((tmp_path / "mmzoo-cache").rglob("*.safetensors"))


def test_what_was_there_stays_if_packing_fails(model, tmp_path, monkeypatch):
    path = mmzoo.pack(model, tmp_path / "out.mmzoo")
    before = path.read_bytes()

    def full(path, members):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmzoo.publish.write_archive", full)
    with pytest.raises(CheckpointError, match="No space left on device; what was there is unchanged"):
        mmzoo.pack(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.mmzoo"]
