"""Models of this package through the transformers library's own pipelines and auto classes."""

import base64
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from hub import environment, run, run_script
from hub_server import serve_writable

import mmzoo
import mmzoo.integrations.transformers
from mmzoo.backbones import repository
from mmzoo.errors import BadImage, BadRecipe, CheckpointError, DataError, DoesNotFit, SourceError
from mmzoo.testing import Sample, no_network, tiny
from mmzoo_transformers.bytes import byte_tokenizer

PICTURES = [example.image for example in Sample().load("test")][:3]
PROMPTS = ["what", "is it", "a longer one"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
RECIPES = {
    "prefix": tiny("cnn-prefix-gpt"),
    "seq2seq": tiny("cnn-prefix-gpt", language_model="t5"),
    "merge": tiny("cnn-merge-lstm"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {name: mmzoo.build(recipe, seed=3) for name, recipe in RECIPES.items()}
    tokenizer = byte_tokenizer("causal")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "gpt2")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=264, n_positions=128)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    recipe = tiny("cnn-prefix-gpt", fusion="projector").to_dict()
    made["chat"] = mmzoo.build({**recipe, "language_model": {"use": f"hf-causal:{folder}/gpt2", "train": "frozen"}}, seed=3)
    return {name: (model, str(model.save(folder / name))) for name, model in made.items()}


def pipeline(folder, **options):
    return transformers.pipeline("image-text-to-text", model=folder, device="cpu", **options)


@pytest.mark.parametrize("name", [*RECIPES, "chat"])
def test_a_pipeline_says_what_the_model_says(models, name):
    model, folder = models[name]
    with no_network():
        pipe = pipeline(folder)
    answer = model.generate(image=PICTURES[0], prompt="what")
    assert pipe(images=PICTURES[0], text="what") == [{"input_text": "what", "generated_text": "what" + answer}]
    alone = pipe(images=PICTURES, text=PROMPTS, return_full_text=False, max_new_tokens=6)
    assert [found["generated_text"] for found in alone] == model.generate(image=PICTURES, prompt=PROMPTS, max_new_tokens=6)
    pairs = ({"images": picture, "text": prompt} for picture, prompt in zip(PICTURES, PROMPTS, strict=True))
    batch = [found for (found,) in pipe(pairs, batch_size=3, return_full_text=False, max_new_tokens=6)]
    assert batch == alone
    if name != "seq2seq":
        beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4}
        found = pipe(images=PICTURES[0], text="what", return_full_text=False, generate_kwargs=beams)
        assert [f["generated_text"] for f in found] == model.generate(image=[PICTURES[0]], prompt=["what"], **beams)


def test_several_images_and_conversations(models):
    model, folder = models["chat"]
    pipe = pipeline(folder)
    said = pipe(images=[PICTURES[:2]], text=["<image> or <image>"], return_full_text=False, max_new_tokens=5)
    assert said[0]["generated_text"] == model.generate(image=PICTURES[:2], prompt="<image> or <image>", max_new_tokens=5)
    parts = [{"type": "image", "image": PICTURES[1]}, {"type": "text", "text": "hello"}]
    found = pipe(text=[{"role": "user", "content": parts}], max_new_tokens=5)
    expected = model.generate(image=PICTURES[1], prompt=[{"role": "user", "content": "<image>hello"}], max_new_tokens=5)
    assert found[0]["generated_text"][-1] == {"role": "assistant", "content": expected}
    with pytest.raises(DataError, match="must end with the user's turn"):
        pipe(text=[{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "It"}]}])
    with pytest.raises(DataError, match="3 placeholders"):
        pipe(images=PICTURES[0], text="<image><image><image>")


def test_auto_classes(models, tmp_path):
    model, folder = models["prefix"]
    assert transformers.AutoConfig.from_pretrained(folder).model_type == "mmzoo"
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=PICTURES, text=PROMPTS, return_tensors="pt")
    out = loaded.generate(**inputs, max_new_tokens=5)
    answers = model.generate(image=PICTURES, prompt=PROMPTS, max_new_tokens=5)
    assert processor.batch_decode(out[:, inputs["input_ids"].shape[1] :]) == answers
    assert processor.batch_decode(out) == [a + b for a, b in zip(PROMPTS, answers, strict=True)]
    sampled = transformers.GenerationConfig(max_new_tokens=3, do_sample=True, temperature=1e-4)
    assert processor.batch_decode(loaded.generate(**inputs, generation_config=sampled)) == [
        a + b for a, b in zip(PROMPTS, model.generate(image=PICTURES, prompt=PROMPTS, max_new_tokens=3), strict=True)
    ]
    assert (
        transformers.AutoTokenizer.from_pretrained(folder)("what")["input_ids"]
        == model.language_model.tokenizer("what")["input_ids"]
    )
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (Path(folder) / "model.safetensors").read_bytes()
    half = transformers.AutoModel.from_pretrained(folder, dtype="bfloat16")
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


def test_a_model_that_writes_nothing(tmp_path):
    folder = mmzoo.build(tiny("cnn-product-lstm"), seed=3).save(tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(folder)
    assert model.model.predict(image=PICTURES) == mmzoo.load(folder).predict(image=PICTURES)
    with pytest.raises(DoesNotFit, match="does not generate text; use model.predict"):
        pipeline(str(folder))(images=PICTURES[0], text="x")


def test_a_model_that_takes_no_images(models, monkeypatch):
    pipe = pipeline(models["prefix"][1])
    monkeypatch.setattr(type(pipe.model.model.encoder), "modality", "audio")
    with pytest.raises(DoesNotFit, match="takes audio, not images"):
        pipe(images=PICTURES[0], text="x")


def test_what_is_refused(models, tmp_path):
    _, folder = models["prefix"]
    for option in ({"token": "hf_x"}, {"local_files_only": True}, {"device_map": "auto"}, {"quantization_config": {"a": 1}}):
        with pytest.raises(BadRecipe, match=next(iter(option))):
            transformers.AutoModelForImageTextToText.from_pretrained(folder, **option)
    with pytest.raises(BadRecipe, match="truncation: this processor has no such option"):
        transformers.AutoProcessor.from_pretrained(folder)(images=PICTURES[0], text="x", truncation=True)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    inputs = transformers.AutoProcessor.from_pretrained(folder)(images=PICTURES[0], text="x")
    with pytest.raises(DataError, match="1 prompts ask for 1 images and pixel_values hold 0"):
        loaded.generate(input_ids=inputs["input_ids"])
    with pytest.raises(DataError, match="exceed the language model's context"):
        loaded.generate(**inputs, max_new_tokens=10_000)
    with pytest.raises(BadRecipe, match="no_such_option"):
        loaded.generate(**inputs, no_such_option=1)
    with pytest.raises(SourceError, match="is a whole model of mmzoo, not a part"):
        repository.Source(folder).config()
    with pytest.raises(BadRecipe, match="transformers .* has no 'mmzoo'"):
        mmzoo.check(RECIPES["prefix"], language_model={"use": "hf-causal", "config": {"model_type": "mmzoo"}})


@pytest.mark.parametrize("trusted", [None, True])
def test_no_code_of_a_repository_is_run(models, tmp_path, trusted):
    _, folder = models["prefix"]
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for path in Path(folder).iterdir():
        (hostile / path.name).write_bytes(path.read_bytes())
    names = {n: f"modeling_x.{n}" for n in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor")}
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((hostile / name).read_text())
        (hostile / name).write_text(json.dumps({**data, "auto_map": names}))
    (hostile / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for call in (
        lambda: pipeline(str(hostile), trust_remote_code=trusted),
        lambda: transformers.AutoModelForImageTextToText.from_pretrained(hostile, trust_remote_code=trusted),
        lambda: transformers.AutoProcessor.from_pretrained(hostile, trust_remote_code=trusted),
    ):
        with pytest.raises(CheckpointError, match=r"modeling_x\.py"):
            call()
    assert not (tmp_path / "ran").exists()


def test_altered_weights_are_refused(models, tmp_path):
    model, _ = models["prefix"]
    folder = model.save(tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="was altered"):
        pipeline(str(folder))


# Processes of their own

HUB = """
import json, sys
import transformers
import mmzoo.integrations.transformers
from mmzoo.testing import Sample

picture, found = Sample().load("test")[0].image, []
for revision in ("v1", None):
    pipe = transformers.pipeline("image-text-to-text", model="me/shared", revision=revision, device="cpu")
    found.append(pipe(images=picture, text="what", return_full_text=False)[0]["generated_text"])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_repository_on_a_hub(models, tmp_path):
    with serve_writable(tmp_path / "hub") as hub:
        hub.create("me/shared")
        store = hub.repositories["me/shared"]
        for name, tag in (("prefix", "v1"), ("merge", "v2")):
            store.tags[tag] = hub.advance("me/shared", Path(models[name][1]), "main")
        found = run_script(HUB, env=environment(hub.url, tmp_path / "home", MMZOO_CACHE=str(tmp_path / "own")))
    assert found == [models[name][0].generate(image=PICTURES[0], prompt="what") for name in ("prefix", "merge")]


AUTO = """
import sys
import mmzoo
assert not {"torch", "transformers"} & set(sys.modules), "import mmzoo imports neither"
import mmzoo.integrations.transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor):
    print(type(auto.from_pretrained(sys.argv[1])).__name__)
"""


def test_one_import_registers_the_auto_classes(models):
    done = run("-c", AUTO, models["prefix"][1], env=dict(os.environ))
    assert done.stdout.split() == ["MmzooConfig", *["MmzooForImageTextToText"] * 3, "MmzooProcessor"], done.stderr


@pytest.mark.slow
def test_importing_mmzoo_leaves_the_import_system_alone():
    code = "import sys, mmzoo.integrations.transformers; print([f for f in sys.meta_path if 'mmzoo' in type(f).__module__])"
    assert run("-c", code, env=dict(os.environ)).stdout.strip() == "[]"


def turns_of(*content):
    return [{"role": "user", "content": list(content)}]


IMAGE, QUESTION = {"type": "image"}, {"type": "text", "text": "what?"}


def test_a_processor_renders_conversations_as_the_librarys_do(models):
    model, folder = models["chat"]
    processor, loaded = (auto.from_pretrained(folder) for auto in (transformers.AutoProcessor, transformers.AutoModel))
    turns, start = turns_of(IMAGE, QUESTION), {"add_generation_prompt": True}
    assert processor.apply_chat_template(turns) == "<user><image>what?\n"
    text = processor.apply_chat_template(turns, **start)
    assert text == "<user><image>what?\n<assistant>"
    assert processor.apply_chat_template([turns, turns_of(QUESTION)], **start) == [text, "<user>what?\n<assistant>"]
    expected = model.generate(image=PICTURES[0], prompt="what?", chat=True, max_new_tokens=5)

    def answer(inputs):
        out = loaded.generate(**inputs, max_new_tokens=5)
        return processor.decode(out[0, inputs["input_ids"].shape[1] :])

    ready = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **start}
    in_two_steps = processor(images=PICTURES[0], text=text)
    assert answer(in_two_steps) == expected
    for given in (PICTURES[0], [PICTURES[0]], [[PICTURES[0]]]):
        apart = processor.apply_chat_template(turns, images=given, **ready)
        assert answer(apart) == expected
        assert torch.equal(apart["input_ids"], in_two_steps["input_ids"])
    inside = turns_of({**IMAGE, "image": PICTURES[0]}, QUESTION)
    assert answer(processor.apply_chat_template(inside, **ready)) == expected
    assert torch.equal(processor.apply_chat_template(inside, tokenize=True, **start), in_two_steps["input_ids"])
    assert answer(processor.apply_chat_template(turns_of(QUESTION), images=PICTURES[0], **ready)) == expected
    several = processor.apply_chat_template(
        [turns_of(IMAGE, QUESTION, {**IMAGE, "image": PICTURES[1]}), turns], images=[PICTURES[0], PICTURES[2]], **ready
    )
    again = processor(images=[PICTURES[:2], [PICTURES[2]]], text=["<user><image>what?<image>\n<assistant>", text])
    assert all(torch.equal(several[name], again[name]) for name in again)


def test_images_of_conversations_are_read_from_files_and_links(models, tmp_path):
    processor = transformers.AutoProcessor.from_pretrained(models["chat"][1])
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    ready = {"tokenize": True, "return_dict": True}
    expected = processor.apply_chat_template(turns_of({**IMAGE, "image": PICTURES[0]}), **ready)["pixel_values"]
    encoded = base64.b64encode(path.read_bytes()).decode()
    for part in (
        {**IMAGE, "path": str(path)},
        {**IMAGE, "url": str(path)},
        {**IMAGE, "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ):
        assert torch.equal(processor.apply_chat_template(turns_of(part), **ready)["pixel_values"], expected)
    with pytest.raises(BadImage, match="missing.png"):
        processor.apply_chat_template(turns_of({**IMAGE, "path": str(tmp_path / "missing.png")}), **ready)


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        (turns_of(IMAGE, QUESTION), {"tokenize": True}, r"1 images of the conversation are not in it and 0 are given.*images=\["),
        (
            turns_of(IMAGE, IMAGE),
            {"tokenize": True, "images": PICTURES[0]},
            "2 images of the conversation are not in it and 1 are",
        ),
        (turns_of({"type": "audio", "audio": "a.wav"}), {}, "reads images: a turn may have text and image parts, not .*a.wav"),
        (turns_of({"type": "video"}), {}, "text and image parts, not"),
        (turns_of({"type": "text"}), {}, "text and image parts, not"),
        (turns_of("what"), {}, "text and image parts, not 'what'"),
        ([{"role": "user"}], {}, "a turn of a conversation is"),
        ([{"content": "x"}], {}, "a turn of a conversation is"),
        ([], {}, "a conversation is a list of turns"),
        ("what", {}, "a turn of a conversation is"),
        (turns_of(QUESTION), {"tools": [{"a": 1}]}, "tools: this processor has no such option"),
        (turns_of(QUESTION), {"continue_final_message": True}, "must end with the user's turn"),
        (turns_of(QUESTION), {"tokenize": True}, "an image is needed"),
    ],
)
def test_conversations_that_a_processor_cannot_render_are_refused(models, turns, options, message):
    processor = transformers.AutoProcessor.from_pretrained(models["chat"][1])
    with pytest.raises((DataError, BadRecipe), match=message):
        processor.apply_chat_template(turns, **options)
