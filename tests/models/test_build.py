"""Test the compatibility check and building: refusals that name the fix, policies, options."""

import pytest
import torch
from uncached import without_cache

import mmzoo
from mmzoo.errors import DoesNotFit, PluginBroken
from mmzoo.interfaces import Fusion
from mmzoo.registry.entries import Entry, Registry
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import tiny

CNN = {"use": "cnn", "image_size": 16, "channels": [8, 16]}
OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 264}
GPT = {"use": "gpt-mini", "dim": 32, "layers": 2, "heads": 2}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (dict(fusion="prefix-mlp", language_model="bert", task="caption"), ["caption", "causal or seq2seq", "gpt2"]),
        (dict(fusion="late-sum", language_model="bag-of-words", task="vqa"), ["causal or seq2seq", "lstm", "classify"]),
        (dict(fusion="cross-attention", language_model="lstm", task="classify"), ["blocks", "late-attention"]),
        (
            dict(
                fusion={"use": "cross-attention", "heads": 2},
                language_model={"use": "opt", "config": {**OPT, "word_embed_proj_dim": 16}},
                task="vqa",
            ),
            ["blocks", "dim"],
        ),
        (dict(fusion={"use": "prefix-mlp", "length": 300}, language_model=GPT, task="vqa"), ["300", "context", "256"]),
        (dict(fusion="prefix-mlp", language_model={**GPT, "context": 12}, task="caption"), ["max_new_tokens", "12"]),
        (dict(fusion={"use": "late-attention", "heads": 5}, language_model=GPT, task="vqa"), ["fusion.heads", "dim 32"]),
        (
            dict(fusion="prefix-mlp", language_model={**GPT, "train": "last:9"}, task="vqa"),
            ["language_model.train", "last:9", "2 blocks"],
        ),
        (dict(fusion={"use": "prefix-mlp", "train": "lora:4"}, language_model=GPT, task="vqa"), ["fusion.train", "lora:4"]),
    ],
)
def test_a_misfit_is_refused_and_the_fix_is_named(parts, expected):
    with pytest.raises(DoesNotFit) as error:
        mmzoo.check(encoder=CNN, **parts)
    for text in expected:
        assert text in str(error.value)


def test_a_causal_model_that_only_reads_is_refused_for_writing(monkeypatch):
    monkeypatch.setattr("mmzoo_scratch.lstm.LSTM.generates", False)
    with pytest.raises(DoesNotFit, match=r"(?s)generates text, and .*'lstm' does not.*gpt-mini.*classify"):
        mmzoo.check(encoder=CNN, fusion="prefix-mlp", language_model="lstm", task="vqa")


def test_check_gives_what_build_has(classifier):
    checked, built = mmzoo.check(classifier), mmzoo.build(classifier).summary()
    assert checked == built
    assert checked.parameters == sum(p.numel() for p in mmzoo.build(classifier).parameters())
    assert checked.memory_train > checked.memory_run > 0
    assert all(part.license for part in checked.parts)


def test_a_seed_decides_the_weights(classifier):
    a, b, c = (mmzoo.build(classifier, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    ("policy", "trained"),
    [("frozen", 0), ("full", "all"), ("last:1", "some"), ("lora:2", "added")],
)
def test_policies(writer, policy, trained):
    full = mmzoo.build(writer).language_model
    count = sum(p.numel() for p in full.parameters())
    model = mmzoo.build(writer, language_model={"train": policy})
    got = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.language_model.parameters())
    assert {
        0: got == 0,
        "all": got == count,
        "some": 0 < got < count and total == count,
        "added": got > 0 and total == count + got,
    }[trained]
    model.train()
    assert model.language_model.training is (policy in ("full", "lora:2"))


@pytest.mark.parametrize("fusion", ["prefix-mlp", "projector", "concat", "late-product", "late-attention", "cross-attention"])
def test_a_batch_and_its_rows_alone_agree(fusion):
    options = {"use": fusion, **({"heads": 2} if "attention" in fusion else {})}
    model = mmzoo.build(encoder=CNN, fusion=options, language_model=GPT, task="vqa", seed=0)
    from mmzoo.testing import Sample

    examples = Sample().load("test")[:3]
    images, prompts = [e.image for e in examples], ["red", "what is it", "is this a long question or not"]
    together = model.generate(image=images, prompt=prompts, max_new_tokens=6)
    with without_cache():
        assert together == model.generate(image=images, prompt=prompts, max_new_tokens=6)
    assert together == [model.generate(image=i, prompt=p, max_new_tokens=6) for i, p in zip(images, prompts, strict=True)]


def test_deep_fusion_starts_as_the_bare_language_model():
    parts = {"encoder": CNN, "language_model": GPT, "task": "vqa"}
    model = mmzoo.build(fusion={"use": "cross-attention", "heads": 2}, **parts, seed=0)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    features = {"image": model.encode(torch.zeros(1, 3, 16, 16))}
    fused = model.outputs(features, {"ids": ids, "mask": mask}).states.hidden
    bare = model.language_model(model.language_model.embed(ids), mask)
    assert torch.equal(fused, bare)


def test_a_frozen_language_model_passes_gradients_and_keeps_its_weights(sample, tmp_path, quick):
    recipe = tiny("cnn-prefix-gpt", language_model={"train": "frozen"})
    before = mmzoo.build(recipe, seed=0).language_model.state_dict()
    run = mmzoo.train(recipe, dataset=sample, output=tmp_path / "m", progress=False, training=quick)
    after = run.model.language_model.state_dict()
    torch.manual_seed(0)
    fusion = mmzoo.build(run.model.recipe, seed=0).fusion.state_dict()
    assert any(not torch.equal(value, run.model.fusion.state_dict()[name]) for name, value in fusion.items())
    fresh = mmzoo.build(run.model.recipe, seed=0).language_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(fresh[name], after[name]) for name in after)


def register(monkeypatch, entry):
    """Register an entry of a plugin 'mmzoo-odd' for one test."""
    registry = Registry()
    registry.add_all(plugin_manager().registry.entries(), plugin="mmzoo", version="0")
    registry.add_all([entry], plugin="mmzoo-odd", version="1")
    monkeypatch.setattr(plugin_manager(), "registry", registry)


class Trained(Fusion):
    """A fusion with pretrained weights."""

    pretrainable = True

    def __init__(self, options, encoder, language_model):
        super().__init__(options, encoder, language_model)
        self.gain = torch.nn.Parameter(torch.zeros(3))

    def load_pretrained(self):
        self.gain = torch.nn.Parameter(torch.ones(3))

    def late(self, features, hidden):
        return hidden * self.gain.mean()


def test_the_pretrained_weights_of_a_fusion_are_kept(monkeypatch):
    register(
        monkeypatch, Entry("fusion", "trained", target="test_build:Trained", summary="pretrained", license="MIT", source="here")
    )
    parts = {"encoder": CNN, "fusion": "trained", "language_model": GPT, "task": "vqa"}
    assert mmzoo.build(**parts).fusion.gain.tolist() == [1, 1, 1]
    assert mmzoo.build(**parts, pretrained=False).fusion.gain.tolist() == [0, 0, 0]
    # Of several encoders too, where its vectors for missing inputs come from no weights, so they are saved.
    parts |= {"encoders": {"one": parts.pop("encoder"), "two": "log-mel-gru"}, "fusion": {"use": "trained", "train": "frozen"}}
    model = mmzoo.build(tiny(mmzoo.Recipe(**parts)), seed=0)
    assert [fusion.gain.tolist() for fusion in model.fusions.values()] == [[1, 1, 1]] * 2
    assert {name for name in model.saved_names() if name.startswith("fusions.")} == {
        "fusions.one.missing.one",
        "fusions.two.missing.two",
    }


def test_a_target_that_is_no_part_is_the_plugins_fault(monkeypatch):
    register(monkeypatch, Entry("encoder", "odd", target="pathlib:Path", summary="no encoder"))
    with pytest.raises(PluginBroken, match="mmzoo-odd"):
        mmzoo.check(encoder="odd", fusion="prefix-mlp", language_model=GPT, task="vqa")
