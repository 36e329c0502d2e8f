"""Test every fusion on every language model that it supports: deep fusions start as the bare model, the cache, padding and other
rows change nothing, and gradients reach exactly what is trained. Joint fusions are tested in test_joint.py."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from uncached import without_cache

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.data.tokens import prompt_ids
from mmzoo.errors import DoesNotFit
from mmzoo.interfaces import PLACEHOLDER_ID, Example, Fusion, FusionCall, ModelPass, running
from mmzoo.models import trainable
from mmzoo.models.outputs import fuse_late
from mmzoo.models.sequence import text_states
from mmzoo.recipes import catalogue
from mmzoo.registry.entries import Registry
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing import Sample, tiny
from mmzoo_fusions.attention import before
from mmzoo_transformers import blocks as block_names

CLASSES = {entry.name: entry.load() for entry in catalogue.entries("fusion")}
ENTRIES = [entry for entry in catalogue.entries("fusion") if entry.plugin == "mmzoo" and not CLASSES[entry.name].joint]
VARIANTS = {entry.name: {"use": entry.name, **entry.tiny} for entry in ENTRIES}
del VARIANTS["none"]  # it ignores images, and is refused with an encoder
VARIANTS["projector, shuffled"] = {"use": "projector", "pixel_shuffle": 2, "layers": "linear", "bias": False}
VARIANTS["projector, tiles"] = {"use": "projector", "pixel_shuffle": 2, "tiles": 2}
VARIANTS["cross-attention, resampled"] = {"use": "cross-attention", "heads": 2, "every": 2, "resampler": 3, "resampler_layers": 1}
VARIANTS["cross-attention, all"] = {**VARIANTS["cross-attention, resampled"], "every": 1, "attend": "all"}
DEEP = [name for name, fusion in VARIANTS.items() if CLASSES[fusion["use"]].needs_blocks]

CAUSAL = ["gpt2", "opt", "hf-causal", "smollm2", "qwen3"]  # hf-causal is a GPT-NeoX, smollm2 a Llama
KINDS = dict.fromkeys(CAUSAL, "causal") | {
    "t5": "seq2seq",
    "hf-seq2seq": "seq2seq",
    "bert": "bidirectional",
    "hf-encoder": "bidirectional",
}
ONE_OF_EACH = ["gpt2", "t5", "bert"]

PICTURES = [example.image for example in Sample(3).load("train")]
EXAMPLES = [
    Example("two", PICTURES[:2], "<image> is here, and there is <image> too", ("yes",)),
    Example("one", PICTURES[2], "what is in <image>?", ("blue",)),
    Example("first", PICTURES[0], "red?", ("no, not at all",)),
]


def pairs(variants, language_models):
    return [(v, m) for v in variants for m in language_models if KINDS[m] in CLASSES[VARIANTS[v]["use"]].architectures]


def build(variant, language_model, *, opened=True):
    """Build a tiny model with a frozen language model. With ``opened`` it is as if trained: open gates, and weights large enough
    for an image to matter, in double precision, where rounding errors are small."""
    reads = KINDS[language_model] == "bidirectional"
    parts = {"fusion": VARIANTS[variant]["use"], "language_model": language_model, "task": "classify" if reads else "vqa"}
    recipe = tiny(mmzoo.Recipe(encoder="cnn", **parts)).with_part("language_model", train="frozen")
    if reads:
        recipe = recipe.with_part("task", labels=["blue", "yes", "no, not at all"])
    model = mmzoo.build(recipe, fusion=VARIANTS[variant], seed=0)
    if opened:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.rpartition(".")[2] in ("gate", "gates"):
                    parameter.fill_(0.5)
                elif parameter.ndim > 1:
                    parameter.mul_(6 if name.startswith("fusions.") else 2)
        model.double()
    return model


def read(model, examples, *, training=False):
    return tensors(model.collator(training=training)(examples), "cpu")


def text_of(batch):
    """Return the ids and the mask of the only task's text."""
    [text] = batch["tasks"].values()
    return text["ids"], text["mask"]


def blank(batch):
    """Return the batch with black pictures."""
    images = batch["encoders"]["image"]
    return {**batch, "encoders": {"image": {**images, "inputs": torch.zeros_like(images["inputs"])}}}


def late(model, outputs):
    """Return the states of the language model's input through late fusion."""
    return fuse_late(model, outputs.states.calls, outputs.states.hidden)


def states(model, batch, *, left=False):
    """Return the fused states of the real text tokens of each example."""
    ids, mask = text_of(batch)
    if left:
        order = mask.argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    outputs = model.outputs(model.features(batch["encoders"]), {"ids": ids, "mask": mask})
    hidden = text_states(late(model, outputs), outputs.states.text)
    return [row[real.bool()] for row, real in zip(hidden, outputs.mask, strict=True)]


@pytest.mark.parametrize(("variant", "language_model"), pairs(DEEP, KINDS))
@torch.no_grad()
def test_deep_fusion_starts_as_the_bare_language_model(variant, language_model):
    model = build(variant, language_model, opened=False)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    features = model.encode(torch.randn(2, 3, 16, 16), torch.tensor([[0, 1], [1, -1]]))
    decoder = {"decoder_ids": ids} if KINDS[language_model] == "seq2seq" else {}
    fused = late(model, model.outputs({"image": features}, {"ids": ids, "mask": mask, **decoder}))
    bare = model.language_model(model.language_model.embed(ids), mask, **decoder)
    assert torch.equal(fused, bare)


@pytest.mark.parametrize(("variant", "language_model"), pairs(VARIANTS, ONE_OF_EACH))
@torch.no_grad()
def test_padding_and_other_rows_change_no_result(variant, language_model):
    model = build(variant, language_model)
    together = read(model, EXAMPLES)
    rows = states(model, together)
    for row, moved, example in zip(rows, states(model, together, left=True), EXAMPLES, strict=True):
        torch.testing.assert_close(moved, row, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states(model, read(model, [example]))[0], row, atol=1e-5, rtol=1e-5)
    if not type(model.fusion).needs_decoder:
        assert not torch.allclose(states(model, blank(together))[0], rows[0], atol=1e-4), "the image has no effect"


def written(model, batch, steps=3, **options):
    """Return the generated ids, and the logits of each step, [rows, steps, vocab]."""
    logits = []
    watch = model.language_model.output_layer().register_forward_hook(lambda _, args, out: logits.append(out[:, -1]))
    try:
        ids = model.generate_ids(model.features(batch["encoders"]), *text_of(batch), max_new_tokens=steps, **options)
    finally:
        watch.remove()
    return ids, torch.stack(logits, 1)


@pytest.mark.parametrize(
    ("variant", "language_model"), pairs(VARIANTS, [name for name, kind in KINDS.items() if kind != "bidirectional"])
)
@torch.no_grad()
def test_the_cache_and_other_rows_change_no_token(variant, language_model):
    model = build(variant, language_model)
    batch = read(model, EXAMPLES)
    ids, logits = written(model, batch)
    beams = written(model, batch, num_beams=2)
    for cached, options in (((ids, logits), {}), (beams, {"num_beams": 2})):
        with without_cache():
            without = written(model, batch, **options)
        assert torch.equal(cached[0], without[0])
        torch.testing.assert_close(cached[1], without[1], atol=1e-5, rtol=1e-5)
    for i, example in enumerate(EXAMPLES):
        alone = written(model, read(model, [example]), 2)
        count = alone[1].shape[1]
        assert torch.equal(alone[0][0], ids[i, : alone[0].shape[1]])
        torch.testing.assert_close(alone[1][0], logits[i, :count], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(written(model, blank(batch), 1)[1][:, 0], logits[:, 0], atol=1e-4), "the image has no effect"


@pytest.mark.parametrize(("variant", "language_model"), pairs(VARIANTS, ONE_OF_EACH))
def test_gradients_reach_what_is_trained_and_nothing_else(variant, language_model):
    model = build(variant, language_model, opened=False).train()
    before = {name: value.clone() for name, value in model.language_model.state_dict().items()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    batch = read(model, EXAMPLES, training=True)
    moved = set()
    for _ in range(3):  # a closed gate lets a gradient through once it has moved
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
        moved |= {name for name, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert not trained.keys() - moved
    after = model.language_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def gradients(model, batch):
    model.zero_grad()
    model(**batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("variant", "language_model"), pairs([*DEEP, "projector", "encoder-states"], ONE_OF_EACH))
def test_recomputed_blocks_give_the_same_gradients(variant, language_model):
    model = build(variant, language_model).train()
    batch = read(model, EXAMPLES, training=True)
    expected = gradients(model, batch)
    model.checkpoint_blocks()
    assert_equal(gradients(model.train(), batch), expected)


class Recomputed(nn.Module):
    """Rerun a block in the backward pass with its hooks, as blocks of transformers no longer do, in the contexts that
    `checkpoint_blocks` gives."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return checkpoint(self.block, *args, use_reentrant=False, context_fn=trainable._same_pass, **kwargs)


@pytest.mark.parametrize("variant", [v for v, _ in pairs(DEEP, ["bert"])])
def test_rerun_hooks_see_the_same_features(variant):
    model = build(variant, "bert").train()
    batch = read(model, EXAMPLES, training=True)
    expected = gradients(model, batch)
    layers = model.language_model.model.encoder.layer
    for i, layer in enumerate(layers):
        layers[i] = Recomputed(layer)
    assert_equal(gradients(model, batch), expected)


def assert_equal(actual, expected):
    actual = {name.replace(".block.", "."): value for name, value in actual.items()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize(("variant", "language_model"), pairs(VARIANTS, ONE_OF_EACH))
def test_half_precision_runs(variant, language_model):
    model = build(variant, language_model).float()
    batch = read(model, EXAMPLES, training=True)
    whole = model(**batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch)["loss"]
        model.predict(image=[e.image for e in EXAMPLES], text=[e.text for e in EXAMPLES])
    half.backward()
    torch.testing.assert_close(half, whole, atol=0.1, rtol=0.05)


# What a fusion does with several images


@pytest.mark.parametrize("variant", [v for v in DEEP if v.startswith("cross")])
@torch.no_grad()
def test_a_text_attends_to_the_latest_image_before_it_or_to_all(variant):
    model = build(variant, "gpt2")
    ids = torch.tensor(prompt_ids(model.text_context(), ["a<image>b<image>c"]))
    at = [i for i, token in enumerate(ids[0].tolist()) if token == PLACEHOLDER_ID]
    spans = [slice(0, at[0]), slice(at[0] + 1, at[1]), slice(at[1] + 1, None)]
    inputs = torch.randn(3, 3, 16, 16, dtype=torch.double)

    def run(*images):
        features = model.encode(inputs, torch.tensor([images]))
        hidden = model.outputs({"image": features}, {"ids": ids, "mask": torch.ones_like(ids)}).hidden[0]
        return [hidden[span] for span in spans]

    first = run(0, 1)
    changed = [[not torch.equal(a, b) for a, b in zip(first, run(*other), strict=True)] for other in ((2, 1), (0, 2))]
    if variant == "cross-attention, all":
        assert changed == [[True, True, True], [True, True, True]]
    else:  # what comes after the second image reads what comes after the first
        assert changed == [[False, True, True], [False, False, True]]


@pytest.mark.parametrize("variant", [v for v, options in VARIANTS.items() if CLASSES[options["use"]].late is not Fusion.late])
@torch.no_grad()
def test_a_late_fusion_sees_all_images(variant):
    model = build(variant, "bert")

    def fused(*images):
        batch = read(model, [Example("x", [PICTURES[i] for i in images], "a " + "<image> " * len(images))])
        features = model.features(batch["encoders"])["image"]
        call = FusionCall(model.fusion.prepare(features), features)
        return fuse_late(model, {model.fusion: call}, torch.ones(1, 1, 32, dtype=torch.double))

    torch.testing.assert_close(fused(0, 0), fused(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused(0, 1), fused(1, 0), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fused(0, 1), fused(0), atol=1e-5)


@torch.no_grad()
def test_tiles_are_the_whole_picture_and_its_pieces():
    model = build("projector, tiles", "gpt2")
    picture = PICTURES[0].resize((16, 16))
    pieces = [picture, *(picture.crop((x, y, x + 8, y + 8)) for y in (0, 8) for x in (0, 8))]
    batch = read(model, [Example("x", picture, "what?")])
    [outputs] = model.task_outputs(batch).values()
    features = outputs.features["image"]
    alone = model.encoder(torch.stack([model.encoder.transform(piece) for piece in pieces]).double())
    assert torch.equal(features.tokens[0], alone.tokens.flatten(0, 1))
    assert torch.equal(features.pooled[0], alone.pooled[0])
    assert model.fusion.added_tokens == 5 * 4
    assert outputs.states.hidden.shape[1] == 20 + text_of(batch)[0].shape[1]


def test_an_encoder_states_fusion_leaves_the_encoder_alone():
    model = build("encoder-states", "t5")
    batch = read(model, EXAMPLES)
    rows = states(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(rows, states(model, blank(batch)), strict=True))


# What is refused


@pytest.mark.parametrize("variant", DEEP)
def test_blocks_that_cannot_be_found_are_refused(variant, monkeypatch):
    monkeypatch.setattr(block_names, "NAMES", frozenset({"another_name"}))
    language_model = "bert" if KINDS["gpt2"] not in CLASSES[VARIANTS[variant]["use"]].architectures else "gpt2"
    with pytest.raises(DoesNotFit, match=f"'{language_model}' has no blocks.*\n?.*Each fusion that fits: concat"):
        build(variant, language_model)


def test_a_block_that_takes_no_states_is_refused():
    block = nn.Embedding(4, 2)
    before(block, lambda hidden: hidden)
    with pytest.raises(DoesNotFit, match="cannot attach to a Embedding.*choose an early or late fusion"):
        block(torch.zeros(1, 2, dtype=torch.long))


def test_co_attention_needs_a_block_to_start_at():
    with pytest.raises(DoesNotFit, match="fusion.first: 2: the language model has 2 blocks"):
        mmzoo.check(tiny(mmzoo.Recipe(encoder="cnn", fusion="co-attention", language_model="bert", task="classify")),
                    fusion={"first": 2}, task={"labels": ["a", "b"]})  # fmt: skip


class After(Fusion):
    """Change the output of each block, as a plugin's deep fusion may."""

    needs_blocks = True

    def __init__(self, options, encoder, language_model):
        super().__init__(options, encoder, language_model)
        self.layers = nn.ModuleList(nn.Linear(encoder.pooled_dim, language_model.dim) for _ in range(language_model.blocks))

    def deep(self, language_model):
        for layer, block in zip(self.layers, language_model.blocks(), strict=True):
            block.register_forward_hook(lambda _block, _args, out, layer=layer: self.changed(layer, out))

    def changed(self, layer, out):
        states = out if isinstance(out, torch.Tensor) else out[0]
        features = self.features_for(states.shape[0])
        if features is None:
            return None
        states = states + layer(features.pooled).unsqueeze(1)
        return states if isinstance(out, torch.Tensor) else (states, *out[1:])


def test_a_plugins_deep_fusion_gets_one_row_an_example_however_it_attaches(monkeypatch):
    registry = Registry()
    registry.add_all(plugin_manager().registry.entries(), plugin="mmzoo", version=mmzoo.__version__)
    entry = mmzoo.Entry("fusion", "after", target="test_fusions:After", summary="deep", license="MIT", source="here")
    registry.add_all([entry], plugin="mmzoo", version=mmzoo.__version__)
    monkeypatch.setattr(plugin_manager(), "registry", registry)
    model = mmzoo.build(tiny(mmzoo.Recipe(encoder="cnn", fusion="after", language_model="gpt-mini", task="vqa")), seed=0).train()
    unequal = [EXAMPLES[2], Example("long", PICTURES[0], "is it red or green or blue? " * 3, ("red",))]
    batch = tensors(model.collator(training=True)(unequal), model.device)
    together = model(**batch)["loss"]
    together.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.fusion.parameters())
    alone = [tensors(model.collator(training=True)([example]), model.device) for example in unequal]
    tokens = torch.tensor([(one["tasks"]["vqa"]["labels"] != -100).sum() for one in alone])
    losses = torch.stack([model(**one)["loss"] for one in alone])
    torch.testing.assert_close(together, (losses * tokens).sum() / tokens.sum())
    calls = model.task_outputs(batch)["vqa"].states.calls
    assert model.fusion.features_for(2) is None, "no pass is running"
    with running(ModelPass(calls)), pytest.raises(ValueError, match="3 rows do not match the features of 2 examples"):
        model.fusion.features_for(3)
