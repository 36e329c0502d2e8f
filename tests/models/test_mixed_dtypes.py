"""Parts of different floating-point types: a language model or an encoder in half precision beside float32."""

import contextlib

import pytest
import torch

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit
from mmzoo.testing import Sample, tiny

FUSIONS = sorted(entry.name for entry in mmzoo.entries("fusion") if entry.name != "none")
JOINT = {entry.name for entry in mmzoo.entries("fusion") if entry.load().joint}
HALVES = {
    "language model in bfloat16": {"language_model": torch.bfloat16},
    "encoder in bfloat16": {"encoder": torch.bfloat16},
    "both in float16": {"language_model": torch.float16, "encoder": torch.float16},
}
PICTURES = [example.image for example in Sample().load("test")][:3]


def made(fusion, task="caption", language_model="gpt2", parts=None):
    """A tiny model with parts in other types; a joint fusion reads two encoders."""
    model = mmzoo.build(recipe_of(fusion, language_model, task), seed=0)
    for key, dtype in (parts or {}).items():
        for part in model.encoders.values() if key == "encoder" else [model.part(key)]:
            part.to(dtype)
    return model


def recipe_of(fusion, language_model, task):
    encoders = {"image": "cnn", "sound": "cnn"} if fusion in JOINT else {"image": "cnn"}
    return tiny(mmzoo.Recipe(encoders=encoders, fusion=fusion, language_model=language_model, task=task))


def fitting(fusion):
    """The first language model and task that a fusion fits."""
    for language, task in (("gpt2", "caption"), ("t5", "caption"), ("bert", "classify"), ("gpt2", "classify")):
        with contextlib.suppress(DoesNotFit):
            mmzoo.check(recipe_of(fusion, language, task))
            return language, task
    raise AssertionError(fusion)


def stepped(model):
    """The loss of a batch, and whether each trained part has a finite gradient, after one step."""
    model.train()
    loss = model(**tensors(model.collator(training=True)(Sample().load("train")[:4]), "cpu"))["loss"]
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert trained
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in trained)
    torch.optim.SGD(trained, lr=0.01).step()
    model.eval()
    return loss.item()


CASES = [(fusion, half) for fusion in FUSIONS for half in HALVES]
CASES += [(fusion, "fusion in bfloat16") for fusion in ("cross-attention", "late-attention", "projector", "encoder-states")]
QUICK = ("cross-attention", "late-concat")  # in every case; the others are quick only beside a language model
CASES = [
    case if case[0] in QUICK or case[1] == "language model in bfloat16" else pytest.param(*case, marks=pytest.mark.slow)
    for case in CASES
]


@pytest.mark.parametrize(("fusion", "half"), CASES)
def test_every_fusion_beside_a_part_in_half_precision(fusion, half):
    language, task = fitting(fusion)
    model = made(fusion, task, language, HALVES.get(half, {"fusion": torch.bfloat16}))
    types = {name: value.dtype for name, value in model.named_parameters()}
    loss = stepped(model)
    assert loss == pytest.approx(stepped(made(fusion, task, language)), rel=0.02)
    predictions = model.predict(PICTURES, ["a", "b", "c"])
    assert len(predictions) == 3
    if task == "caption":
        assert len(model.generate(PICTURES, "a", max_new_tokens=3)) == 3
        assert len(model.generate(PICTURES[0], "a", max_new_tokens=3, num_beams=2, num_return_sequences=2)) == 2
    assert types == {name: value.dtype for name, value in model.named_parameters()}


@pytest.mark.parametrize("half", list(HALVES)[::2])
@pytest.mark.parametrize("language", ["gpt2", "bert", "t5", "lstm"])
@pytest.mark.parametrize("task", ["classify", "contrastive", "regress"])
def test_tasks_read_states_in_their_own_type(task, language, half):
    model = made("late-concat", task, language, HALVES[half])
    read = []
    layer = model.task.text if task == "contrastive" else model.task.head[-1]
    layer.register_forward_pre_hook(lambda module, args: read.append(args[0].dtype))
    assert stepped(model) == pytest.approx(stepped(made("late-concat", task, language)), rel=0.02)
    model.predict(PICTURES, ["a", "b", "c"])
    assert set(read) == {torch.float32}


def test_states_of_the_language_model_are_those_that_it_has_alone():
    """What a language model reads and gives is in its own type, so that fusions cost it no precision."""
    model, whole = made("cross-attention", parts={"language_model": torch.bfloat16}), made("cross-attention")
    reads = []
    for block in model.language_model.blocks():
        block.register_forward_pre_hook(lambda module, args, kwargs: reads.append(args[0].dtype), with_kwargs=True)
    batch = tensors(model.collator(training=True)(Sample().load("train")[:4]), "cpu")
    with torch.no_grad():
        for layer in (*model.fusion.layers, *whole.fusion.layers):
            layer.gates.fill_(0.5)
        found, expected = (next(iter(m.task_outputs(batch).values())).states.hidden for m in (model, whole))
    assert set(reads) == {torch.bfloat16}
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_two_tasks_of_two_types_share_one_pass():
    tasks = {"first": "classify", "second": "classify"}
    recipe = tiny(mmzoo.Recipe(encoder="cnn", fusion="late-sum", language_model="bert", tasks=tasks))
    model = mmzoo.build(recipe, seed=0)
    model.language_model.to(torch.bfloat16)
    model.part("tasks.second").to(torch.float16)
    calls, read = [], {}
    model.language_model.register_forward_hook(lambda *_: calls.append(1))
    for name in tasks:
        head = model.part(f"tasks.{name}").head[-1]
        head.register_forward_pre_hook(lambda module, args, name=name: read.update({name: args[0].dtype}))
    predictions = model.predict(PICTURES, ["a", "b", "c"])
    assert len(predictions) == 3
    assert read == {"first": torch.float32, "second": torch.float16}
    assert len(calls) == 1


def test_several_encoders_of_several_types_and_a_missing_input():
    encoders = {"image": "cnn", "sound": "cnn"}
    recipe = tiny(mmzoo.Recipe(encoders=encoders, fusion="gated", language_model="gpt2", task="classify"))
    model = mmzoo.build(recipe, seed=0)
    model.part("encoders.image").to(torch.bfloat16)
    model.language_model.to(torch.float16)
    assert len(model.predict([PICTURES[0], None], ["a", "b"])) == 2


def test_autocast_converts_nothing_more():
    model = made("late-concat", parts={"language_model": torch.bfloat16})
    batch = tensors(model.collator(training=True)(Sample().load("train")[:4]), "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(**batch)["loss"]
    loss.backward()
    assert loss.isfinite()


def test_a_model_of_several_types_is_saved_and_loaded(tmp_path):
    model = made("cross-attention", parts={"language_model": torch.bfloat16})
    model.save(tmp_path / "saved", full=True)
    assert mmzoo.load(tmp_path / "saved").generate(PICTURES, "a", max_new_tokens=3)
