"""Compare the prefix fusions with outputs of the original ClipCap code.

tests/fixtures/clipcap-*.safetensors hold tiny random models: ``state`` their weights, ``in`` the inputs, ``out`` the original's
outputs.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import mmzoo

FOLDER = Path(__file__).parents[1] / "fixtures"
RENAMED = {
    "model.": "model.",
    "linear.": "linear.",
    "prefix_const": "constants",
    "transformer.layers.": "layers.",
    "attn.to_queries": "queries",
    "attn.to_keys_values": "keys_values",
    "attn.project": "project",
    "mlp.fc": "fc",
}


def original(mapping):
    path = FOLDER / f"clipcap-{mapping}.safetensors"
    with safe_open(path, "pt") as file:
        sizes = file.metadata()
    return load_file(path), sizes


def ours(mapping, data, sizes):
    """Build a model of the same sizes with the original's weights."""
    length, clip_length = int(sizes["prefix_length"]), int(sizes["clip_length"])
    options = {"length": length}
    if mapping == "transformer":
        options |= {"clip_length": clip_length, "layers": int(sizes["num_layers"]), "heads": 8}
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": int(sizes["prefix_size"])}
    model = mmzoo.build(
        encoder={"use": "clip", "config": vision},
        fusion={"use": f"prefix-{mapping}", **options},
        language_model={"use": "gpt2", "config": {"model_type": "gpt2", **json.loads(sizes["gpt2_config"]), "vocab_size": 264}},
        task="caption",
    )
    fusion = {}
    for name, value in data.items():
        if name.startswith("state/clip_project."):
            name = name.removeprefix("state/clip_project.")
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            fusion[name] = value
    model.fusion.load_state_dict(fusion)
    return model


@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
def test_prefix_embeddings_equal_the_originals(mapping):
    data, sizes = original(mapping)
    model = ours(mapping, data, sizes)
    with torch.no_grad():
        prefix = model.fusion.prefix(data["in/prefix"])
    assert torch.allclose(prefix, data["out/prefix_embeddings"], atol=1e-5)
