"""Every fusion on every language model for every task, tiny: it computes a loss, trains what it should, and predicts,
or the fit check says why not. The refusals are few enough to be listed here, and reviewed by eye."""

import pytest
import torch

import mmzoo
from mmzoo import catalogue
from mmzoo.data import tensors
from mmzoo.errors import DoesNotFit
from mmzoo.testing import PARTNERS, Sample, tiny

FUSIONS = [entry.name for entry in catalogue.entries("fusion")]
LANGUAGE_MODELS = [entry.name for entry in catalogue.entries("language_model")]
TASKS = [entry.name for entry in catalogue.entries("task")]

NO_GENERATION = {"bag-of-words", "bert", "hf-encoder", "lstm"}
NO_BLOCKS = {"bag-of-words", "lstm"}
NO_FEATURES = {"none"}


def refused(fusion, language_model, task):
    """Whether the combination should be refused: a reader cannot write, deep fusion needs blocks, and an encoder is not
    run for nothing."""
    return (
        (task != "classify" and language_model in NO_GENERATION)
        or (fusion == "cross-attention" and language_model in NO_BLOCKS)
        or fusion in NO_FEATURES
    )


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_combination(fusion, language_model):
    for task in TASKS:
        parts = {**PARTNERS, "fusion": fusion, "language_model": language_model, "task": task}
        recipe = tiny(mmzoo.Recipe(**parts))
        if refused(fusion, language_model, task):
            with pytest.raises(DoesNotFit):
                mmzoo.check(recipe)
            continue
        if task == "classify":
            recipe = recipe.with_part("task", labels=list(Sample.COLOURS))
        model = mmzoo.build(recipe, seed=0)
        examples = Sample(count=3).load("train")
        model.train()
        loss = model(**tensors(model.collator(training=True)(examples), "cpu"))["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        wrong = [n for n, p in model.named_parameters() if p.requires_grad != (p.grad is not None) and not unused(n, model, task)]
        assert not wrong, f"{task}: gradients missing or unwanted: {wrong}"
        said = model.predict(image=[e.image for e in examples], text=[e.text for e in examples])
        alone = [model.predict(image=e.image, text=e.text) for e in examples]
        assert [p.label for p in said] == [p.label for p in alone], f"{task}: a batch and its rows alone differ"


def unused(name, model, task):
    """Weights that a task does not need: a language model's, and where only the encoder of a seq2seq model is read, the
    deep layers in its decoder."""
    decoder = model.language_model.kind == "seq2seq" and task == "classify" and name.startswith("fusion.layers.")
    return name.startswith("language_model.") or decoder
