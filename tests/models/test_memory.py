"""Test the estimate of a training step's memory: against what autograd saves on a CPU, and where a part cannot be run."""

import json

import pytest
import torch
from command_line import run
from torch import nn

import mmzoo
from mmzoo.checkpoints.summary import Activations, parse_bytes
from mmzoo.data.collate import tensors
from mmzoo.errors import BadRecipe
from mmzoo.models.memory import ShapesOnly, artificial_batch, estimate, saved_bytes, without_values
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.small import tiny_parts

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CNN = {"use": "cnn", "image_size": 16, "channels": [8, 16]}
VIT = {"use": "hf-vision", "train": "full", "config": {"model_type": "vit", "image_size": 16, "patch_size": 4, **TINY}}
BERT = {"use": "bert", "train": "full", "config": {"model_type": "bert", "vocab_size": 300, **TINY}}
GPT = {"use": "gpt-mini", "dim": 32, "layers": 2, "heads": 2}
MIXTURE = {"model_type": "mixtral", "vocab_size": 264, "num_key_value_heads": 1, "num_local_experts": 4, **TINY}

RECIPES = {
    "classify": {"encoder": CNN, "fusion": "late-product", "language_model": "lstm", "task": "classify"},
    "vqa": {"encoder": CNN, "fusion": "prefix-mlp", "language_model": GPT, "task": "vqa"},
    "bert": {"encoder": VIT, "fusion": "concat", "language_model": BERT, "task": {"use": "multi-label", "labels": ["a", "b"]}},
    "two": {
        "encoders": {"image": CNN, "second": VIT},
        "fusion": "projector",
        "language_model": {**GPT, "train": "lora:2"},
        "tasks": {"answer": "vqa", "number": "regress"},
    },
    "mixture": {"encoder": CNN, "fusion": "projector", "language_model": {"use": "hf-causal", "config": MIXTURE}, "task": "vqa"},
    "contrastive": {"encoder": CNN, "fusion": "late-sum", "language_model": "lstm", "task": {"use": "contrastive", "dim": 8}},
}


def measured(parts, size):
    """Return the bytes that a forward pass saves with weights and values, on the CPU."""
    model = mmzoo.build(**parts)
    batch, *_ = artificial_batch(without_values(model), size)
    if model.recipe.training.gradient_checkpointing:
        model.checkpoint_blocks()
    return saved_bytes(model.train(), tensors(batch, "cpu"))


@pytest.mark.parametrize("name", RECIPES)
def test_shapes_alone_give_what_a_real_forward_pass_saves(name):
    shadow = without_values(mmzoo.build(**RECIPES[name]))
    batch, *_ = artificial_batch(shadow, 5)
    with ShapesOnly():
        counted = saved_bytes(shadow, tensors(batch, "meta"))
    real = measured(RECIPES[name], 5)
    assert counted == pytest.approx(real, rel=0.1)
    assert real <= mmzoo.check(**RECIPES[name]).activations.bytes(5) * 1.1


@pytest.mark.parametrize("name", ["vqa", "contrastive"])
def test_the_polynomial_holds_for_other_batches(name):
    parts = RECIPES[name]
    few, many = (mmzoo.check(**parts).activations.bytes(size) for size in (8, 64))
    assert many - few == pytest.approx(measured(parts, 64) - measured(parts, 8), rel=0.1)
    assert (mmzoo.check(**parts).activations.pairs > 0) == (name == "contrastive")


class Small(nn.Module):
    """Two layers, whose saved tensors are known: their inputs, of which the second is also the output of the activation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))

    def forward(self, inputs):
        once = self.layers(inputs)
        _ = (once * 2).exp().sum()  # its graph is freed at once
        return {"loss": once.sum()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_tensor_is_counted_once_and_weights_and_freed_ones_are_not(device):
    model = Small().to(device)
    with ShapesOnly():
        assert saved_bytes(model, {"inputs": torch.zeros(5, 8, device=device)}) == 4 * 5 * (8 + 16)


def test_frozen_parts_and_recomputed_blocks_save_less():
    whole = {**RECIPES["vqa"], "language_model": {**GPT, "layers": 4}}
    frozen = {**whole, "encoder": {**CNN, "train": "frozen"}}
    recomputed = {**whole, "training": {"gradient_checkpointing": True}}
    sizes = [mmzoo.check(**parts).activations.bytes(16) for parts in (whole, frozen, recomputed)]
    assert sizes[0] > max(sizes[1:])
    # Between the passes there are the blocks' inputs only; then one block of four is recomputed.
    kept, saved = measured(recomputed, 16), measured(whole, 16)
    assert kept < saved / 2
    assert sizes[2] == pytest.approx(kept + (saved - kept) / 4, rel=0.15)


@pytest.mark.parametrize("name", ["hf-encoder", "t5", "gpt2", "bag-of-words"])
def test_language_models_are_estimated(name):
    assert not mmzoo.check(tiny_parts(plugin_manager().get("language_model", name))).activations.problem


def test_texts_fit_into_the_context():
    activations = mmzoo.check(encoder=CNN, fusion="prefix-mlp", language_model={**GPT, "context": 30}, task="vqa").activations
    assert not activations.problem
    assert 15 < activations.text_tokens <= 20  # the prefix takes 10


def test_no_estimate_is_no_failure(classifier, monkeypatch):
    def fail(*_):
        raise ValueError("needs\nvalues")

    monkeypatch.setattr("mmzoo_tasks.classify.Classify.loss", fail)
    summary = mmzoo.check(classifier, memory="1GB")
    assert "activations: not estimated (ValueError: needs values)" in str(summary)
    assert (summary.memory_step, summary.largest_batch) == (None, None)
    assert json.loads(json.dumps(summary.to_dict()))["activations"]["problem"]


def test_nothing_is_fetched_or_changed(writer, monkeypatch):
    model = mmzoo.build(writer, seed=0)
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    monkeypatch.setattr("mmzoo.data.vocabulary.make_tokenizer", None)
    assert not estimate(model).problem
    assert not mmzoo.check(writer).activations.problem
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize("pairs", [0, 0.5])
@pytest.mark.parametrize("room", [100, 101, 5_000, 123_456_789])
def test_the_largest_batch_fits_and_the_next_does_not(pairs, room):
    activations = Activations(fixed=40, each=7.25, pairs=pairs)
    batch = activations.largest_batch(room)
    assert activations.bytes(batch) <= room < activations.bytes(batch + 1)


def test_no_batch_fits_into_too_little():
    assert Activations(fixed=40, each=7).largest_batch(46) == Activations(fixed=40, each=7).largest_batch(-5) == 0


def test_sizes_are_read():
    sizes = ["24GB", "16 GiB", "1.5gib", "800MB", "2 k", 1000, "12", "1TB"]
    assert [parse_bytes(size) for size in sizes] == [24 * 10**9, 2**34, 3 * 2**29, 8 * 10**8, 2000, 1000, 12, 10**12]


@pytest.mark.parametrize("nonsense", ["", "much", "-1GB", "24 G B", "0", "1e9", "GB", "9" * 400, "24GBit", "0.1", "nan", True])
def test_nonsense_is_no_size(nonsense):
    with pytest.raises(BadRecipe, match="memory: .*write it like 24GB"):
        parse_bytes(nonsense)


def test_the_command_prints_it_all():
    out = run("check", "cnn-prefix-gpt", "--memory", "2GB").stdout
    adds, memory, activations, largest, _ = out.splitlines()[-5:]
    assert adds == "adds: image +4 tokens"
    assert memory.endswith("(float32 weights, gradients and Adam)")
    assert activations.startswith("activations: about ")
    assert activations.endswith("in all at batch_size 256")
    assert "text tokens)" in activations
    assert largest.startswith("largest batch in 2.0 GB: about ")
    assert max(map(len, out.splitlines()[-5:])) <= 100
    assert "largest batch in 1.0 kB: none; one example needs" in run("check", "cnn-prefix-gpt", "--memory", "1kB").stdout


def test_the_command_prints_json_and_refuses_nonsense():
    data = json.loads(run("check", "cnn-product-lstm", "--memory", "1GB", "--json").stdout)
    assert data["memory"] == 10**9
    assert data["adds"] == {"image": 0}
    assert data["memory_train"] < data["memory_step"]
    at = data["memory_train"] + data["activations"]["fixed"] + data["activations"]["each"] * data["largest_batch"]
    assert at == pytest.approx(10**9, rel=0.01)
    assert "memory: 'lots' is no size" in run("check", "cnn-product-lstm", "--memory", "lots", code=2).stderr
