"""Sharing through a plain folder, a store in memory and an S3 server: one layout, and nothing is lost when a push fails."""

import json
import os
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import fsspec
import pytest
from command_line import run
from fsspec.registry import _registry
from object_store import serve_s3

import mmzoo
from mmzoo.errors import CheckpointError, DoesNotFit, HubError
from mmzoo.sharing.folder import FolderRepository
from mmzoo.sharing.store import Store, open_local_store, open_store
from mmzoo.testing import Sample, tiny

PICTURES = [example.image for example in Sample().load("test")]
KINDS = ["file", "memory", "s3"]
NUMBERS = count()

# Kill the process in the middle of a push: its files are there, and its manifest is not.
KILLED = """
import os, signal, sys
import mmzoo
from mmzoo.sharing.store import Store

write = Store.write

def write_or_die(self, path, content):
    if path.endswith("mmzoo.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path, content)

Store.write = write_or_die
mmzoo.push(sys.argv[1], sys.argv[2])
"""


class Zoo:
    """An empty folder of repositories, and its files as nobody but fsspec sees them."""

    def __init__(self, url: str) -> None:
        self.url, self.repo = url, f"{url}/me/tiny"
        self.files, self.root = fsspec.url_to_fs(url)

    def names(self) -> set[str]:
        """Return the paths of the files, from the repository."""
        self.files.invalidate_cache()
        return {path.removeprefix(f"{self.root}/me/tiny/") for path in self.files.find(self.root)}

    def change(self, name: str, change) -> None:
        path = f"{self.root}/me/tiny/{name}"
        self.files.pipe_file(path, change(self.files.cat_file(path)))

    def remove(self, name: str) -> None:
        self.files.rm_file(f"{self.root}/me/tiny/{name}")


@pytest.fixture(scope="module")
def s3():
    with serve_s3() as url:
        fsspec.filesystem("s3").mkdir("bucket")
        yield url


@pytest.fixture(params=KINDS)
def zoo(request, tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        request.getfixturevalue("s3")
    place = {"file": f"{tmp_path}", "memory": f"zoo{next(NUMBERS)}", "s3": f"bucket/zoo{next(NUMBERS)}"}[request.param]
    return Zoo(f"{request.param}://{place}")


@pytest.fixture(scope="module")
def models():
    return [mmzoo.build(tiny("cnn-product-lstm"), seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return [model.save(folder / str(i)) for i, model in enumerate(models)]


def said(model):
    return [[p.label, p.score.hex()] for p in model.predict(image=PICTURES)]


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


def files_of(folder):
    return {path.name for path in Path(folder).iterdir()}


# Revisions, branches, tags


def test_a_store_serves_as_a_hub(models, zoo, tmp_path):
    first = mmzoo.push(models[0], zoo.repo, tag="v1")
    assert mmzoo.push(models[0], zoo.repo).sent == []
    second = mmzoo.push(models[1], zoo.repo)
    assert second.commit != first.commit
    assert said(mmzoo.load(zoo.repo)) == said(models[1])
    for revision in ("v1", first.commit, first.commit[:7]):
        assert said(mmzoo.load(zoo.repo, revision=revision)) == said(models[0])
    assert said(mmzoo.load(f"{zoo.repo}@{first.commit}")) == said(models[0])
    branch = mmzoo.push(models[0], zoo.repo, revision="a/b")
    assert (branch.commit, branch.sent) == (first.commit, [])
    proposed = mmzoo.push(models[1], zoo.repo, create_pr=True)
    assert proposed.revision == f"refs/pr/{second.commit[:12]}"
    assert mmzoo.pull(f"{zoo.repo}@{proposed.revision}", to=tmp_path / "to") == tmp_path / "to"
    with pytest.raises(HubError, match=rf"no revision 'v9'; there are: a/b, main, refs/pr/\w+, v1, .*{first.commit[:12]}"):
        mmzoo.load(zoo.repo, revision="v9")
    with pytest.raises(HubError, match="no such repository"):
        mmzoo.load(zoo.repo + "x")


def test_the_layout(saved, zoo):
    commit = mmzoo.push(saved[0], zoo.repo, tag="v1").commit
    assert zoo.names() == {"branches/main", "tags/v1", *(f"{commit}/{name}" for name in files_of(saved[0]))}


def test_a_file_that_the_newest_revision_has_is_not_sent_again(saved, zoo):
    mmzoo.push(saved[0], zoo.repo)
    done = mmzoo.push(saved[1], zoo.repo)
    assert done.sent == ["mmzoo.json", "model.safetensors"]
    assert {name.partition("/")[2] for name in zoo.names() if name.startswith(done.commit)} == files_of(saved[1])


def test_a_tag_does_not_move(models, zoo):
    commit = mmzoo.push(models[0], zoo.repo, tag="v1").commit
    assert mmzoo.push(models[0], zoo.repo, tag="v1").commit == commit
    with pytest.raises(HubError, match="tag 'v1' exists already"):
        mmzoo.push(models[1], zoo.repo, tag="v1")
    with pytest.raises(HubError, match="is a tag; a push goes to a branch"):
        mmzoo.push(models[1], zoo.repo, revision="v1")
    assert said(mmzoo.load(zoo.repo)) == said(models[0])


def test_two_that_write_one_tag_at_once(models, zoo, monkeypatch):
    mmzoo.push(models[0], zoo.repo)
    upload = FolderRepository._upload

    def meanwhile(self, *arguments):
        monkeypatch.setattr(FolderRepository, "_upload", upload)
        mmzoo.push(models[0], zoo.repo, tag="v1")
        return upload(self, *arguments)

    monkeypatch.setattr(FolderRepository, "_upload", meanwhile)
    with pytest.raises(HubError, match="tag 'v1' exists already"):
        mmzoo.push(models[1], zoo.repo, tag="v1")
    assert said(mmzoo.load(zoo.repo, revision="v1")) == said(mmzoo.load(zoo.repo)) == said(models[0])


def test_a_checkpoint_folder_is_served_as_it_is(models, saved, zoo):
    zoo.files.makedirs(f"{zoo.root}/me/tiny", exist_ok=True)
    for path in saved[0].iterdir():
        zoo.files.pipe_file(f"{zoo.root}/me/tiny/{path.name}", path.read_bytes())
    assert said(mmzoo.load(zoo.repo)) == said(mmzoo.load(zoo.repo, revision="main")) == said(models[0])
    assert [model.repo for model in mmzoo.search(at=zoo.url)] == [zoo.repo]
    with pytest.raises(HubError, match="is a single checkpoint"):
        mmzoo.load(zoo.repo, revision="v1")
    with pytest.raises(HubError, match="is a checkpoint"):
        mmzoo.push(models[1], zoo.repo)


def test_searching(models, zoo, tmp_path):
    if zoo.url.startswith("file"):
        assert mmzoo.search(at=zoo.url) == []
    commit = mmzoo.push(models[0], zoo.repo).commit
    zoo.files.pipe_file(f"{zoo.root}/README.md", b"not a repository")
    zoo.files.makedirs(f"{zoo.root}/me/other", exist_ok=True)
    models = mmzoo.search("tin", at=zoo.url, encoder="cnn")
    assert [(model.repo, model.commit) for model in models] == [(zoo.repo, commit)]
    assert mmzoo.search(at=zoo.url, encoder="clip") == []
    assert mmzoo.search("nothing", at=zoo.url) == []
    with pytest.raises(HubError, match="no such folder"):
        mmzoo.search(at=f"{zoo.url}-elsewhere")


def test_the_commands(saved, zoo, tmp_path):
    commit = json.loads(run("push", saved[0], zoo.repo, "--tag", "v1", "--json").stdout)["commit"]
    assert json.loads(run("search", "--at", zoo.url, "--json").stdout)[0]["commit"] == commit
    folder = tmp_path / "pulled"
    run("pull", f"{zoo.repo}@v1", "--to", folder)
    assert weights(folder) == weights(saved[0])
    assert "nothing is claimed" in run("verify", f"{zoo.repo}@v1", code=1).stdout
    assert "no revision 'v2'" in run("pull", f"{zoo.repo}@v2", code=2).stderr


# Pushes that fail, or run at once


def test_two_pushes_at_once(models, saved, zoo, monkeypatch):
    """Both have sent their files before one of them writes the branch."""
    barrier, pushed, upload = threading.Barrier(2, timeout=60), {}, FolderRepository._upload

    def upload_and_wait(self, *arguments):
        sent = upload(self, *arguments)
        barrier.wait()
        return sent

    monkeypatch.setattr(FolderRepository, "_upload", upload_and_wait)
    threads = [threading.Thread(target=lambda i=i: pushed.update({i: mmzoo.push(saved[i], zoo.repo)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = said(mmzoo.load(zoo.repo))
    assert newest in [said(model) for model in models]
    for i in range(2):
        assert said(mmzoo.load(zoo.repo, revision=pushed[i].commit)) == said(models[i])


def test_two_pushes_of_the_same_at_once(saved, zoo, monkeypatch):
    mmzoo.push(saved[0], zoo.repo)
    threads = [threading.Thread(target=mmzoo.push, args=(saved[1], zoo.repo)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[1])
    assert not [name for name in zoo.names() if ".mmzoo" in name]


def failing(method, position, last):
    """Return a method that fails for a path that ends so."""

    def call(self, *arguments):
        with self._access("written"):
            if arguments[position].endswith(last):
                raise OSError(28, "No space left on device")
        method(self, *arguments)

    return call


SENT_AGAIN = {"config.json": ["mmzoo.json", "model.safetensors"], "mmzoo.json": ["mmzoo.json"], "branches/main": []}


@pytest.mark.parametrize("last", SENT_AGAIN)
def test_a_push_that_fails_leaves_what_was_there_and_is_resumed(saved, zoo, monkeypatch, last):
    first = mmzoo.push(saved[0], zoo.repo).commit
    before = zoo.names()
    monkeypatch.setattr(Store, "write", failing(Store.write, 0, last))
    monkeypatch.setattr(Store, "copy", failing(Store.copy, 1, last))
    with pytest.raises(HubError, match="No space left on device; what was there is unchanged"):
        mmzoo.push(saved[1], zoo.repo)
    monkeypatch.undo()
    assert before <= zoo.names()
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[0])
    assert mmzoo.push(saved[1], zoo.repo).sent == SENT_AGAIN[last]
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[1])
    assert weights(mmzoo.pull(zoo.repo, revision=first)) == weights(saved[0])


def test_a_revision_that_is_not_complete_is_not_found(saved, zoo):
    first, second = (mmzoo.push(folder, zoo.repo).commit for folder in saved)
    zoo.remove(f"{first}/mmzoo.json")
    with pytest.raises(HubError, match=f"no revision '{first}'; there are: main, {second[:12]}$"):
        mmzoo.pull(zoo.repo, revision=first)
    assert mmzoo.push(saved[0], zoo.repo).sent == ["mmzoo.json"]
    assert weights(mmzoo.pull(zoo.repo, revision=first)) == weights(saved[0])


@pytest.mark.parametrize("zoo", ["s3"], indirect=True)
def test_a_process_that_is_killed_leaves_what_was_there(saved, zoo):
    mmzoo.push(saved[0], zoo.repo)
    command = [sys.executable, "-c", KILLED, str(saved[1]), zoo.repo]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[0])
    assert "model.safetensors" in mmzoo.push(saved[1], zoo.repo).unchanged
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[1])


def test_a_local_disk_that_is_full(models, tmp_path, monkeypatch):
    """A file is written beside its place, so that half of it is never taken for all of it."""
    from mmzoo.sharing import store

    repo = f"file://{tmp_path}/zoo/me/tiny"
    mmzoo.push(models[0], repo)

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.shutil, "copyfile", full)
    with pytest.raises(HubError, match="No space left on device; what was there is unchanged"):
        mmzoo.push(models[1], repo)
    monkeypatch.undo()
    assert not list((tmp_path / "zoo").rglob(".mmzoo-*"))


@pytest.mark.parametrize("kind", ["branches", "tags"])
def test_a_name_that_cannot_be_written(models, tmp_path, kind):
    repo = f"file://{tmp_path}/zoo/me/tiny"
    first = mmzoo.push(models[0], repo).commit
    if kind == "tags":
        (tmp_path / "zoo/me/tiny/tags").write_text("in the way")
    else:
        (tmp_path / "zoo/me/tiny/branches").rename(tmp_path / "zoo/me/tiny/old")
        (tmp_path / "zoo/me/tiny/branches").write_text("in the way")
    words = "cannot be written: .*what was there is unchanged. Check the disk and your permissions"
    with pytest.raises(HubError, match=words if kind == "branches" else "tag 'v1' exists already"):
        mmzoo.push(models[1], repo, tag="v1")
    assert said(mmzoo.load(repo, revision="main" if kind == "tags" else first)) == said(models[0])


# Damage


@pytest.mark.parametrize("name", ["model.safetensors", "mmzoo.json", "README.md", "run.json"])
def test_an_altered_file_is_named_and_pushed_again(saved, zoo, tmp_path, name):
    commit = mmzoo.push(saved[0], zoo.repo).commit
    zoo.change(f"{commit}/{name}", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="altered|not valid JSON"):
        mmzoo.pull(zoo.repo, to=tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert mmzoo.push(saved[0], zoo.repo).sent == [name]
    assert weights(mmzoo.pull(zoo.repo)) == weights(saved[0])


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_a_file_of_another_size_is_not_downloaded(saved, zoo, tmp_path, name, monkeypatch):
    commit = mmzoo.push(saved[0], zoo.repo).commit
    zoo.change(f"{commit}/{name}", lambda data: data + b"\0")
    with pytest.raises(CheckpointError, match=rf"{name} is \d+ bytes, \d+ were pushed; nothing was downloaded"):
        mmzoo.pull(zoo.repo, to=tmp_path / "to")
    zoo.remove(f"{commit}/{name}")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        mmzoo.pull(zoo.repo, to=tmp_path / "to")


def test_a_revision_under_the_name_of_another(saved, zoo):
    first, second = (mmzoo.push(folder, zoo.repo).commit for folder in saved)
    for name in files_of(saved[0]):
        zoo.files.cp_file(f"{zoo.root}/me/tiny/{second}/{name}", f"{zoo.root}/me/tiny/{first}/{name}")
    with pytest.raises(CheckpointError, match=f"revision {first} was altered"):
        mmzoo.pull(zoo.repo, revision=first)


def test_a_cached_copy_that_was_damaged_is_pulled_anew(saved, zoo):
    mmzoo.push(saved[0], zoo.repo)
    folder = mmzoo.pull(zoo.repo)
    (folder / "model.safetensors").write_bytes(weights(saved[1]))
    assert mmzoo.pull(zoo.repo) == folder
    assert weights(folder) == weights(saved[0])


# Who may read; where a URL leads


def test_a_private_repository(models, tmp_path, s3):
    repo = f"file://{tmp_path}/zoo/me/tiny"
    mmzoo.push(models[0], repo, private=True)
    assert (tmp_path / "zoo/me/tiny").stat().st_mode & 0o777 == 0o700
    os.chmod(tmp_path / "zoo/me/tiny", 0o755)
    with pytest.raises(HubError, match="others can read it"):
        mmzoo.push(models[1], repo, private=True)
    with pytest.raises(HubError, match="restrict who may read the bucket"):
        mmzoo.push(models[1], "s3://bucket/private/me/tiny", private=True)
    with pytest.raises(HubError, match="no such repository"):
        mmzoo.pull("s3://bucket/private/me/tiny")


def test_a_bucket_that_does_not_exist(saved, s3):
    with pytest.raises(HubError, match=r"s3://nowhere/me/tiny: cannot be written: .*bucket does not exist"):
        mmzoo.push(saved[0], "s3://nowhere/me/tiny")
    with pytest.raises(HubError, match="no such repository"):
        mmzoo.pull("s3://nowhere/me/tiny")
    with pytest.raises(HubError, match="no such folder"):
        mmzoo.search(at="s3://nowhere")


def test_a_store_without_credentials(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(HubError, match="cannot be read: NoCredentialsError.*Check the name, your credentials"):
        mmzoo.pull("s3://bucket/me/tiny")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("abfs", "azure")])
def test_a_package_that_is_missing(monkeypatch, scheme, extra):
    for name in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(HubError, match=rf'not installed: pip install "mmzoo\[{extra}\]"'):
        mmzoo.pull(f"{scheme}://bucket/me/tiny")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense://bucket/me/tiny", "Protocol not known.*s3://"),
        ("https://example.com/me/tiny", "is no URL of a folder"),
        ("hf://me/tiny", "owner/name for the Hub"),
        ("memory://zoo/../me/tiny", "without '..'"),
        ("s3://key:hunter2@bucket/me/tiny", "no credentials"),
        ("s3://key:hun/hunter2@bucket/me/tiny@v1", "no credentials"),
        ("az://box/me/tiny?sig=hunter2", "no credentials"),
    ],
)
def test_urls_that_are_refused(url, words):
    for call in (mmzoo.pull, mmzoo.load, lambda url: mmzoo.search(at=url)):
        with pytest.raises(HubError, match=words) as caught:
            call(url)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(HubError) as caught:
        mmzoo.pull(f"{url}@v1", revision="v2")
    assert "hunter2" not in str(caught.value)


def test_an_account_in_a_url_is_no_revision():
    from mmzoo.sharing.locations import _CREDENTIALS, _split

    url = "abfs://box@account.dfs.core.windows.net/zoo/me/tiny"
    assert _split(url) == (url, None)
    assert _split(f"{url}@v1") == (url, "v1")
    assert not _CREDENTIALS.search(f"{url}@v1")
    assert not _CREDENTIALS.search("sftp://me@host:22/zoo/me/tiny@v1")


# What is built from shared models


@pytest.mark.parametrize("zoo", ["memory"], indirect=True)
def test_building_from_shared_weights(models, zoo):
    mmzoo.push(models[0], zoo.repo)
    recipe = models[0].recipe
    assert said(mmzoo.build(recipe, weights=zoo.repo, seed=9)) == said(models[0])
    with pytest.warns(UserWarning, match="the task takes no weights: task.* shape"):
        other = mmzoo.build(recipe, weights=zoo.repo, task={"labels": ["a", "b", "c"]})
    ours, theirs = other.encoder.state_dict(), models[0].encoder.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    with pytest.raises(DoesNotFit, match="has weights for no part"):
        mmzoo.build(tiny("cnn-prefix-gpt", encoder={"use": "timm:resnet18"}), weights=zoo.repo)


@pytest.mark.parametrize("zoo", ["memory"], indirect=True)
def test_half_precision_is_kept_and_halves_the_file(models, saved, zoo):
    import torch

    half = mmzoo.build(models[0].recipe, weights=saved[0]).to(torch.bfloat16)
    folder = mmzoo.pull(mmzoo.push(half, zoo.repo).repo)
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, saved[0])]
    assert sizes[0] < 0.6 * sizes[1]
    loaded, expected = mmzoo.load(zoo.repo).state_dict(), half.state_dict()
    assert all(loaded[name].dtype == value.dtype and torch.equal(loaded[name], value) for name, value in expected.items())


def test_an_empty_file_is_read(zoo):
    store = open_store(zoo.url)
    store.write("empty", b"")
    assert store.read("empty", 100) == b""
    assert store.read("nothing", 100) is None


def test_a_fault_of_the_disk_is_not_taken_for_a_file_that_is_not_there(tmp_path, monkeypatch):
    store = open_local_store(tmp_path)

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(store.filesystem), "info", broken)
    for asked in (store.exists, lambda: store.is_file("a")):
        with pytest.raises(HubError, match="Input/output error"):
            asked()


def test_a_tag_is_never_seen_half_written(tmp_path):
    store = open_local_store(tmp_path)
    assert store.create("tags/v1", b"a" * 40)
    assert not store.create("tags/v1", b"b" * 40)
    assert store.read("tags/v1", 100) == b"a" * 40
    assert [path.name for path in (tmp_path / "tags").iterdir()] == ["v1"]
