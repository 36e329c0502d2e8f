"""Test every fusion with every language model for every task, tiny: the loss is finite, gradients reach what is trained, and
predictions do not depend on the batch. With one language model of each kind, training, saving and loading work too. Combinations
that the compatibility check refuses are listed in refusals.txt, to be reviewed by eye:

python tests/models/test_combinations.py    writes the list
"""

from pathlib import Path

import pytest
import torch

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit
from mmzoo.recipes import catalogue
from mmzoo.testing import PARTNERS, Sample, tiny

FUSIONS = [entry.name for entry in catalogue.entries("fusion")]
LANGUAGE_MODELS = [entry.name for entry in catalogue.entries("language_model")]
TASKS = [entry.name for entry in catalogue.entries("task")]
KINDS = ["gpt2", "lstm", "bert", "t5"]  # causal with blocks, causal without, bidirectional, sequence to sequence
SLOW = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in LANGUAGE_MODELS]
REFUSALS = Path(__file__).parent / "refusals.txt"


def combination(fusion, language_model, task):
    recipe = mmzoo.Recipe(**{**PARTNERS, "fusion": fusion, "language_model": language_model, "task": task})
    if fusion == "none":  # goes with text alone, where the language model is what learns
        recipe = recipe.with_part("encoder", use="none").with_part("language_model", train="full")
    recipe = tiny(recipe)
    return recipe.with_part("task", labels=list(Sample.COLOURS)) if task == "classify" else recipe


def refusal(fusion, language_model, task):
    """Return a line of the list; None if the combination fits."""
    try:
        mmzoo.check(combination(fusion, language_model, task))
    except DoesNotFit as error:
        return f"{fusion} {language_model} {task}: {str(error).splitlines()[0]}"
    return None


def of(lines, fusion, language_model):
    return [line for line in lines if line.startswith(f"{fusion} {language_model} ")]


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_what_does_not_fit_is_refused_and_listed(language_model):
    lines = REFUSALS.read_text(encoding="utf-8").splitlines()
    for fusion in FUSIONS:
        refusals = [refusal(fusion, language_model, task) for task in TASKS]
        expected = of(lines, fusion, language_model)
        assert [line for line in refusals if line] == expected, "python tests/models/test_combinations.py, and review the list"


@pytest.mark.parametrize("language_model", SLOW)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_combination(fusion, language_model, tmp_path):
    refused = [line.split(":")[0] for line in of(REFUSALS.read_text(encoding="utf-8").splitlines(), fusion, language_model)]
    for task in (task for task in TASKS if f"{fusion} {language_model} {task}" not in refused):
        model = mmzoo.build(combination(fusion, language_model, task), seed=0)
        examples = Sample(count=3).load("train")
        model.train()
        loss = model(**tensors(model.collator(training=True)(examples), "cpu"))["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        wrong = [n for n, p in model.named_parameters() if p.requires_grad != (p.grad is not None) and not unused(n, model, task)]
        assert not wrong, f"{task}: gradients missing or unwanted: {wrong}"
        together = model.predict(image=[e.image for e in examples], text=[e.text for e in examples])
        alone = [model.predict(image=e.image, text=e.text) for e in examples]
        assert [p.label for p in together] == [p.label for p in alone], f"{task}: a batch and its rows alone differ"
        if language_model in KINDS:
            check_saved(model, examples, tmp_path / task)


def check_saved(model, examples, folder):
    """Check that a step changes exactly what is trained, and that a loaded model predicts the same."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed
    assert all(model.get_parameter(name).requires_grad for name in changed)
    loaded = mmzoo.load(model.save(folder))
    images, texts = [e.image for e in examples], [e.text for e in examples]
    assert loaded.predict(image=images, text=texts) == model.predict(image=images, text=texts)
    if model.task.needs_generation:
        options = {"max_new_tokens": 4, "num_beams": 2}
        assert loaded.generate(images, texts, **options) == model.generate(images, texts, **options)


def test_the_list_names_nothing_else():
    lines = REFUSALS.read_text(encoding="utf-8").splitlines()
    assert sum(len(of(lines, f, m)) for f in FUSIONS for m in LANGUAGE_MODELS) == len(lines)


def unused(name, model, task):
    """Return whether a weight gets no gradient in a task: a language model's may not, and where only the encoder of a seq2seq
    model is used, those of deep layers in its decoder do not."""
    decoder = model.language_model.architecture == "seq2seq" and task == "classify" and name.startswith("fusion.layers.")
    return name.startswith("language_model.") or decoder


if __name__ == "__main__":
    refusals = (refusal(f, m, t) for f in FUSIONS for m in LANGUAGE_MODELS for t in TASKS)
    REFUSALS.write_text("".join(f"{line}\n" for line in refusals if line), encoding="utf-8")
