"""Test every fusion with every language model for every task, tiny: the loss is finite, gradients reach what is trained, and
predictions do not depend on the batch. With one language model and one task of each kind, a step, saving and loading work too.
A joint fusion gets two encoders, and examples that lack an input of either. Combinations that the compatibility check refuses
are listed in refusals.txt, to be reviewed by eye:

python tests/models/test_combinations.py    writes the list
"""

from pathlib import Path

import pytest
import torch

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit
from mmzoo.recipes import catalogue
from mmzoo.testing import Sample, tiny

FUSIONS = [entry.name for entry in catalogue.entries("fusion")]
JOINT = [entry.name for entry in catalogue.entries("fusion") if entry.load().joint]
LANGUAGE_MODELS = [entry.name for entry in catalogue.entries("language_model")]
TASKS = [entry.name for entry in catalogue.entries("task")]
LABELS = {"labels": list(Sample.COLOURS)}
OPTIONS = {"classify": LABELS, "multi-label": LABELS}
SAVED = ["classify", "vqa"]  # one that chooses and one that writes
KINDS = ["gpt2", "lstm", "bert", "t5"]  # causal with blocks, causal without, bidirectional, sequence to sequence
QUICK = {("cross-attention", "gpt2"), ("encoder-states", "t5"), ("graph", "t5"), ("prefix-mlp", "t5"), ("cross-modal", "bert")}
QUICK |= {(fusion, name) for fusion in FUSIONS for name in ("lstm", "bert") if name == "lstm" or fusion not in JOINT}
PAIRS = [
    pytest.param(fusion, name, marks=[] if (fusion, name) in QUICK else [pytest.mark.slow])
    for fusion in FUSIONS
    for name in LANGUAGE_MODELS
]
REFUSALS = Path(__file__).parent / "refusals.txt"


def combination(fusion, language_model, task):
    encoders = {"encoders": {"one": "cnn", "two": "log-mel-gru"}} if fusion in JOINT else {"encoder": "cnn"}
    chosen = {"use": task, **OPTIONS.get(task, {})}
    recipe = mmzoo.Recipe(**encoders, fusion=fusion, language_model=language_model, task=chosen)
    if fusion == "none" and task != "contrastive":  # goes with text alone, where the language model is what learns
        recipe = recipe.with_part("encoder", use="none").with_part("language_model", train="full")
    return tiny(recipe)


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
    for line in REFUSALS.read_text(encoding="utf-8").splitlines():
        fusion, name, task = line.partition(":")[0].split()
        if name == language_model:  # `test_combination` builds what is not listed
            assert refusal(fusion, name, task) == line, "python tests/models/test_combinations.py, and review the list"


@pytest.mark.parametrize(("fusion", "language_model"), PAIRS)
def test_combination(fusion, language_model, tmp_path):
    refused = [line.split(":")[0] for line in of(REFUSALS.read_text(encoding="utf-8").splitlines(), fusion, language_model)]
    for task in (task for task in TASKS if f"{fusion} {language_model} {task}" not in refused):
        model = mmzoo.build(combination(fusion, language_model, task), seed=0)
        examples = Sample(count=3, numbers=task == "regress").load("train")
        if fusion in JOINT:
            examples = [examples[0], examples[1].with_inputs("image", []), examples[2].with_inputs("audio", [])]
        model.train()
        loss = model(**tensors(model.collator(training=True)(examples), "cpu"))["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        wrong = [n for n, p in model.named_parameters() if p.requires_grad != (p.grad is not None) and not unused(n, model)]
        assert not wrong, f"{task}: gradients missing or unwanted: {wrong}"
        for one, example in zip(predict(model, examples), examples, strict=True):
            (alone,) = predict(model, [example])
            assert (one.label, one.labels) == (alone.label, alone.labels), f"{task}: a batch and its rows alone differ"
            assert numbers(one) == pytest.approx(numbers(alone), rel=1e-3, abs=1e-5), f"{task}: a batch and its rows alone differ"
        if language_model in KINDS and task in SAVED:
            check_saved(model, examples, tmp_path / task)


def predict(model, examples):
    return model.predict(**inputs(model, examples), text=[e.text for e in examples], scores=True)


def inputs(model, examples):
    return {modality: [e.inputs.get(modality) for e in examples] for modality in model.modalities}


def numbers(prediction):
    return [*prediction.scores.values()] or [prediction.score if prediction.value is None else prediction.value]


def check_saved(model, examples, folder):
    """Check that a step changes exactly what is trained, and that a loaded model predicts the same."""
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed
    assert all(model.get_parameter(name).requires_grad for name in changed)
    loaded = mmzoo.load(model.save(folder))
    assert predict(loaded, examples) == predict(model, examples)
    if model.task.needs_generation:
        options = {**inputs(model, examples), "prompt": [e.text for e in examples], "max_new_tokens": 4, "num_beams": 2}
        assert loaded.generate(**options) == model.generate(**options)


def test_the_list_names_nothing_else():
    lines = REFUSALS.read_text(encoding="utf-8").splitlines()
    assert sum(len(of(lines, f, m)) for f in FUSIONS for m in LANGUAGE_MODELS) == len(lines)


@pytest.mark.parametrize("fusion", JOINT)
def test_a_joint_fusion_with_one_encoder_is_refused(fusion):
    two = combination(fusion, "bert", "classify")
    alone = two.model_copy(update={"encoders": {"one": two.encoders["one"]}})
    apart = mmzoo.Recipe.of({**two.to_dict(), "fusions": {"one": two.fusion.model_dump(), "two": "late-sum"}})
    reads = f"'{fusion}' reads the features of several encoders together, and"
    with pytest.raises(DoesNotFit, match=rf"{reads} there is only one, 'one'\.\nAdd an encoder; or (.|\n)*late-sum"):
        mmzoo.check(alone)
    with pytest.raises(
        DoesNotFit, match=rf"{reads} it is given to one at a time\.\nWrite it once, .*: {fusion}; or (.|\n)*late-sum"
    ):
        mmzoo.check(apart)


def unused(name, model):
    """Return whether a weight gets no gradient in a task.

    A language model's may not. Where only the encoder of a seq2seq model is used, those of deep layers in its decoder do not.
    A fusion that reads tokens alone does not read the vectors for missing inputs, and a task that compares one encoder's inputs
    with texts reads neither a fusion nor another encoder.
    """
    reads_encoder = model.language_model.architecture == "seq2seq" and not model.task.needs_generation
    deep = [f"fusions.{key}.layers." for key, fusion in model.fusions.items() if "deep" in fusion.places()]
    tokens_only = [f"fusions.{key}.missing." for key, fusion in model.fusions.items() if fusion.needs_tokens]
    apart = ["fusions.", "encoders.two."] if model.task.needs_input else []
    return name.startswith(("language_model.", *(deep if reads_encoder else []), *tokens_only, *apart))


if __name__ == "__main__":
    refusals = (refusal(f, m, t) for f in FUSIONS for m in LANGUAGE_MODELS for t in TASKS)
    REFUSALS.write_text("".join(f"{line}\n" for line in refusals if line), encoding="utf-8")
