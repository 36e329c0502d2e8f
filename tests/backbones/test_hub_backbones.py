"""Sharing what was trained of a model, and the backbones that it is locked to: renamed, moved on, gone, or behind a mirror."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from hub import MODELS, environment, make, make_hub, run_script
from hub_server import TOKEN, serve_writable

import mmzoo
from mmzoo.models.assemble import assemble
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe

CLIP, GPT2 = "openai/clip-vit-base-patch32", "openai-community/gpt2"
POLICIES = ("frozen", "lora:8", "last:1", "last:2")

SAY = """
import json, os, sys
import torch
import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.testing import Sample

pictures = [e.image for e in Sample().load("test")][:2]

def say(model):
    batch = model.collator(training=True)(Sample().load("test"))
    with torch.no_grad():
        loss = model(**tensors(batch, "cpu"))["loss"]
    return [model.generate(image=pictures, prompt="a b", max_new_tokens=6), loss.item().hex()]
"""

# Trains and pushes one model a policy.
PUSH = (
    SAY
    + """
found, options = {}, {"max_steps": 2, "batch_size": 4, "precision": "fp32", "learning_rate": 0.1, "warmup": 0}
for policy in sys.argv[2:]:
    run = mmzoo.train("clip-prefix-gpt2", language_model={"train": policy}, dataset=Sample(), output=f"{sys.argv[1]}/{policy}",
                      progress=False, training=options)
    name = "me/" + policy.replace(":", "-")
    pushed = mmzoo.push(run.output, name, tag="v1")
    found[name] = [*say(run.model), pushed.sent]
print(json.dumps(found))
"""
)

# Loads, or pushes, what it is asked for, each time with a cache of its own.
ASKED = (
    SAY
    + """
from huggingface_hub import constants
from mmzoo.errors import MmzooError

for line in sys.stdin:
    call, arguments, cache = json.loads(line)
    constants.HF_HUB_CACHE = cache
    try:
        answer = say(mmzoo.load(*arguments)) if call == "load" else mmzoo.push(*arguments).to_dict()
    except MmzooError as error:
        answer = f"{type(error).__name__}: {error}"
    print("answer " + json.dumps(answer), flush=True)
"""
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = make_hub(tmp_path_factory.mktemp("backbones"), CLIP, GPT2)
    with serve_writable(tmp_path_factory.mktemp("hub")) as hub:
        for path in sorted(folder.glob("*/*")):
            name, _, reference = path.name.partition("@")
            hub.push(f"{path.parent.name}/{name}", path, reference.replace("+", "/") or "main")
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """What each model said where it was trained, by its repository; and the folder that they are in."""
    folder = tmp_path_factory.mktemp("trained")
    env = environment(hub.url, tmp_path_factory.mktemp("home"), HF_TOKEN=TOKEN)
    return run_script(PUSH, str(folder), *POLICIES, env=env), folder


@pytest.fixture(scope="module")
def ask(hub, pushed, tmp_path_factory):
    """A process that has a read-only mirror for its hub."""
    folder, count = tmp_path_factory.mktemp("asked"), itertools.count()
    with serve_writable(folder / "mirror", mirror=hub) as mirror:
        env = environment(mirror.url, folder / "home", HF_TOKEN=TOKEN, MMZOO_CACHE=str(folder / "own"))
        process = subprocess.Popen(
            [sys.executable, "-c", ASKED],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
            text=True,
        )

        def ask(call, *arguments):
            process.stdin.write(json.dumps([call, arguments, str(folder / f"cache{next(count)}")]) + "\n")
            process.stdin.flush()
            while line := process.stdout.readline():
                if line.startswith("answer "):
                    return json.loads(line.removeprefix("answer "))
            raise AssertionError((folder / "stderr").read_text())

        yield ask
        process.stdin.close()
        process.wait(10)


@pytest.fixture(autouse=True)
def as_it_was(hub):
    kept = {name: dict(hub.repositories[name].references) for name in (CLIP, GPT2)}
    repositories = dict(hub.repositories)
    yield
    hub.moved.clear()
    hub.repositories.update(repositories)
    for name, references in kept.items():
        hub.repositories[name].references = references


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.slow
def test_what_was_trained_reloads_the_same_through_a_mirror(ask, pushed, policy):
    said, _ = pushed
    name = "me/" + policy.replace(":", "-")
    assert ask("load", f"{name}@v1") == said[name][:2]


def test_the_policies_trained_different_models(pushed):
    said, folder = pushed
    assert len({losses[1] for losses in said.values()}) == len(POLICIES)
    sizes = [(folder / policy / "model.safetensors").stat().st_size for policy in POLICIES]
    assert sizes == sorted(set(sizes)), "LoRA adds little, and two blocks are more than one"


def test_a_mirror_takes_no_push(ask, pushed):
    said = ask("push", str(pushed[1] / "last:1"), "me/frozen")
    assert said.startswith("HubError")
    assert "405" in said
    assert "read-only mirror" in said


def test_a_backbone_that_was_renamed_is_found(hub, ask, pushed):
    for name in (CLIP, GPT2):
        hub.repositories[f"new/{name.partition('/')[2]}"] = hub.repositories.pop(name)
        hub.moved[name] = f"new/{name.partition('/')[2]}"
    hub.repositories["me/new"] = hub.repositories["me/frozen"]
    hub.moved["me/old"] = "me/new"
    assert ask("load", "me/old@v1") == pushed[0]["me/frozen"][:2]


def test_a_backbone_whose_branch_moved_on_is_loaded_at_its_commit(hub, ask, pushed, tmp_path):
    hub.push(GPT2, make(tmp_path / "moved", GPT2, seed=1))
    assert ask("load", "me/frozen@v1") == pushed[0]["me/frozen"][:2]


def test_a_backbone_that_vanished(hub, ask, pushed):
    commit = hub.repositories[GPT2].references["main"]
    del hub.repositories[GPT2]
    said = ask("load", "me/frozen@v1")
    assert said.startswith(f"SourceError: '{GPT2}' (not a folder here): there is no such repository")
    assert f"its language model is locked to '{GPT2}' at commit {commit}" in said
    assert "mmzoo pack" in said
    assert "--full" in said


def test_a_commit_that_vanished(hub, ask, pushed, tmp_path):
    store = hub.repositories[GPT2]
    commit = store.references["main"]
    folder = store.commits.pop(commit)
    store.references["main"] = "0" * 40
    store.commits["0" * 40] = folder
    try:
        said = ask("load", "me/frozen@v1")
    finally:
        store.commits[commit] = folder
    assert f"has no revision '{commit}'" in said
    assert f"is locked to '{GPT2}' at commit {commit}" in said


# Sizes


def real(folder):
    """clip-prefix-gpt2 with configurations of the real sizes, and weights of none."""
    import transformers

    from mmzoo_transformers.bytes import byte_tokenizer

    for name in (CLIP, GPT2):
        made = MODELS[name]
        getattr(transformers, made.config)(**made.real).save_pretrained(folder / name)
    transformers.CLIPImageProcessor().save_pretrained(folder / CLIP)
    byte_tokenizer("causal").save_pretrained(folder / GPT2)
    return parts(folder)


def parts(folder):
    recipe = read_recipe("clip-prefix-gpt2").to_dict(short=True)
    encoder = {**recipe["encoder"], "use": f"hf-vision:{folder / CLIP}"}
    return {**recipe, "encoder": encoder, "language_model": {**recipe["language_model"], "use": f"hf-causal:{folder / GPT2}"}}


@pytest.mark.slow
def test_the_trained_weights_of_the_real_size(tmp_path):
    model = assemble(Recipe.of(real(tmp_path)), meta=True)
    state, saved = model.state_dict(), model.saved_names()
    assert {name.partition(".")[0] for name in saved} == {"fusions"}
    size = sum(state[name].numel() for name in saved)
    assert 4 * size <= 130e6
    assert 4 * sum(p.numel() for p in model.parameters()) > 750e6


@pytest.mark.slow
def test_a_push_of_the_real_size(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path / "cache"))
    for name in (CLIP, GPT2):
        make(tmp_path / name, name, real_size=True)
    model = mmzoo.build(parts(tmp_path), seed=0)
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        folder = mmzoo.pull(mmzoo.push(model.to(dtype), f"file://{tmp_path}/zoo/me/{str(dtype)[6:]}").repo)
        sizes[dtype] = sum(path.stat().st_size for path in folder.iterdir())
    assert sizes[torch.float32] <= 130e6
    assert sizes[torch.bfloat16] <= 65e6
