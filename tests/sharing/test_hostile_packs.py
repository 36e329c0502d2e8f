"""Test untrusted packs: whatever one contains, loading it raises an error of this package, before a file is extracted."""

import contextlib
import io
import json
import shutil
import struct
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmzoo
from mmzoo.checkpoints import folder as checkpoint
from mmzoo.errors import CheckpointError, MmzooError
from mmzoo.sharing import archive, unpack
from mmzoo.testing import no_network, tiny

GIGABYTES = 8 << 30
END = struct.Struct("<4s4H2LH")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return mmzoo.pack(mmzoo.build(tiny("cnn-product-lstm"), seed=0), tmp_path_factory.mktemp("good") / "good.mmzoo").read_bytes()


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))


def files(data):
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return {name: old.read(name) for name in old.namelist()}


def facts(data):
    return {"size": len(data), "sha256": checkpoint.hashlib.sha256(data).hexdigest()}


def written(contents, edit=lambda info: None, **how):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **how) as new:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = how.get("compression", zipfile.ZIP_STORED)
            new.writestr(info, data)
            edit(info)
    return out.getvalue()


def adding(name, content=b"x", *, listed=True):
    """Add a file to the archive, and to the list in pack.json."""

    def change(data):
        contents = files(data)
        if listed:
            index = json.loads(contents["pack.json"])
            index["files"][name] = facts(content)
            contents["pack.json"] = json.dumps(index).encode()
        return written({**contents, name: content})

    return change


def index(edit):
    def change(data):
        contents = files(data)
        found = json.loads(contents["pack.json"])
        contents["pack.json"] = json.dumps(edit(found) or found).encode()
        return written(contents)

    return change


def raw_index(text):
    return lambda data: written({**files(data), "pack.json": text})


def each(edit):
    """Change what the directory of the archive says about the weights."""

    def only(info):
        if info.filename == "model.safetensors":
            edit(info)

    return lambda data: written(files(data), only)


def mode(bits):
    return each(lambda info: setattr(info, "external_attr", bits << 16))


def flags(bits):
    """Set flags in both headers of the weights."""

    def change(data):
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            at = old.getinfo("model.safetensors").header_offset
            start = old.start_dir
        made = bytearray(data)
        made[at + 6] |= bits
        entry = made.index(b"PK\1\2", start)
        while b"model.safetensors" not in made[entry + 46 : entry + 63]:
            entry = made.index(b"PK\1\2", entry + 4)
        made[entry + 8] |= bits
        return bytes(made)

    return change


def end(**values):
    """Change the end record of the archive."""
    names = ("mark", "disk", "first", "here", "count", "length", "start", "comment")

    def change(data):
        found = dict(zip(names, END.unpack(data[-END.size :]), strict=True))
        return data[: -END.size] + END.pack(*{**found, **values}.values())

    return change


def end64(count, length, start):
    def change(data):
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - END.size, 1)
        return data[: -END.size] + record + locator + END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)

    return change


def overlapping(data):
    """Give all files the bytes of one, as zip bombs do."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        at = old.getinfo("model.safetensors").header_offset
    return each_to(at)(data)


def each_to(offset):
    return lambda data: written(files(data), lambda info: setattr(info, "header_offset", offset))


def twice(data):
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as more, pytest.warns(UserWarning, match="Duplicate"):
        more.writestr("model.safetensors", b"x")
    return out.getvalue()


def another_local_name(data):
    at = data.index(b"model.safetensors", data.index(b"PK\3\4"))
    while data[at - 30 : at - 26] != b"PK\3\4":
        at = data.index(b"model.safetensors", at + 1)
    return data[:at] + b"MODEL.safetensors" + data[at + 17 :]


def dropped(name):
    return lambda data: written({key: value for key, value in files(data).items() if key != name})


def manifest(edit):
    """Change the checkpoint's own manifest, and update its digest and pack.json."""

    def change(data):
        contents = files(data)
        found = json.loads(contents["mmzoo.json"])
        edit(found)
        found["digest"] = checkpoint.manifest_digest(found)
        contents["mmzoo.json"] = json.dumps(found).encode()
        listed = json.loads(contents["pack.json"])
        listed["files"]["mmzoo.json"] = facts(contents["mmzoo.json"])
        contents["pack.json"] = json.dumps(listed).encode()
        return written(contents)

    return change


KINDS = {
    # not an archive
    "nothing": (lambda data: b"", "is no pack"),
    "no zip": (lambda data: b"\x89PNG" * 1000, "is no pack"),
    "a pickle": (lambda data: b"\x80\x04cos\nsystem\n(S'true'\ntR." * 9, "is no pack"),
    "cut at the end": (lambda data: data[:-1], "is no pack"),
    "cut in the middle": (lambda data: data[: len(data) // 2], "is no pack"),
    "cut, with an end": (lambda data: data[: len(data) // 2] + data[-END.size :], "is no pack"),
    "another zip, without a list": (lambda data: written({"model.safetensors": b"x"}), "no pack.json"),
    # bombs
    "compressed": (lambda data: written(files(data), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "a bomb": (
        lambda data: written({**files(data), "tokenizer.json": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "a bomb of bzip2": (lambda data: written(files(data), compression=zipfile.ZIP_BZIP2), "is compressed"),
    "a bomb of lzma": (lambda data: written(files(data), compression=zipfile.ZIP_LZMA), "is compressed"),
    "a size of gigabytes": (
        each(lambda i: (setattr(i, "file_size", GIGABYTES), setattr(i, "compress_size", GIGABYTES))), "says that its files have",
    ),
    "a size that unfolds": (each(lambda i: setattr(i, "file_size", GIGABYTES)), "of unknown size"),
    "a size that is not declared": (flags(8), "of unknown size"),
    "files that overlap": (overlapping, "is not where the list of files says"),
    "files at one place": (each_to(0), "is not where the list of files says"),
    "a file out of the archive": (each(lambda i: setattr(i, "header_offset", 1 << 31)), "is not where the list of files says"),
    "a directory of gigabytes": (end(length=0xFFFFFFF0), "is no pack"),
    "a directory of exabytes": (end64(5, 1 << 62, 0), "is no pack"),
    "files without end": (end64(1 << 40, 100, 0), "is no pack"),
    "a directory elsewhere": (end64(5, 100, 1 << 60), "is no pack"),
    "files in ten thousands": (lambda data: written({f"wheels/x{i}.whl": b"" for i in range(10_001)}), "are allowed"),
    # names
    "a name with ..": (adding("../evil.json"), "leaves the folder"),
    "a hidden way out": (adding("backbones/0/../../../evil.json"), "leaves the folder"),
    "an absolute name": (adding("/tmp/evil.json"), "leaves the folder"),
    "a name with a backslash": (adding("backbones\\evil.json"), "leaves the folder"),
    "a name with a drive": (adding("C:evil.json"), "leaves the folder"),
    "a name with a null": (lambda data: adding("evilXjson")(data).replace(b"evilXjson", b"evil\0json"), "leaves the folder"),
    "a pickle in it": (adding("pytorch_model.bin"), "pickle"),
    "a pickle of a backbone": (adding("backbones/0/pytorch_model.bin"), "pickle"),
    "a script": (adding("run.py"), "is code"),
    "code of a backbone": (adding("backbones/0/modeling_x.py"), "is code"),
    "a wheel in another place": (adding("backbones/0/x.whl"), "is code"),
    "an unknown name": (adding("notes.txt"), "no file of a pack"),
    "an unknown folder": (adding("other/config.json"), "no file of a pack"),
    "a file below a backbone": (adding("backbones/0/deep/config.json"), "no file of a pack"),
    "a backbone without a number": (adding("backbones/gpt2/config.json"), "no file of a pack"),
    "an archive in the archive": (lambda data: adding("inner.zip", data)(data), "no file of a pack"),
    "a pack in the pack": (lambda data: adding("inner.mmzoo", data)(data), "no file of a pack"),
    "a folder": (adding("backbones/0/", b""), "no file of a pack"),
    "a name that is no Unicode": (lambda data: adding("notesXt")(data).replace(b"notesXt", b"notes\xfft"), "no file of a pack"),
    "a name twice": (twice, "twice"),
    "two names for a file": (another_local_name, "is not where the list of files says"),
    "a link": (mode(0o120777), "is a link"),
    "a device": (mode(0o060666), "no regular file"),
    "a pipe": (mode(0o010666), "no regular file"),
    "encrypted": (flags(1), "encrypted"),
    "encrypted strongly": (flags(65), "encrypted"),
    # pack.json
    "a list that is none": (raw_index(b"[]"), "must hold a JSON object"),
    "a list that is no JSON": (raw_index(b"{" * 100), "not valid JSON"),
    "a list that is deep": (raw_index(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nests deeper"),
    "a list that is huge": (raw_index(b" " * (5 << 20)), "are allowed"),
    "a list that is empty": (raw_index(b""), "not valid JSON"),
    "a newer format": (index(lambda found: found.update(format=99)), "newer"),
    "another format": (index(lambda found: found.update(format=0)), "unknown"),
    "a key that is unknown": (index(lambda found: found.update(execute="x")), "execute"),
    "a file that is not listed": (adding("vocab.txt", listed=False), "not listed"),
    "a listed file that is missing": (dropped("model.safetensors"), "is missing"),
    "a size that is another": (index(lambda found: found["files"]["run.json"].update(size=1)), "says 1"),
    "a size below zero": (index(lambda found: found["files"]["run.json"].update(size=-1)), "size"),
    "a hash that is a path": (index(lambda found: found["files"]["run.json"].update(sha256="../x")), "sha256"),
    "a listed name that leads out": (index(lambda found: found["files"].update({"../x": facts(b"")})), "no file of a pack"),
    "a backbone without files": (index(lambda f: f["backbones"].append({"id": "a/b", "files": []})), "backbones"),
    "a backbone whose files lead out": (
        index(lambda f: f["backbones"].append({"id": "a/b", "files": ["../x"]})), "belongs to no backbone",
    ),
    "a backbone whose files are absolute": (
        index(lambda f: f["backbones"].append({"id": "a/b", "files": ["/etc/passwd"]})), "belongs to no backbone",
    ),
    "files of no backbone": (adding("backbones/7/config.json", b"{}"), "belongs to no backbone"),
    "no checkpoint": (dropped("mmzoo.json"), "mmzoo.json is missing"),
}  # fmt: skip

# Refused while files are extracted; nothing is left.
LATER = {
    "weights that were altered": (
        lambda data: data.replace(files(data)["model.safetensors"][-8:], b"\0" * 8), "was altered",
    ),
    "a run that was altered": (lambda data: written({**files(data), "run.json": b" " * len(files(data)["run.json"])}), "altered"),
    "another checkpoint's list": (manifest(lambda found: found["files"].pop("config.json")), "config.json is not in both"),
    "a file more in the checkpoint's list": (
        manifest(lambda found: found["files"].update({"vocab.txt": facts(b"")})), "vocab.txt is not in both",
    ),
    "another hash in the checkpoint's list": (
        manifest(lambda found: found["files"]["model.safetensors"].update(sha256="0" * 64)), "is not what mmzoo.json says",
    ),
    "a file of a tokenizer that nobody lists": (adding("vocab.txt"), "vocab.txt is not in both"),
    "a card with a script": (adding("README.md", b"<script>"), "README.md: holds"),
    "a checkpoint of a newer format": (manifest(lambda found: found.update(format=99)), "newer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, *LATER])
def test_it_is_refused(kind, good, tmp_path, monkeypatch):
    change, said = {**KINDS, **LATER}[kind]
    path = tmp_path / "x.mmzoo"
    path.write_bytes(change(good))

    def extract(*arguments):
        raise AssertionError("something was extracted")

    if kind in KINDS:
        monkeypatch.setattr(archive.Archive, "extract", extract)
    with no_network():
        for call in (mmzoo.load, lambda path: unpack.unpack(path, tmp_path / "to")):
            with pytest.raises(CheckpointError, match=said) as caught:
                call(path)
            assert len(str(caught.value)) < 2000
            assert str(path) in str(caught.value)
    assert not (tmp_path / "to").exists()
    assert not [found for found in tmp_path.rglob("*") if found.is_file() and found != path]


def test_a_sparse_file_of_gigabytes(good, tmp_path):
    path = tmp_path / "x.mmzoo"
    with path.open("wb") as out:
        out.truncate(GIGABYTES)
    with pytest.raises(CheckpointError, match="is no pack"):
        mmzoo.load(path)
    with path.open("r+b") as out:
        out.seek(GIGABYTES - END.size)
        out.write(END.pack(b"PK\5\6", 0, 0, 5, 5, 0xFFFFFFFE, 0, 0))
    with pytest.raises(CheckpointError, match="are allowed"):
        mmzoo.load(path)


def test_the_files_of_packed_backbones_are_not_trusted(tmp_path):
    """Their headers are checked before they are loaded, and links are refused."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmzoo_transformers.bytes import byte_tokenizer

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=264, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer("causal").save_pretrained(tmp_path / "gpt2")
    parts = {"encoder": {"use": "cnn", "image_size": 16, "channels": [8]}, "fusion": "prefix-linear", "task": "caption"}
    model = mmzoo.build(**parts, language_model={"use": f"hf-causal:{tmp_path}/gpt2", "train": "frozen"})
    good = mmzoo.pack(model, tmp_path / "good.mmzoo").read_bytes()
    name = "backbones/0/model.safetensors"
    for content, said in ((struct.pack("<Q", GIGABYTES) + b"{}", "header too large"), (b"\x80\x04.", "not a valid safetensors")):
        (tmp_path / "x.mmzoo").write_bytes(index(lambda found, c=content: found["files"].update({name: facts(c)}))(good))
        contents = {**files((tmp_path / "x.mmzoo").read_bytes()), name: content}
        (tmp_path / "x.mmzoo").write_bytes(written(contents))
        with pytest.raises(CheckpointError, match=said):
            mmzoo.load(tmp_path / "x.mmzoo")
    folder = unpack.unpack(tmp_path / "good.mmzoo", tmp_path / "to")
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="is a link or missing"):
        mmzoo.load(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=3),
    near_end=st.booleans(),
)
def test_only_our_own_errors_come_out(good, tmp_path, edits, near_end):
    """Replace, insert and delete bytes, anywhere or in the directory of the archive."""
    data = bytearray(good)
    for place, new, old in edits:
        at = int(place * 600) + len(data) - 600 if near_end else int(place * len(data))
        data[at : at + old] = new
    path = tmp_path / "x.mmzoo"
    path.write_bytes(data)
    with contextlib.suppress(MmzooError):
        unpack.unpack(path, tmp_path / "to")
        assert files(bytes(data)).items() >= files(good).items(), "what was unpacked is what was packed"
        shutil.rmtree(tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_was_not_changed_loads(good, tmp_path):
    (tmp_path / "x.mmzoo").write_bytes(written(files(good)))
    mmzoo.load(tmp_path / "x.mmzoo")


def test_bytes_that_belong_to_no_listed_file_are_never_read(good, tmp_path):
    """Add bytes before, after and between the files: the same files are loaded."""
    start = END.unpack(good[-END.size :])[6]
    hole = end(start=start + 4)(good[:start] + b"evil" + good[start:])
    expected = unpack.read_index(write(tmp_path / "good.mmzoo", good))
    for data in (
        b"#!/bin/sh\n" + good,
        good + b"x",
        end(comment=3)(good) + b"abc",
        good + good,
        hole,
        end(count=60, here=60)(good),
    ):
        path = write(tmp_path / "x.mmzoo", data)
        assert unpack.read_index(path) == expected
        folder = unpack.unpack(path, tmp_path / "to")
        unpacked = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert unpacked == files(good)


def write(path, data):
    path.write_bytes(data)
    return path
