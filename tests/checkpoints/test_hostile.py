"""Test untrusted checkpoints: whatever one contains, loading it raises an error of this package, with the file and the reason,
before a tensor is read, code is run or memory is allocated."""

import json
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmzoo
from mmzoo.checkpoints import folder as checkpoint
from mmzoo.cli import main as cli_main
from mmzoo.errors import CheckpointError, HubError, MmzooError
from mmzoo.interfaces.kinds import GROUPS
from mmzoo.testing import no_network, tiny

GIGABYTES, TERABYTES = 8 << 30, 1 << 40
MANIFEST, WEIGHTS, RUN, CARD, CONFIG = "mmzoo.json", "model.safetensors", "run.json", "README.md", "config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    model = mmzoo.build(tiny("cnn-prefix-gpt"), seed=0)
    return model.save(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "model"))


def seal(folder, change=lambda manifest: None):
    """Update the hashes and the digest of the manifest, after ``change`` was applied to it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {
        name: checkpoint.file_facts(folder / name).model_dump() if (folder / name).is_file() else facts
        for name, facts in manifest["files"].items()
    }
    change(manifest)
    manifest["digest"] = checkpoint.manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def recipe(**parts):
    def change(folder):
        def edit(manifest):
            for kind, options in parts.items():
                held, name = manifest["recipe"], kind
                if kind in GROUPS:  # the only one
                    held = held[GROUPS[kind]]
                    (name,) = held
                if isinstance(options, dict) and isinstance(held.get(name), dict) and "config" not in options:
                    held[name].update(options)
                else:
                    held[name] = options

        seal(folder, edit)

    return change


def names(**others):
    """Give the only part of a group another name."""

    def change(folder):
        def edit(manifest):
            for group, name in others.items():
                ((_, part),) = manifest["recipe"][group].items()
                manifest["recipe"][group] = {name: part}

        seal(folder, edit)

    return change


def manifest(**keys):
    return lambda folder: seal(folder, lambda found: found.update(keys))


def listing(name, content=b"x"):
    """List a file in the manifest, and write it if its name allows that."""

    def change(folder):
        facts = {"size": len(content), "sha256": checkpoint.hashlib.sha256(content).hexdigest()}
        if not Path(name).is_absolute() and "\0" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        seal(folder, lambda found: found["files"].update({name: facts}))

    return change


def file(name, content):
    def change(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        seal(folder)

    return change


def header(change, data=None):
    """Write the weights with another header."""

    def edit(folder):
        raw = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        head = json.loads(raw[8 : 8 + length])
        head.pop("__metadata__", None)
        head = change(head) or head
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + (raw[8 + length :] if data is None else data))
        seal(folder)

    return edit


def first(head):
    return head[next(iter(head))]


def length(value):
    def change(folder):
        raw = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", value) + raw[8:])
        seal(folder)

    return change


def sparse(name, size):
    """Make a file large without using disk space."""

    def change(folder):
        with (folder / name).open("ab") as out:
            out.truncate(size)
        manifest = json.loads((folder / MANIFEST).read_text()) if name != MANIFEST else None
        if manifest and name in manifest["files"]:
            manifest["files"][name] = {"size": size, "sha256": "0" * 64}
            manifest["digest"] = checkpoint.manifest_digest(manifest)
            (folder / MANIFEST).write_text(json.dumps(manifest))

    return change


def tensors(change):
    def edit(folder):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
        seal(folder)

    return edit


def a_name(weights):
    return next(name for name, value in weights.items() if name.startswith("fusions.") and value.is_floating_point())


def link(name, target):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def moved_out(name):
    """Move the file out of the folder, and put a link in its place."""

    def change(folder):
        shutil.move(folder / name, folder.parent / "outside")
        (folder / name).symlink_to(folder.parent / "outside")

    return change


def deep(depth):
    return "[" * depth + "]" * depth


def run_json(**keys):
    return file(RUN, json.dumps(keys))


IMAGE = "encoders.image"
LOCK = {"source": "hub", "id": "openai-community/gpt2", "commit": "a" * 40, "files": {}}
TRAINED = {
    "dataset": "x", "split": "train", "seed": 0, "steps": 1, "seconds": 1.0, "processes": 1, "device": "cpu", "precision": "fp32",
    "versions": {},
}  # fmt: skip

KINDS = {
    # files beside the weights, or in their place
    "pickle beside": (file("pytorch_model.bin", b"\x80\x04."), "pytorch_model.bin"),
    "pickle listed": (listing("training_args.bin"), "training_args.bin"),
    "pickle instead": (
        lambda folder: (folder / WEIGHTS).rename(folder / "model.pt"),
        "model.pt",
    ),
    "pickle under the weights' name": (
        file(WEIGHTS, b"\x80\x04cos\nsystem\n(S'true'\ntR."), "model.safetensors: is not a valid safetensors file",
    ),
    "hdf5 beside": (file("weights.h5", b"\x89HDF"), "weights.h5"),
    "remote code beside": (file("modeling_x.py", "import os"), "modeling_x.py"),
    "a script listed": (listing("run.py"), "run.py"),
    "a library listed": (listing("x.so"), "x.so"),
    "an unknown file listed": (listing("notes.txt"), "notes.txt"),
    "auto_map in config.json": (file(CONFIG, json.dumps({"model_type": "mmzoo", "auto_map": {"AutoModel": "x.Y"}})), "auto_map"),
    "auto_map in the tokenizer": (file("tokenizer_config.json", json.dumps({"a": {"auto_map": {"A": "x.Y"}}})), "auto_map"),
    "another type in config.json": (file(CONFIG, '{"model_type": "llama"}'), "model_type"),
    "config.json is a list": (file(CONFIG, "[]"), "config.json"),
    # names and links
    "a name with ..": (listing("../evil.json"), "../evil.json"),
    "an absolute name": (listing("/tmp/evil.json"), "/tmp/evil.json"),
    "a name with a backslash": (listing("..\\evil.json"), "leaves the folder"),
    "a name with a drive": (listing("C:evil.json"), "C:evil.json"),
    "a name with a null": (listing("a\0b"), "leaves the folder"),
    "a hidden way out": (listing("a/../../evil.json"), "leaves the folder"),
    "weights that are a link out": (moved_out(WEIGHTS), "model.safetensors: is a link"),
    "a run that is a link out": (moved_out(RUN), "run.json: is a link"),
    "a manifest that is a link out": (moved_out(MANIFEST), "mmzoo.json: is a link"),
    "a link to a device": (link(WEIGHTS, "/dev/zero"), "model.safetensors: is a link"),
    "a link to a secret": (link("tokenizer.json", "/etc/passwd"), "tokenizer.json: is a link"),
    # the manifest
    "deep JSON": (lambda folder: (folder / MANIFEST).write_text(deep(100_000)), "nests deeper"),
    "rather deep JSON": (manifest(recipe=json.loads(deep(80).replace("[", '{"a":[').replace("]", "]}"))), "nests deeper"),
    "a huge manifest": (sparse(MANIFEST, GIGABYTES), "bytes"),
    "a huge number": (lambda folder: (folder / MANIFEST).write_text('{"format": ' + "9" * 10_000 + "}"), "mmzoo.json"),
    "a key twice": (lambda folder: (folder / MANIFEST).write_text('{"format": 1, "format": 2}'), "twice"),
    "text that is no Unicode": (lambda folder: (folder / MANIFEST).write_text('{"a": "\\ud800"}'), "surrogate"),
    "NaN in the manifest": (lambda folder: (folder / MANIFEST).write_text('{"format": NaN}'), "NaN"),
    "bytes for a manifest": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\0"), "mmzoo.json"),
    "an unknown key": (manifest(execute="x"), "execute"),
    "a plugin that is not here": (manifest(plugins={"mmzoo-evil": "1"}), "pip install 'mmzoo-evil==1'"),
    "a plugin that is a command": (manifest(plugins={"x; rm -rf /": "1"}), "mmzoo.json: plugins"),
    "no weights listed": (lambda folder: seal(folder, lambda found: found["files"].pop(WEIGHTS)), "does not list"),
    "a size below zero": (lambda folder: seal(folder, lambda m: m["files"][RUN].update(size=-1)), "size"),
    # the recipe
    "an import path": (recipe(encoder={"use": "os.system"}), "mmzoo.json"),
    "an import path with a colon": (recipe(encoder={"use": "os:system"}), "mmzoo.json"),
    "an unknown entry": (recipe(fusion={"use": "evil"}), "mmzoo.json"),
    "an unknown option": (recipe(fusion={"code": "x"}), "mmzoo.json"),
    "a target as an option": (recipe(fusion={"target": "os:system"}), "mmzoo.json"),
    "a part that is a number": (recipe(task=7), "mmzoo.json"),
    "parts that are a list": (recipe(encoders=["cnn"]), r"mmzoo\.json: recipe: 1 key wrong\n  encoders"),
    "no encoder": (lambda folder: seal(folder, lambda m: m["recipe"].update(encoders={})), r"mmzoo\.json.*\n  encoders"),
    "a name of a part that is a path": (names(encoders="../../x"), r"mmzoo\.json.*\n  encoders\.\.\./\.\./x"),
    "a name of a part with a dot": (names(tasks="a.b"), r"mmzoo\.json.*\n  tasks\.a\.b"),
    "a name of a part of megabytes": (names(tasks="a" * (2 << 20)), "mmzoo.json"),
    "a name of a part that is hidden": (names(tasks="__class__"), r"mmzoo\.json.*\n  tasks\.__class__"),
    "a fusion of no encoder": (names(fusions="evil"), "no encoder of that name"),
    "parts without end": (
        lambda folder: seal(folder, lambda m: m["recipe"].update(tasks={f"t{i}": {"use": "caption"} for i in range(10**5)})),
        r"mmzoo\.json: recipe.*tasks has 100000 parts",
    ),
    "both forms of a part": (lambda folder: seal(folder, lambda m: m["recipe"].update(encoder="cnn")), "both given"),
    "a name in YAML's tags": (recipe(encoder={"use": "!!python/object/apply:os.system"}), "mmzoo.json"),
    "channels of terabytes": (recipe(encoder={"channels": [65536, 65536, 65536]}), "model.safetensors|mmzoo.json"),
    "a dim of terabytes": (recipe(language_model={"dim": 1 << 30}), "mmzoo.json|model.safetensors"),
    "a context of gigabytes": (recipe(language_model={"context": 1 << 40}), "mmzoo.json"),
    "layers without end": (recipe(language_model={"layers": 10**9}), "mmzoo.json"),
    "layers without end in a configuration": (
        recipe(language_model={"use": "hf-causal", "config": {"model_type": "gpt2", "n_layer": 10**9}}),
        r"mmzoo\.json: config\.n_layer",
    ),
    "sizes without end in a configuration": (
        recipe(language_model={"use": "hf-causal", "config": {"model_type": "gpt2", "n_embd": 12 << 40}}),
        "mmzoo.json",
    ),
    "a stage without end in a configuration": (
        recipe(encoder={"use": "hf-vision", "config": {"model_type": "swin", "depths": [10**9, 2, 2, 2]}}),
        r"mmzoo\.json: config\.depths",
    ),
    "labels without end in a configuration": (
        recipe(language_model={"use": "hf-causal", "config": {"model_type": "gpt2", "num_labels": 10**9}}),
        r"mmzoo\.json: config\.num_labels",
    ),
    "a configuration that timm looks elsewhere for": (
        recipe(encoder={"use": "hf-vision", "config": {"model_type": "timm_wrapper", "architecture": "hf-hub:me/evil"}}),
        r"mmzoo\.json: config\.architecture",
    ),
    "epochs without end": (recipe(training={"epochs": 1e308}), "training.epochs"),
    "more examples than a machine counts": (
        run_json(evaluations=[{"dataset": "x", "split": "test", "examples": 10**30, "fingerprint": "", "scores": {}}]),
        "run.json: evaluations.0.examples",
    ),
    "blocks in more digits than Python reads": (recipe(language_model={"train": "last:" + "9" * 5000}), "language_model.train"),
    "a configuration with code": (
        recipe(language_model={"use": "hf-causal", "config": {"model_type": "gpt2", "auto_map": {"AutoModel": "me/x--y.Z"}}}),
        r"mmzoo\.json: config\.auto_map",
    ),
    "a configuration with a kernel": (
        recipe(language_model={"use": "hf-causal", "config": {"model_type": "gpt2", "attn_implementation": "me/kernel"}}),
        r"mmzoo\.json: config\.attn_implementation",
    ),
    "another shape than the weights": (recipe(fusion={"length": 7}), "model.safetensors"),
    # the lock
    "a lock of a part that has none": (manifest(lock={IMAGE: {**LOCK, "files": {"x": "y"}}}), "lock"),
    "a lock of no part": (manifest(lock={"optimizer": LOCK}), "lock"),
    "a lock whose commit is a path": (manifest(lock={IMAGE: {**LOCK, "commit": "../../x"}}), "lock"),
    # the weights' header
    "a header of gigabytes": (length(GIGABYTES), "header too large"),
    "a header of exabytes": (length((1 << 64) - 1), "header too large"),
    "a header that is too long": (header(lambda head: b" " * (17 << 20)), "are allowed"),
    "a header that is no JSON": (header(lambda head: b"{" * 100), "invalid JSON in header"),
    "a header that is a list": (header(lambda head: b"[]"), "invalid type: sequence"),
    "a header that is deep": (header(lambda head: deep(50_000).encode()), "invalid JSON in header"),
    "an empty file": (file(WEIGHTS, b""), "header too small"),
    "a tensor twice": (header(lambda head: b'{"a":{},"a":{}}'), "missing field"),
    "tensors that overlap": (
        header(lambda head: {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                             "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]}}, bytes(12)), "invalid offset",
    ),
    "a hole between tensors": (
        header(lambda head: {"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, bytes(8)), "invalid offset",
    ),
    "bytes after the last tensor": (header(lambda head: None, b"\0" * (1 << 20)), "model.safetensors"),
    "an offset out of range": (header(lambda head: first(head).update(data_offsets=[0, TERABYTES])), "invalid shape"),
    "an offset below zero": (header(lambda head: first(head).update(data_offsets=[-4, 0])), "integer `-4`"),
    "a shape of terabytes": (header(lambda head: first(head).update(shape=[TERABYTES, TERABYTES])), "overflow"),
    "a shape below zero": (header(lambda head: first(head).update(shape=[-1, -4])), "integer `-1`"),
    "a shape that is a number": (header(lambda head: first(head).update(shape=4)), "integer `4`"),
    "an unknown type": (header(lambda head: first(head).update(dtype="PICKLE")), "PICKLE"),
    "a type that no model has": (
        header(lambda head: {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)), "is of type F8_E4M3",
    ),
    "more dimensions than a tensor has": (
        header(lambda head: {"a": {"dtype": "U8", "shape": [1] * 17, "data_offsets": [0, 1]}}, bytes(1)), "has 17 dimensions",
    ),
    "a type that is a list": (header(lambda head: first(head).update(dtype=[])), "invalid JSON in header"),
    # the tensors
    "a tensor of another type": (tensors(lambda w: w.update({a_name(w): w[a_name(w)].double()})), "F64"),
    "a tensor of integers": (tensors(lambda w: w.update({a_name(w): w[a_name(w)].int()})), "I32"),
    "a tensor of another shape": (tensors(lambda w: w.update({a_name(w): w[a_name(w)][..., None]})), "the recipe makes it"),
    "a tensor too many": (tensors(lambda w: w.update({"encoders.image.evil": torch.zeros(1)})), "encoders.image.evil"),
    "a tensor too few": (tensors(lambda w: w.pop(a_name(w))), "missing"),
    "a tensor of no part": (tensors(lambda w: w.update({"__class__": torch.zeros(1)})), "__class__"),
    # the run and the card
    "a run that is a list": (file(RUN, "[]"), "run.json"),
    "a run of wrong shape": (run_json(training=7), "run.json: training"),
    "a run without versions": (run_json(training={"dataset": "x"}), "run.json: training"),
    "evaluations of wrong shape": (run_json(evaluations={"a": 1}), "run.json: evaluations"),
    "scores of wrong shape": (
        run_json(evaluations=[{"dataset": "x", "split": "test", "examples": 1, "fingerprint": "", "scores": {"a": 1}}]), "scores",
    ),
    "a name of megabytes in the run": (run_json(training={**TRAINED, "dataset": "x" * (2 << 20)}), "run.json: training"),
    "a deep run": (file(RUN, '{"a":' * 5000 + "1" + "}" * 5000), "nests deeper"),
    "a script in the card": (file(CARD, "# x\n<script>alert(1)</script>"), "README.md: holds"),
    "a handler in the card": (file(CARD, "<img src=x onerror=alert(1)>"), "README.md: holds"),
    "a link that is a script in the card": (file(CARD, "[x](javascript:alert(1))"), "README.md: holds"),
    "a frame in the card": (file(CARD, "<iframe src='https://x'>"), "README.md: holds"),
    "a huge card": (sparse(CARD, GIGABYTES), "too large for a model card"),
    "YAML's laughter in the card": (
        file(CARD, "---\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefghi", "bcdefghij", strict=True)) + "---\n"),
        "README.md: its metadata",
    ),
    "a YAML tag in the card": (file(CARD, "---\na: !!python/object/apply:os.system [true]\n---\n"), "README.md: its metadata"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_before_anything_is_read(kind, folder, monkeypatch):
    change, said = KINDS[kind]
    change(folder)

    def read(*arguments, **keywords):
        raise AssertionError("tensors were read")

    monkeypatch.setattr(checkpoint, "load_file", read)
    with no_network(), pytest.raises(MmzooError, match=said.replace("(", r"\(")) as caught:
        mmzoo.load(folder)
    assert len(str(caught.value)) < 2000


def test_what_was_not_changed_loads(folder):
    seal(folder)
    mmzoo.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    tensors(lambda weights: weights[a_name(weights)].view(-1)[:1].fill_(value))(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: fusions\.image\..* holds"):
        mmzoo.load(folder)


def test_tensors_that_would_overwrite_a_backbone(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmzoo_transformers.bytes import byte_tokenizer

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=264, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer("causal").save_pretrained(tmp_path / "gpt2")
    cnn = {"use": "cnn", "image_size": 16, "channels": [8]}
    model = mmzoo.build(
        encoder=cnn,
        fusion="prefix-linear",
        language_model={"use": f"hf-causal:{tmp_path}/gpt2", "train": "frozen"},
        task="caption",
    )
    folder = model.save(tmp_path / "model")
    good = (folder / MANIFEST).read_text()
    name = next(name for name in model.state_dict() if name.startswith("language_model."))
    tensors(lambda weights: weights.update({name: model.state_dict()[name].clone()}))(folder)
    with pytest.raises(CheckpointError, match=f"unexpected: {name}"):
        mmzoo.load(folder)

    shutil.rmtree(folder)
    model.save(folder)
    seal(folder, lambda found: found.update(lock={}))
    with pytest.raises(CheckpointError, match="no lock"):
        mmzoo.load(folder)

    (folder / MANIFEST).write_text(good)
    model.save(folder)
    seal(folder, lambda found: found["lock"]["language_model"]["files"].update({"model.safetensors": "0" * 64}))
    with pytest.raises(CheckpointError, match="is not the file that this checkpoint was trained with"):
        mmzoo.load(folder)
    seal(folder, lambda found: found["lock"]["language_model"]["files"].pop("model.safetensors"))
    with pytest.raises(CheckpointError, match="is not in the checkpoint's lock"):
        mmzoo.load(folder)


STRANGE = [".git/config", "README.MD", "mmzoo.json ", "README.md\n", "CON", "a/b.json", "\u202emd.json"]


@pytest.fixture
def shared(good, tmp_path):
    """The URL of a shared folder, and the folder of its one revision."""
    url = f"file://{tmp_path}/zoo/me/x"
    return url, tmp_path / "zoo/me/x" / mmzoo.push(good, url).commit


def forge(revision, change):
    """Change the list of files, and give the revision the name that is right for it."""
    from mmzoo.sharing.folder import revision_of

    seal(revision, lambda found: change(found["files"]))
    files = json.loads((revision / MANIFEST).read_text())["files"]
    files |= {name: checkpoint.file_facts(revision / name).model_dump() for name in (MANIFEST, CARD)}
    commit = revision_of({name: SimpleNamespace(**facts) for name, facts in files.items()})
    (revision.parent / "branches/main").write_text(commit)
    return revision.rename(revision.with_name(commit))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.update({"../../evil": {"size": 1, "sha256": "0" * 64}}), "leaves the folder"),
        (lambda files: files.update({"pytorch_model.bin": {"size": 1, "sha256": "0" * 64}}), "pickle"),
        *((lambda files, name=name: files.update({name: files[RUN]}), "no file of a checkpoint") for name in STRANGE),
        (lambda files: files.update({CARD: files[RUN]}), "no file of a checkpoint"),
        (lambda files: files[WEIGHTS].update(sha256="../../../etc/passwd"), "sha256"),
        (lambda files: files[WEIGHTS].update(size=-1), "size"),
        (lambda files: files.pop(WEIGHTS), "does not list model.safetensors"),
        (lambda files: files[WEIGHTS].update(sha256="0" * 64), "altered"),
        (lambda files: files[WEIGHTS].update(size=TERABYTES), "nothing was downloaded"),
    ],
    ids=["a way out", "a pickle", *map(ascii, STRANGE), "a card", "a path for a hash", "a size below zero", "no weights",
         "another hash", "another size"],
)  # fmt: skip
def test_a_forged_manifest_in_a_shared_folder(shared, tmp_path, change, said):
    url, revision = shared
    forge(revision, change)
    with pytest.raises((HubError, CheckpointError), match=said):
        mmzoo.pull(url, to=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_manifest_that_was_forged_with_care_is_another_revision(shared):
    url, revision = shared
    (revision / CARD).write_text("# Buy our model")
    assert forge(revision, lambda files: None) != revision
    mmzoo.pull(url)
    with pytest.raises(HubError, match="no revision"):
        mmzoo.pull(url, revision=revision.name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("pytorch_model.bin", "pickle"), ("modeling_x.py", "is code"), ("a/b/hook.sh", "is code"), ("a/x.pkl", "pickle")],
)
def test_files_beside_those_of_a_revision(shared, tmp_path, name, said):
    url, revision = shared
    (revision / name).parent.mkdir(parents=True, exist_ok=True)
    (revision / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=said):
        mmzoo.pull(url, to=tmp_path / "to")


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/passwd", "C:/x", "a\\..\\..\\x"])
def test_names_that_only_an_object_store_has(good, tmp_path, name):
    import fsspec

    url = "memory://hostile/me/x"
    fsspec.filesystem("memory").rm("/hostile", recursive=True) if fsspec.filesystem("memory").exists("/hostile") else None
    commit = mmzoo.push(good, url).commit
    store = fsspec.filesystem("memory").store
    store[f"/hostile/me/x/{commit}/{name}"] = store[f"/hostile/me/x/{commit}/{RUN}"]
    with pytest.raises(CheckpointError, match="leaves the folder"):
        mmzoo.pull(url, to=tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".git/config", "notes.txt", ".mmzoo-writing-x"])
def test_what_the_manifest_does_not_list_is_not_fetched(shared, tmp_path, name):
    url, revision = shared
    (revision / name).parent.mkdir(parents=True, exist_ok=True)
    (revision / name).write_bytes(b"x")
    folder = mmzoo.pull(url, to=tmp_path / "to")
    assert not (folder / name).exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [MANIFEST, CARD, WEIGHTS, "../branches/main"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_a_link_in_a_shared_folder(shared, tmp_path, name, kind):
    url, revision = shared
    path = revision / name
    path.rename(tmp_path / "moved")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "moved")
    said = "is a link or no regular file|is 0 bytes" if name == WEIGHTS and kind == "pipe" else "is a link or no regular file"
    with pytest.raises(MmzooError, match=said):
        mmzoo.pull(url, to=tmp_path / "to")


@pytest.mark.parametrize("name", [MANIFEST, CARD, "../branches/main"])
def test_a_small_file_of_gigabytes_in_a_shared_folder(shared, name):
    url, revision = shared
    with (revision / name).open("ab") as file:
        file.truncate(GIGABYTES)
    with pytest.raises(CheckpointError, match="is larger than"):
        mmzoo.pull(url)


@pytest.mark.parametrize("text", ["", "../../../etc", "main", "g" * 40, "\xff" * 40])
def test_a_branch_that_names_no_revision(shared, text):
    url, revision = shared
    (revision.parent / "branches/main").write_bytes(text.encode("latin-1"))
    with pytest.raises(HubError, match="does not name a revision"):
        mmzoo.pull(url)


def test_a_branch_whose_revision_has_no_manifest(shared):
    url, revision = shared
    (revision / MANIFEST).unlink()
    with pytest.raises(HubError, match="no mmzoo.json, so it is incomplete"):
        mmzoo.pull(url)


@pytest.mark.parametrize(
    ("url", "revision"), [("file:///" + "a" * 5000, None), ("file:///a%00b", None), ("file:///zoo/m", "a" * 5000)]
)
def test_names_that_no_file_system_takes(url, revision):
    with pytest.raises(HubError) as caught:
        mmzoo.pull(url, revision=revision)
    assert len(str(caught.value)) < 300


def test_a_script_in_a_recipe_does_not_run_where_its_card_is_shown(good, tmp_path):
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    recipe(summary="<script>alert(1)</script> and <img src=x onerror=alert(1)>")(folder)
    card = mmzoo.load(folder).card()
    assert "&lt;script" in card
    assert "<script" not in card
    assert "<img" not in card


def test_a_terminal_obeys_neither_a_card_nor_an_error(good, folder, capsys, monkeypatch):
    seal(folder, lambda found: found["recipe"].update(name="\x1b[2Jred"))
    assert "?[2Jred" in mmzoo.load(folder).card()
    recipe(encoder={"use": "\x1b[2Jevil"})(folder)
    monkeypatch.setattr("sys.argv", ["mmzoo", "card", str(folder)])
    with pytest.raises(SystemExit):
        cli_main()
    assert "unknown encoder '?[2Jevil'" in capsys.readouterr().err
