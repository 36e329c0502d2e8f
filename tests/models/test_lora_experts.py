"""Adapters on mixtures of experts: on the experts' tensors, not on routers; what `check` says of them."""

import copy
import threading

import pytest
import torch

import mmzoo
from mmzoo.api import Encoder
from mmzoo.models.trainable import adapted
from mmzoo.testing import Sample
from mmzoo_audio.pretrained import HFAudio
from mmzoo_formats.llava_export import _state
from mmzoo_timm.encoder import Timm

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
_IDS = {"vocab_size": 264, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_GROUPS = {"n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1}
# Name: other sizes, and what has no adapters.
MIXTURES = {
    "mixtral": ({}, "gate"),
    "qwen2_moe": ({"shared_expert_intermediate_size": 32}, "gate, shared_expert_gate"),
    "qwen3_moe": ({"head_dim": 16}, "gate"),
    "phimoe": ({}, "router"),
    "deepseek_v2": ({**_LATENT, **_GROUPS}, "gate"),
    "gpt_oss": ({"head_dim": 16}, "router"),
    "olmoe": ({}, "gate"),
    "granitemoe": ({}, "router"),
    "hunyuan_v1_moe": ({"moe_topk": 2, "head_dim": 16}, "wg"),
}
OTHERS = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, ""),
    "bloom": ({"n_layer": 2, "n_head": 2}, ""),
    "llama": ({}, ""),
    "mamba": ({}, "A_log, conv1d, dt_proj, out_proj, x_proj"),  # the code or its kernels read the weights of the last three
}
QUICK = {"mixtral", "gpt_oss", "qwen2_moe", "gpt2", "mamba"}


def kinds(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def recipe(kind, train="lora:4"):
    sizes, _ = {**MIXTURES, **OTHERS}[kind]
    config = {"model_type": kind, **_SIZES, **_IDS, **(_EXPERTS if kind in MIXTURES else {}), **sizes}
    training = {"max_steps": 2, "batch_size": 4, "precision": "fp32", "learning_rate": 0.05, "warmup": 0}
    language = {"use": "hf-causal", "config": config, "train": train}
    return {"encoder": "cnn", "fusion": "projector", "task": "caption", "language_model": language, "training": training}


@pytest.mark.parametrize("kind", kinds([*MIXTURES, *OTHERS]))
def test_check_says_what_is_adapted(kind):
    summary = mmzoo.check(recipe(kind))
    said = next(part.adapters for part in summary.parts if part.part == "language_model")
    without = {**MIXTURES, **OTHERS}[kind][1]
    assert said.startswith("adapters of rank 4 on ")
    assert said.partition("; not on: ")[2] == without
    reached = adapted(mmzoo.build(recipe(kind)).language_model)
    assert reached is not None
    assert str(reached) == said
    assert reached.share > (0.4 if kind == "mamba" else 0.95)
    assert (reached.share == 1) == (not without)
    assert f"language model: {said}" in str(summary)
    assert summary.activations.problem == ""


def test_adapters_on_less_than_half_are_a_warning(caplog):
    mmzoo.build(recipe("mamba"))
    assert "42% of the blocks' weights" in caplog.text
    caplog.clear()
    mmzoo.build(recipe("mixtral"))
    assert "of the blocks" not in caplog.text


def _words(model):
    return model.generate([example.image for example in Sample().load("test")][:4], "a b", max_new_tokens=5)


@pytest.mark.parametrize("kind", kinds(MIXTURES))
def test_every_adapter_is_trained_and_saved(kind, tmp_path):
    run = mmzoo.train(recipe(kind), dataset=Sample(), output=tmp_path / "run", progress=False)
    trained = {name: value for name, value in run.model.language_model.named_parameters() if value.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any(word in name.split(".") for name in trained for word in ("gate", "router", "wg", "shared_expert_gate"))
    assert sum("experts" in name for name in trained) >= 8  # two tensors, two factors each, in both blocks
    assert all(value.abs().sum() > 0 for name, value in trained.items() if "lora_B" in name)  # zero before
    loaded = mmzoo.load(run.output)
    for name, value in loaded.language_model.named_parameters():
        if name in trained:
            assert torch.equal(value, trained[name]), name


def _lively(kind):
    """A model with adapters that change its words."""
    model = mmzoo.build(recipe(kind), seed=0)
    with torch.no_grad():
        for name, value in model.language_model.named_parameters():
            value.normal_(std=0.3 if ".lora_" in name else 0.1)
    return model


@pytest.mark.parametrize("kind", kinds(["mixtral", "gpt_oss", "phimoe", "gpt2"]))
def test_merged_weights_write_the_same(kind):
    model, plain = _lively(kind), mmzoo.build(recipe(kind, "frozen"), seed=0)
    ids = torch.arange(3, 17).reshape(2, 7)
    plain.language_model.model.load_state_dict(_state(model.language_model.model))
    with torch.no_grad():
        states = [m.language_model(m.language_model.embed(ids), torch.ones_like(ids)) for m in (model, plain)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for name, value in model.language_model.named_parameters():
            if "lora_B" in name:
                value.zero_()
        without = model.language_model(model.language_model.embed(ids), torch.ones_like(ids))
    assert not torch.allclose(without, states[0], atol=1e-2)


def test_threads_and_copies_have_the_same_experts():
    model = _lively("mixtral")
    words = _words(model)
    assert _words(copy.deepcopy(model)) == words
    found = []
    threads = [threading.Thread(target=lambda: found.append(_words(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [words] * 4


def _reading_modules():
    from timm.models import beit, swin_transformer_v2
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    x = torch.randn(1, 16, 32)
    yield Encoder, torch.nn.MultiheadAttention(32, 2, batch_first=True), (x, x, x)
    yield Timm, beit.Attention(32, num_heads=2, qkv_bias=True), (x,)
    yield Timm, swin_transformer_v2.WindowAttention(32, (4, 4), 2), (x,)
    yield HFAudio, WavLMAttention(32, 2), (x, None, torch.zeros(2, 16, 16))


@pytest.mark.parametrize(("part", "module", "inputs"), _reading_modules(), ids=lambda value: type(value).__name__)
def test_layers_that_are_not_called_get_no_adapter(part, module, inputs):
    called = set()
    layers = {child for child in module.modules() if isinstance(child, torch.nn.Linear)}
    for layer in layers:
        layer.register_forward_hook(lambda own, *_: called.add(own))
    module(*inputs)
    assert layers - called == {getattr(module, name) for name in part.uncalled(None, module)} != set()
