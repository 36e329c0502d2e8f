"""Test that the loss in chunks equals the loss of the whole batch, with the same gradients."""

import pytest
import torch
from test_unpadded import batch_of, loss_and_gradients

import mmzoo
from mmzoo.testing import PARTNERS, tiny
from mmzoo_tasks import chunks

POLICIES = {"frozen": True, "lora:2": True, "last:1": True, "full": False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("train", POLICIES)
@pytest.mark.parametrize("language_model", ["gpt2", "opt", "t5"])
def test_loss_and_gradients_are_those_of_the_whole_batch(language_model, train, dtype, monkeypatch):
    parts = {**PARTNERS, "language_model": {"use": language_model}, "task": {"use": "vqa", "template": "{text}"}}
    model = mmzoo.build(tiny(mmzoo.Recipe(**parts)).with_part("language_model", train=train), seed=0).eval()
    batch = batch_of(model)
    used, losses = [], chunks.losses
    monkeypatch.setattr(chunks, "losses", lambda *arguments: used.append(arguments) or losses(*arguments))
    monkeypatch.setattr(chunks, "BYTES", {"cpu": 5 * 4 * model.language_model.spec.vocab_size})
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, gradients = loss_and_gradients(model, batch)
        assert bool(used) == POLICIES[train]
        monkeypatch.setattr(chunks, "apply_to", lambda language_model: False)
        whole, wanted = loss_and_gradients(model, batch)
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(loss, whole, **close)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], **close, msg=name)
