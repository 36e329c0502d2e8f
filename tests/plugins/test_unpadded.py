"""Check that training without padding gives what training with padding gives."""

import re
from pathlib import Path

import pytest
import torch

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.interfaces import Example
from mmzoo.testing import PARTNERS, Sample, tiny
from mmzoo_transformers import private_names, unpadded

LANGUAGE_MODELS = ["gpt2", "opt", "hf-causal", "gpt-mini", "smollm2", "qwen3"]


def test_torch_and_transformers_still_have_the_private_names_that_are_used():
    missing = private_names.missing_names()
    assert not missing, f"gone: {missing}; see plugins/mmzoo_transformers/private_names.py for what used them"


def test_private_names_of_other_libraries_are_used_in_one_file_only():
    """Methods of a class that a library calls, as those of `mmzoo_scratch.lstm_writer`, are overridden and not called."""
    folder = Path(private_names.__file__).parent
    for path in sorted(folder.glob("*.py")):
        names = re.findall(r"(?<!self)(?<!cls)(?<!super\(\))\._[a-z]\w*", path.read_text(encoding="utf-8"))
        assert not names or path.name == "private_names.py", (path.name, names)


def batch_of(model, count=5):
    picture = Sample().load("train")[0].image
    examples = [Example(str(i), picture, "w" * (1 + 3 * i), ("x" * (1 + 2 * i),)) for i in range(count)]
    return tensors(model.collator(training=True)(examples), "cpu")


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("train", ["frozen", "full", "lora:2"])
@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_loss_and_gradients_are_those_of_padded_rows(language_model, train, recompute, monkeypatch):
    task = {"use": "vqa", "template": "{text}"}
    recipe = tiny(mmzoo.Recipe(**{**PARTNERS, "language_model": {"use": language_model, "train": train}, "task": task}))
    recipe = recipe.with_part("language_model", train=train)
    model = mmzoo.build(recipe, seed=0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.checkpoint_blocks(recompute)
    model.train()
    batch = batch_of(model)
    used, states = [], unpadded.states
    monkeypatch.setattr(unpadded, "states", lambda *arguments: used.append(states(*arguments)) or used[-1])
    loss, gradients = loss_and_gradients(model, batch)
    assert used, "not run at all"
    assert used[0] is not None
    monkeypatch.setattr(unpadded, "serves", lambda model: False)
    padded_loss, padded_gradients = loss_and_gradients(model, batch)
    assert len(used) == 1
    torch.testing.assert_close(loss, padded_loss, atol=1e-5, rtol=0)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_deep_fusion_and_evaluation_are_not_unpadded(monkeypatch):
    monkeypatch.setattr(unpadded, "states", lambda *_: pytest.fail("unpadded"))
    model = mmzoo.build(tiny(mmzoo.Recipe(**{**PARTNERS, "fusion": "cross-attention", "language_model": "gpt2"})), seed=0)
    model.train()
    loss_and_gradients(model, batch_of(model))
    model = mmzoo.build(tiny(mmzoo.Recipe(**{**PARTNERS, "language_model": "gpt2"})), seed=0)
    batch = batch_of(model)
    with torch.no_grad():
        features = model.features(batch["encoders"])
        [text] = batch["tasks"].values()
        states = model.outputs(features, text).states
        sequence = model.fusion.early(features["image"], model.language_model.embed(text["ids"]), text["mask"])
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_config(model.language_model.model.config).eval()
    bare.load_state_dict(model.language_model.model.state_dict())
    with torch.no_grad():
        out = bare.base_model(inputs_embeds=sequence.embeddings, attention_mask=sequence.mask).last_hidden_state
    assert torch.equal(states.hidden, out)


def test_models_with_a_sliding_window_are_not_unpadded():
    config = {"model_type": "mistral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 264}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 4}
    language_model = {"use": "hf-causal", "config": config}
    model = mmzoo.build(encoder="cnn", fusion="prefix-mlp", language_model=language_model, task="caption", seed=0)
    assert not unpadded.serves(model.language_model.model)


def test_frozen_blocks_that_are_recomputed_drop_nothing():
    model = mmzoo.build(tiny(mmzoo.Recipe(**{**PARTNERS, "language_model": "opt"})), seed=0)
    batch = batch_of(model)
    model.checkpoint_blocks()
    model.train()
    first, _ = loss_and_gradients(model, batch)
    again, _ = loss_and_gradients(model, batch)
    assert torch.equal(first, again)
