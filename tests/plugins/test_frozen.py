"""Check products with frozen matrices: the same mathematics as torch's own, in training only, repacked where a weight changes."""

import copy

import pytest
import torch

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.interfaces import Example
from mmzoo.testing import Sample
from mmzoo_transformers import frozen

GPT2 = {"model_type": "gpt2", "n_embd": 512, "n_layer": 2, "n_head": 4, "vocab_size": 600, "n_positions": 128}
GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 600,
    "max_position_embeddings": 128,
}
PICTURE = Sample(1).load("train")[0].image
TEXTS = ("what is it?", "red", "is it a square, or is it something else?")
EXAMPLES = [Example(str(i), PICTURE, text, ("a red square",)) for i, text in enumerate(TEXTS)]

pytestmark = pytest.mark.skipif(not frozen.HAS_ONEDNN, reason="this build of torch has no oneDNN")


def build(config, train="frozen"):
    language = {"use": "hf-causal" if config is LLAMA else "gpt2", "config": config, "train": train}
    encoder = {"use": "cnn", "image_size": 16, "channels": [8, 16]}
    return mmzoo.build(encoder=encoder, fusion="prefix-mlp", language_model=language, task="vqa", seed=0).train()


def outcome(model):
    batch = tensors(model.collator(training=True)(EXAMPLES), model.device)
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def counted(monkeypatch):
    """Count the products that go through oneDNN."""
    calls, product = [], frozen.product
    monkeypatch.setattr(frozen, "product", lambda *arguments: calls.append(1) or product(*arguments))
    return calls


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("train", ["frozen", "last:1", "lora:4"])
def test_loss_and_gradients_are_those_of_torch(config, train, counted, monkeypatch):
    model = build(config, train)
    loss, gradients = outcome(model)
    assert counted
    monkeypatch.setattr(frozen, "serves", lambda *_: False)
    expected, wanted = outcome(model)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)


def test_trained_layers_and_inference_use_torchs_own_products(counted):
    outcome(build(GPT2, "full"))
    model = build(GPT2).eval()
    model.predict(image=PICTURE, text="what")
    model.generate(image=PICTURE, prompt="what", max_new_tokens=2)
    assert not counted


def test_a_matrix_that_changes_is_packed_again():
    model = build(GPT2)
    before, _ = outcome(model)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(1.1)
    changed, _ = outcome(model)
    assert abs(changed - before) > 1e-3
    alike = build(GPT2)
    alike.load_state_dict(model.state_dict())
    torch.testing.assert_close(outcome(alike)[0], changed, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outcome(copy.deepcopy(model))[0], changed, atol=1e-6, rtol=1e-6)


def test_the_frozen_model_has_the_names_and_bits_that_it_had(tmp_path):
    model = build(GPT2)
    before = {name: value.clone() for name, value in model.language_model.state_dict().items()}
    outcome(model)
    after = model.language_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.eval().save(tmp_path / "m")
    text = model.generate(image=PICTURE, prompt="what", max_new_tokens=3)
    assert mmzoo.load(tmp_path / "m").generate(image=PICTURE, prompt="what", max_new_tokens=3) == text
