"""Vision towers of transformers: the same features in every pass and in every batch, or a refusal by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

import mmzoo
from mmzoo.errors import DoesNotFit
from mmzoo.testing import tiny
from mmzoo_transformers.vision import HFVision, RandomOperations, VisionOptions

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS = {
    "vit": VIT,
    "vit_mae": VIT,
    "vit_msn": VIT,
    "ijepa": VIT,
    "beit": {**VIT, "use_mask_token": True},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": VIT,
    "dinov3_vit": VIT,
    "siglip_vision_model": VIT,
    "clip_vision_model": VIT,
    "pixtral": VIT,
    "internvl_vision": VIT,
    "aimv2_vision_model": VIT,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 32},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2, "image_size": 32, "patch_size": 4},
    "pvt": {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4, "image_size": 64},
    "dinov3_convnext": {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "image_size": 64},
    "yolos": {**VIT, "image_size": [32, 32], "num_detection_tokens": 5},
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "num_query_pool": 2, "image_size": [64, 64]},
}


HIERA_DET = {
    "hidden_size": 8,
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "blocks_per_stage": [1, 1, 1, 2],
    "window_size_per_stage": [4, 4, 4, 4],
    "global_attention_blocks": [4],
    "window_positional_embedding_background_size": [4, 4],
    "image_size": [64, 64],
}


class Given(mmzoo.Dataset):
    """Three pictures of one colour each."""

    def __init__(self):
        super().__init__(None)

    def splits(self):
        return ["train"]

    def load(self, split):
        colours = ("red", "green", "blue")
        return [mmzoo.Example(colour, Image.new("RGB", (30, 20), colour), "what color is it?", (colour,)) for colour in colours]


def tower(kind, seed=0, **changes):
    torch.manual_seed(seed)
    return HFVision(VisionOptions(config={"model_type": kind, **CONFIGS.get(kind, {} if changes else VIT), **changes})).eval()


def pictures(encoder, count=3):
    random = np.random.default_rng(0)
    return torch.stack([encoder.transform(Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))) for _ in range(count)])


@pytest.mark.parametrize("kind", CONFIGS)
def test_passes_and_batches_agree(kind):
    encoder = tower(kind)
    inputs = pictures(encoder)
    with torch.no_grad():
        together, again = encoder(inputs), encoder(inputs)
        alone = [encoder(each[None]) for each in inputs]
    assert torch.equal(together.tokens, again.tokens)
    assert together.tokens.shape == (3, encoder.spec.tokens, encoder.spec.dim)
    assert together.pooled.shape == (3, encoder.spec.pooled_dim)
    for i, one in enumerate(alone):
        assert torch.allclose(one.tokens[0], together.tokens[i], atol=1e-5)
        assert torch.allclose(one.pooled[0], together.pooled[i], atol=1e-5)
    assert not torch.allclose(together.tokens[0], together.tokens[1], atol=1e-5)
    encoder.train().requires_grad_(True)
    features = encoder(inputs)
    (features.tokens.square().sum() + features.pooled.square().sum()).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", ["vit", "deit", "pvt", "dinov3_convnext", "yolos", "dinov2_with_registers"])
def test_what_is_no_patch_is_no_token(kind):
    encoder = tower(kind)
    side = 4 if CONFIGS[kind] is VIT or kind == "yolos" else 2
    assert encoder.spec.tokens == side**2
    inputs = pictures(encoder, 1)
    with torch.no_grad():
        whole = encoder.model(pixel_values=inputs).last_hidden_state
        assert torch.equal(encoder(inputs).tokens, whole[:, encoder._prefix : encoder._prefix + side**2])
    assert encoder._prefix == {"deit": 2, "dinov2_with_registers": 5}.get(kind, 1)


def test_maps_whose_last_axis_is_the_channel():
    encoder = tower("sam2_hiera_det_model", **HIERA_DET)
    inputs = pictures(encoder, 2)
    with torch.no_grad():
        maps, features = encoder.model(pixel_values=inputs).last_hidden_state, encoder(inputs)
    assert maps.shape[-1] == encoder.spec.dim == 64
    assert torch.equal(features.tokens[:, maps.shape[2] + 1], maps[:, 1, 1])
    assert torch.equal(features.pooled, maps.mean((1, 2)))


def test_vit_mae_sees_every_patch_in_its_place():
    encoder = tower("vit_mae", mask_ratio=0.75)
    plain = ViTModel(ViTConfig(**VIT, attn_implementation="sdpa"), add_pooling_layer=False).eval()
    plain.load_state_dict(encoder.model.state_dict())
    inputs = pictures(encoder)
    with torch.no_grad():
        features, expected = encoder(inputs), plain(inputs).last_hidden_state
    assert torch.allclose(features.tokens, expected[:, 1:], atol=1e-6)
    assert torch.allclose(features.pooled, expected[:, 0], atol=1e-6)


def test_a_tower_that_draws_random_numbers_is_refused(monkeypatch):
    # As ViTMAE was: it orders patches by noise that it draws itself.
    monkeypatch.setattr(HFVision, "_noise", lambda self, inputs: {})
    with torch.device("meta"), pytest.raises(DoesNotFit, match=r"'a vit_mae' draws random numbers in evaluation too \(rand"):
        tower("vit_mae")


def test_dropout_of_attention_counts_only_where_it_drops():
    states = torch.randn(1, 2, 8, 16)
    for dropout, drawn in ((0.0, False), (0.5, True)):
        for device in ("cpu", "meta"):
            with RandomOperations() as random:
                torch.nn.functional.scaled_dot_product_attention(*[states.to(device)] * 3, dropout_p=dropout)
            assert bool(random.names) == drawn


def test_a_tower_whose_batch_is_no_batch_is_refused(monkeypatch):
    run = HFVision._run

    def first(self, model, inputs):
        tokens, pooled = run(self, model, inputs)
        return tokens[:1], pooled[:1]

    monkeypatch.setattr(HFVision, "_run", first)
    with torch.device("meta"), pytest.raises(DoesNotFit, match=r"gives tokens \[1, 17, 32\] for a batch of 2"):
        tower("vit")


@pytest.mark.parametrize(
    "kind",
    [
        "siglip2_vision_model",
        "glm_image_vision",
        "video_llama_3_vision",
        "minicpmv4_7_vision",
        "videomae",
        "vivit",
        "timesformer",
    ],
)
def test_towers_of_packed_patches_and_of_videos_are_refused_by_name(kind):
    with torch.device("meta"), pytest.raises(DoesNotFit, match=f"'a {kind}'"):
        tower(kind)


@pytest.mark.parametrize("kind", ["pixtral", "vit_mae"])
def test_they_train_predict_and_come_back(kind, tmp_path, quick):
    made = tiny(mmzoo.Recipe(encoder="cnn", fusion="projector", language_model="gpt-mini", task="vqa")).to_dict()
    encoder = {"use": "hf-vision", "config": {"model_type": kind, **VIT}, "pretrained": False, "train": "full"}
    recipe = mmzoo.Recipe(**{**made, "encoders": {"image": encoder}})
    mmzoo.check(recipe)
    run = mmzoo.train(recipe, dataset=Given(), output=tmp_path / "model", progress=False, training=quick)
    loaded = mmzoo.load(run.output)
    own = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    together = loaded.predict(own, ["what color is it?"] * 3)
    assert [each.label for each in together] == [loaded.predict(each, "what color is it?").label for each in own]
    assert [each.label for each in run.model.predict(own, ["what color is it?"] * 3)] == [each.label for each in together]
