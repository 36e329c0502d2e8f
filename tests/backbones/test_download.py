"""Pretrained parts through the real download code, from a Hub on loopback with small checkpoints under the real names."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from hub import LFS, Hub, Request, environment, make, make_hub, oid, pickle_weights, run, run_script, serve
from safetensors.torch import load_file

from mmzoo.interfaces.kinds import key_of

CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"
PICKLED = "someone/pickled-gpt2"

# The default checkpoints that clip-prefix-gpt2 does not use.
OTHERS = [
    ("siglip", "projector", "smollm2", "vqa"),
    ("vit", "concat", "bert", {"use": "classify", "labels": ["yes", "no"]}),
    ("clip", "late-concat", "bert-decoder", "caption"),
    ("clip", "projector", "opt", "caption"),
    ("siglip", "prefix-mlp", "t5", "vqa"),
]

# One process does what needs an empty cache, one after the other, and marks each part in the server's log.
FIRST = """
import io, json, os, sys
from contextlib import redirect_stdout
from urllib.request import urlopen

import torch
import transformers
from PIL import Image

import mmzoo
from mmzoo import cli
from mmzoo.errors import DoesNotFit, SourceError

clip, gpt2, output, combinations = sys.argv[1:]
found = {}


def mark(name):
    urlopen(f"{os.environ['HF_ENDPOINT']}/mark/{name}").read()


def command(*words):
    out, sys.argv = io.StringIO(), ["mmzoo", *words]
    with redirect_stdout(out):
        try:
            cli.main()
        except SystemExit as end:
            return end.code, out.getvalue()


def refused(kind, *arguments, **keywords):
    try:
        mmzoo.build(*arguments, **keywords)
    except kind as error:
        return str(error)


def sizes(model):
    return [(p.parameters, p.trained, p.shape) for p in model.summary().parts]


mark("check")
found["check"] = command("check", "clip-prefix-gpt2", "--encoder", "clip@main", "--language-model", "gpt2@main", "--json")
mark("misfit")
found["no_kind"] = refused(DoesNotFit, "clip-prefix-gpt2", language_model="bert")
found["no_room"] = refused(DoesNotFit, "clip-prefix-gpt2", fusion={"length": 300})
found["no_blocks"] = refused(DoesNotFit, "clip-prefix-gpt2", language_model={"train": "last:9"})
mark("carried")
found["carried"] = command("check", "clip-prefix-gpt2", "--json")
mark("random")
random = mmzoo.build("clip-prefix-gpt2", encoder="clip@main", language_model="gpt2@main", pretrained=False, seed=0)
found["random_sizes"] = sizes(random)
found["random_finite"] = all(bool(p.isfinite().all()) for p in random.parameters())
mark("unknown")
found["unknown"] = refused(SourceError, "clip-prefix-gpt2", encoder="hf-vision:nobody/nothing")
found["no_revision"] = refused(SourceError, "clip-prefix-gpt2", encoder="clip@v9")
mark("pickled")
found["pickled"] = refused(
    SourceError, "clip-prefix-gpt2", encoder="cnn", language_model="hf-causal:someone/pickled-gpt2"
)
mark("build")
model = mmzoo.build("clip-prefix-gpt2", seed=0)
found["sizes"] = sizes(model)
vision = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).state_dict()
text = transformers.GPT2LMHeadModel.from_pretrained(gpt2).state_dict()
for kind, ours, theirs in (("encoder", model.encoder.model, vision), ("language_model", model.language_model.model, text)):
    ours = ours.state_dict()
    found[f"{kind}_same"] = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)
found["differs_from_random"] = not torch.equal(text["lm_head.weight"], random.language_model.model.lm_head.weight)
picture = Image.new("RGB", (48, 40), (200, 30, 90))
mark("use")
found["text"] = model.generate(image=picture, prompt="a", max_new_tokens=8)
model.save(output)
picture.save(f"{output}/picture.png")
found["trained"] = model.summary().trained
mark("again")
mmzoo.build("clip-prefix-gpt2")
mark("others")
found["others"] = {}
for encoder, fusion, language_model, task in json.loads(combinations):
    model = mmzoo.build(encoder=encoder, fusion=fusion, language_model=language_model, task=task)
    found["others"][language_model] = {kind: lock["commit"] for kind, lock in model.lock().items()}
print(json.dumps(found))
"""

# A checkpoint in a new process: what it says, then the same with an altered file and an empty cache.
LOAD = """
import json, os, shutil, sys

import mmzoo
from mmzoo.errors import CheckpointError

folder, altered = sys.argv[1:]
found = {"text": mmzoo.load(folder).generate(image=f"{folder}/picture.png", prompt="a", max_new_tokens=8)}
if altered:
    with open(altered, "r+b") as file:
        file.seek(-4, 2)
        last = file.read(4)
        file.seek(-4, 2)
        file.write(bytes(255 - byte for byte in last))
    shutil.rmtree(os.environ["HF_HOME"])
    try:
        mmzoo.load(folder)
    except CheckpointError as error:
        found["error"] = str(error)
print(json.dumps(found))
"""


def weights(requests: list[Request]) -> list[str]:
    """What was asked of weights."""
    return [f"{request.method} {request.path}" for request in requests if request.weights]


def contents(requests: list[Request]) -> list[str]:
    """The files whose contents were fetched."""
    return [request.path for request in requests if request.method == "GET" and request.file and request.status < 300]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = make_hub(tmp_path_factory.mktemp("hub"))
    pickle_weights(make(folder / PICKLED, GPT2))
    with serve(folder) as served:
        yield served


@pytest.fixture(scope="module")
def first(hub: Hub, tmp_path_factory):
    """What `FIRST` found, with the ``folder`` that it saved and the ``cache`` that it filled."""
    cache, folder = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("saved") / "model"
    clip, gpt2 = (str(served(hub, name)) for name in (CLIP, GPT2))
    found = run_script(FIRST, clip, gpt2, str(folder), json.dumps(OTHERS), env=environment(hub.url, cache))
    return {**found, "folder": folder, "cache": cache}


def served(hub: Hub, name: str) -> Path:
    """The folder that the safetensors of a repository come from: main, or its conversion."""
    repository = hub.repositories[name]
    reference = max(repository.references)
    assert reference == "main" or reference.startswith("refs/pr/")
    return repository.commits[repository.references[reference]]


# What fetches no weights


def test_check_fetches_no_weights(hub, first):
    code, out = first["check"]
    assert code == 0
    assert json.loads(out)["fits"] is True
    assert contents(hub.section("check")), "it reads the configurations"
    assert weights(hub.section("check")) == []


def test_a_default_variant_is_checked_without_the_hub(hub, first):
    """By the configurations that the plugin carries, which are of the real checkpoints; a revision is asked of the hub."""
    code, out = first["carried"]
    assert code == 0
    assert [p["parameters"] for p in json.loads(out)["parts"]][::2] == [87_849_216, 124_439_808]
    assert hub.section("carried") == []


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ("no_kind", "needs a causal or seq2seq language model; 'bert' is bidirectional"),
        ("no_room", "adds 300 tokens"),
        ("no_blocks", "language_model.train: last:9: language model 'gpt2' has 2 blocks"),
    ],
)
def test_misfit_fetches_no_weights(hub, first, refusal, says):
    assert says in first[refusal]
    assert weights(hub.section("misfit")) == []


def test_random_weights_fetch_none_and_have_the_same_sizes(hub, first):
    assert weights(hub.section("random")) == []
    assert first["random_finite"]
    assert first["random_sizes"] == first["sizes"]
    checked = json.loads(first["check"][1])["parts"]
    assert [[p["parameters"], p["trained"], p["shape"]] for p in checked] == first["sizes"]


# What cannot be fetched


def test_unknown_repository_and_revision(hub, first):
    assert "'nobody/nothing' (not a folder here): there is no such repository" in first["unknown"]
    assert f"'{CLIP}': has no revision 'v9'" in first["no_revision"]
    assert weights(hub.section("unknown")) == []


def test_pickled_weights_are_refused(hub, first):
    assert "pickled weights are never loaded" in first["pickled"]
    assert PICKLED in first["pickled"]
    assert [path for path in contents(hub.section("pickled")) if path.endswith(".bin")] == []


@pytest.mark.slow
def test_command_line_says_what_is_wrong(hub, tmp_path):
    done = run(
        "-m", "mmzoo", "check", "clip-prefix-gpt2", "--encoder", "hf-vision:nobody/nothing",
        env=environment(hub.url, tmp_path),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: 'nobody/nothing' (not a folder here): there is no such repository")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# What is fetched


def test_weights_are_those_that_were_served(hub, first):
    assert first["encoder_same"]
    assert first["language_model_same"]
    assert first["differs_from_random"]
    fetched = [path for path in contents(hub.section("build")) if path.endswith(LFS)]
    assert len(fetched) == 2, "each file once"
    assert [path for path in contents(hub.section("build")) if path.endswith(".bin")] == []


def test_a_second_build_fetches_nothing(hub, first):
    assert contents(hub.section("again")) == []


def test_every_default_checkpoint_builds(hub, first):
    found = first["others"]
    assert len(found) == len(OTHERS)
    commits = {commit for repository in hub.repositories.values() for commit in repository.commits}
    assert all(commits.issuperset(lock.values()) and len(lock) == 2 for lock in found.values())
    opt = hub.repositories["facebook/opt-125m"].references
    assert found["opt"]["language_model"] == opt["refs/pr/52"], "main has pickled weights only"


# Saving and loading


def test_lock_has_commit_and_hashes(hub, first):
    manifest = json.loads((first["folder"] / "mmzoo.json").read_text())
    assert set(manifest["lock"]) == {"encoders.image", "language_model"}
    for key, name in (("encoders.image", CLIP), ("language_model", GPT2)):
        lock, folder = manifest["lock"][key], served(hub, name)
        commits = hub.repositories[name].commits
        assert lock["source"] == "hub"
        assert lock["id"] == name
        assert commits[lock["commit"]] == folder
        assert lock["files"]["model.safetensors"] == oid(folder / "model.safetensors")
        assert "config.json" in lock["files"]
        assert all(len(digest) == 64 for digest in lock["files"].values())


def test_only_trained_weights_are_saved(first):
    path = first["folder"] / "model.safetensors"
    saved = load_file(path)
    assert {key_of(name) for name in saved} == {"fusions.image"}
    assert sum(value.numel() for value in saved.values()) == first["trained"]
    assert 4 * first["trained"] <= path.stat().st_size < 4 * first["trained"] + 2048


@pytest.mark.slow
def test_offline_with_a_warm_cache(hub, first):
    before = len(hub.requests)
    env = environment(hub.url, first["cache"], HF_HUB_OFFLINE="1")
    assert run_script(LOAD, str(first["folder"]), "", env=env)["text"] == first["text"]
    assert len(hub.requests) == before


def test_the_locked_commit_is_loaded_and_altered_files_are_refused(hub, first, tmp_path):
    """The main branches have moved on, and the cache is empty; then a file is not what it was at the same commit."""
    lock = json.loads((first["folder"] / "mmzoo.json").read_text())["lock"]
    altered = shutil.copytree(served(hub, GPT2), tmp_path / "gpt2")
    hub.repositories[GPT2].commits[lock["language_model"]["commit"]] = altered
    hub.push(GPT2, make(tmp_path / "moved", GPT2, seed=1))
    before = len(hub.requests)
    env = environment(hub.url, tmp_path / "cache")
    found = run_script(LOAD, str(first["folder"]), str(altered / "model.safetensors"), env=env)
    assert found["text"] == first["text"]
    asked = [request.path for request in hub.requests[before:] if request.file]
    assert all(any(f"/resolve/{lock[kind]['commit']}/" in path for kind in lock) for path in asked), asked
    assert "model.safetensors is not the file that this checkpoint was trained with" in found["error"]
    assert GPT2 in found["error"]
