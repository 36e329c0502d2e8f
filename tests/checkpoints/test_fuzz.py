"""Fuzz the readers of recipes, manifests and weights: they may raise errors of this package only.

Set FUZZ=5000 in the environment to try more inputs.
"""

import json
import os
import struct
from contextlib import suppress

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mmzoo
from mmzoo.checkpoints import folder, header
from mmzoo.errors import MmzooError
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.testing import tiny

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=int(os.environ.get("FUZZ", "100")))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["cnn", "gpt-mini", "lora:8"])
)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=12
)


def only_ours(read, *arguments):
    with suppress(MmzooError):
        read(*arguments)


def somewhere(data, change):
    """Choose a value at any depth of ``data``; return the container that holds it and its key."""
    places = []

    def walk(value):
        if isinstance(value, dict | list):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key])

    walk(data)
    return places[change % len(places)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return mmzoo.build(tiny("cnn-prefix-gpt"), seed=0).save(tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@QUIET
@given(data=PLAIN)
@example(data={"encoder": {"use": "x", 1: 2}})
def test_any_data_as_a_recipe(data):
    if isinstance(data, dict):
        only_ours(Recipe.of, data)
        only_ours(read_recipe, data)


@QUIET
@given(at=st.integers(0, 10_000), value=PLAIN)
def test_a_recipe_with_one_wrong_value(at, value):
    data = tiny("cnn-prefix-gpt").to_dict()
    holder, key = somewhere(data, at)
    holder[key] = value
    only_ours(lambda: mmzoo.check(Recipe.of(data)))


@QUIET
@given(text=st.text() | st.binary().map(lambda raw: raw.decode("latin-1")) | PLAIN.map(yaml.safe_dump))
@example(text="? [1]\n: 2")
@example(text="a: &a [*a]")
@example(text="2001-99-99")
@example(text="!!python/object/apply:os.system [x]")
@example(text="a: !!binary x")
@example(text="!!timestamp x")
@example(text="!!int x")
@example(text="!!float [")
@example(text="<<: 1")
@example(text="1:99999999999999999999999999:1")
def test_any_text_as_a_recipe(text, scratch):
    for suffix in (".yaml", ".json"):
        path = scratch / f"recipe{suffix}"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        only_ours(read_recipe, path)


@QUIET
@given(at=st.integers(0, 10_000), value=PLAIN, sealed=st.booleans())
def test_a_manifest_with_one_wrong_value(at, value, sealed, good):
    path, text = good / "mmzoo.json", (good / "mmzoo.json").read_text()
    data = json.loads(text)
    holder, key = somewhere(data, at)
    holder[key] = value
    if sealed:
        data["digest"] = folder.manifest_digest(data)
    try:
        path.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
        only_ours(folder.read_checkpoint, good)
    finally:
        path.write_text(text)


@QUIET
@given(lock=PLAIN)
def test_any_data_as_a_lock(lock, good):
    path, text = good / "mmzoo.json", (good / "mmzoo.json").read_text()
    data = {**json.loads(text), "lock": lock}
    data["digest"] = folder.manifest_digest(data)
    try:
        path.write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")
        only_ours(folder.read_checkpoint, good)
    finally:
        path.write_text(text)


@QUIET
@given(raw=st.binary(max_size=200), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_as_weights(raw, length, scratch):
    path = scratch / "any.safetensors"
    path.write_bytes(raw if length is None else struct.pack("<Q", length) + raw)
    only_ours(header.read_header, path)


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16"]) | LEAVES,
        "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=3) | PLAIN,
        "data_offsets": st.lists(st.integers(-2, 40) | st.integers(), min_size=2, max_size=2) | PLAIN,
    }
)


@QUIET
@given(head=st.dictionaries(st.text(max_size=5), TENSOR | PLAIN, max_size=4) | PLAIN, size=st.integers(0, 40))
def test_any_header_of_weights_that_is_let_through_is_read_by_the_library(head, size, scratch):
    from safetensors.torch import load_file

    text = json.dumps(head).encode("utf-8", "surrogatepass")
    path = scratch / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    try:
        found = header.read_header(path)
    except MmzooError:
        return
    assert {name: tuple(value.shape) for name, value in load_file(path).items()} == {n: s.shape for n, s in found.items()}
