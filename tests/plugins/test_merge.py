"""Test late fusion that generates: each step's state is combined with the image just before the vocabulary, in the library's own
decoding loop."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from uncached import without_cache

import mmzoo
from mmzoo.testing import Sample, tiny

LATE = ["late-concat", "late-sum", "late-product", "late-attention"]
WRITERS = ["lstm", "bert-decoder", "gpt2", "gpt-mini", "t5"]
PROMPTS = ["red", "", "is this a long question or not"]
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}


def lively(fusion, language_model):
    """Build a tiny captioner with large random weights, so that its words depend on the picture and on all words before."""
    recipe = tiny(mmzoo.Recipe(encoder="cnn", fusion=fusion, language_model=language_model, task="caption"))
    model = mmzoo.build(recipe, seed=0)
    with torch.no_grad():
        for part in (model.fusion, model.language_model):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=3 * parameter.shape[-1] ** -0.5)
    return model


def generated(model, rows=slice(None), **options):
    """Return the ids of the new tokens without padding, since random bytes are seldom a valid text."""
    torch.manual_seed(0)
    pictures, write = [example.image for example in Sample(3).load("test")], model.language_model.generate
    outputs = []
    with patch.object(model.language_model, "generate", lambda *a, **o: outputs.append(write(*a, **o)) or outputs[0]):
        model.generate(image=pictures[rows], prompt=PROMPTS[rows], max_new_tokens=6, **options)
    padding = model.language_model.tokenizer.pad_token_id
    return [tuple(token for token in row if token != padding) for row in outputs[0].tolist()]


@pytest.fixture(scope="module", params=[(f, w) for w in WRITERS for f in LATE], ids="-".join)
def model(request):
    return lively(*request.param)


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_no_token(model, way):
    words = generated(model, **WAYS[way])
    assert len(words) == len(PROMPTS) * WAYS[way].get("num_return_sequences", 1)
    assert len(set(words)) > 1, "the same for every picture and prompt: nothing is tested"
    with without_cache():
        assert generated(model, **WAYS[way]) == words


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_a_batch_and_its_rows_alone_agree(model, way):
    count = WAYS[way].get("num_return_sequences", 1)
    together = generated(model, **WAYS[way])
    for i in range(len(PROMPTS)):
        assert generated(model, slice(i, i + 1), **WAYS[way]) == together[count * i : count * (i + 1)]


def test_the_picture_is_used_at_every_step(model):
    shapes = []
    late = model.fusion.late
    model.fusion.late = lambda features, hidden: shapes.append(tuple(hidden.shape)) or late(features, hidden)
    try:
        generated(model, num_beams=2)
    finally:
        del model.fusion.late
    assert len(shapes) > 1
    assert {(shape[0], shape[2]) for shape in shapes} == {(2 * len(PROMPTS), model.language_model.spec.dim)}
    assert {shape[1] for shape in shapes[1:]} == {1}


class Captions(Sample):
    """Provide coloured squares with captions of several words and no prompt."""

    def load(self, split):
        return [replace(e, text="", targets=(f"a {e.targets[0]} square",)) for e in super().load(split)]


@pytest.mark.parametrize(("recipe", "steps"), [("cnn-merge-lstm", 50), ("clip-concat-bert", 100)])
def test_a_captioner_learns_its_pictures_by_heart(recipe, steps, tmp_path):
    data, part = Captions(count=3), {"learning_rate": 5e-3}
    options = {**part, "max_steps": steps, "batch_size": 3, "precision": "fp32", "log_every": 1}
    run = mmzoo.train(tiny(recipe, language_model=part), dataset=data, output=tmp_path / "m", progress=False, training=options)
    assert run.history[-1]["loss"] < run.history[0]["loss"] / 10
    examples = data.load("test")
    pictures, captions = [e.image for e in examples], [e.targets[0] for e in examples]
    assert run.model.generate(image=pictures) == captions
    assert run.model.generate(image=pictures, num_beams=3) == captions
    assert mmzoo.load(tmp_path / "m").generate(image=pictures) == captions
