"""Test tokens of a chosen layer, with and without the class token, in timm and OpenCLIP (transformers: test_backbones.py)."""

import pytest
import torch

from mmzoo.errors import DoesNotFit
from mmzoo_open_clip.encoder import OpenCLIP, OpenCLIPOptions
from mmzoo_timm.encoder import Timm, TimmOptions

TOWER = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TRUNK = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}


def timm(name="test_vit", **options):
    torch.manual_seed(0)
    return Timm(TimmOptions(variant=name, image_size=64, **options)).eval()


def open_clip(vision=TOWER, **options):
    torch.manual_seed(0)
    return OpenCLIP(OpenCLIPOptions(config={"embed_dim": 24, "vision_cfg": vision}, **options)).eval()


@torch.no_grad()
def run(encoder, *blocks):
    """Return the features of a picture, and the outputs of ``blocks``."""
    size = 32 if isinstance(encoder, OpenCLIP) else 64
    outputs = []
    watches = [block.register_forward_hook(lambda _, args, out: outputs.append(out)) for block in blocks]
    features = encoder(torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size))
    for watch in watches:
        watch.remove()
    assert features.tokens.shape[1:] == (encoder.spec.tokens, encoder.spec.dim)
    return features, outputs


@pytest.mark.parametrize("make", [timm, open_clip])
def test_a_transformers_layers(make):
    last = run(make())[0]
    for layer, keep in ((-2, False), (-2, True), (1, False), (-1, True)):
        encoder = make(layer=layer, keep_class_token=keep)
        features, (states,) = run(encoder, encoder.blocks()[layer if layer < 0 else layer - 1])
        assert torch.equal(features.pooled, last.pooled)
        if layer == -1:  # under the model's last norm
            assert torch.equal(features.tokens[:, 1:], last.tokens)
            assert features.tokens.shape[1] == last.tokens.shape[1] + 1
        else:
            assert torch.equal(features.tokens, states if keep else states[:, 1:])


def test_a_cnns_layer_is_a_stage():
    encoder = timm("test_resnet", layer=-2)
    features, (maps,) = run(encoder, encoder.blocks()[-2])
    assert torch.equal(features.tokens, maps.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (timm, {"layer": 0}, "layers from 1"),
        (timm, {"layer": 9}, "no such layer"),
        (timm, {"layer": -9}, "no such layer"),
        (timm, {"name": "deit_tiny_distilled_patch16_224", "layer": 99}, "no such layer"),
        (open_clip, {"layer": 0}, "3 blocks, counted from 1"),
        (open_clip, {"layer": -4}, "3 blocks, counted from 1"),
        (open_clip, {"vision": RESNET, "layer": -2}, "ModifiedResNet gives its output alone; leave it at -1"),
        (open_clip, {"vision": TRUNK, "layer": -2}, "TimmModel gives its output alone; leave it at -1"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(make, options, message):
    with torch.device("meta"), pytest.raises(DoesNotFit, match=message):
        make(**options)
