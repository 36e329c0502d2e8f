"""Test generation: several images in one prompt, prompts of different lengths, stop strings, streaming, conversations."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mmzoo
from mmzoo.cli import app
from mmzoo.data.open import open_dataset
from mmzoo.data.vocabulary import learn_vocabulary
from mmzoo.errors import BadRecipe, DataError, PluginBroken
from mmzoo.interfaces import PLACEHOLDER_ID, Example
from mmzoo.testing import PARTNERS, tiny
from mmzoo.training.run import train

RED, GREEN, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))
FUSIONS = ["projector", "prefix-mlp", "concat", "cross-attention", "late-concat"]
LANGUAGE_MODELS = ["gpt2", "gpt-mini", "hf-causal", "t5"]
SEVERAL = [
    Example("two", [RED, GREEN], "one <image> and <image> what", ("x",)),
    Example("no placeholder", BLUE, "what is this", ("yy",)),
    Example("one", [BLUE], "a <image>", ("yy",)),
    Example("three", [RED, GREEN, BLUE], "<image><image> hmm <image>", ("zzz",)),
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def model_of(fusion="projector", language_model="gpt2", **task):
    task = {"use": "vqa", "template": "{text}", "max_new_tokens": 8, **task}
    parts = {**PARTNERS, "fusion": fusion, "language_model": language_model, "task": task}
    model = mmzoo.build(tiny(mmzoo.Recipe(**parts)), seed=3)
    if fusion == "cross-attention":
        for layer in model.fusion.layers:
            layer.gates.data.fill_(1.0)
    return model


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_several_images_in_batches_of_unequal_prompts(fusion, language_model):
    model = model_of(fusion, language_model)
    together = model.predict_examples(SEVERAL, scores=True)
    alone = [model.predict_examples([example], scores=True)[0] for example in SEVERAL]
    assert [p.label for p in together] == [p.label for p in alone]
    assert [p.label for p in together] == [p.label for p in model.predict_examples(SEVERAL, use_cache=False)]
    for a, b in zip(together, alone, strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-4)
    swapped = model.predict_examples([Example("swapped", [GREEN, RED], SEVERAL[0].text, ("x",))], scores=True)[0]
    seen = swapped.score != together[0].score
    assert seen == (fusion != "late-concat"), "only a mean over the images is the same in any order"


@pytest.mark.parametrize("fusion", ["projector", "cross-attention"])
def test_text_sees_the_images_before_it_and_none_after(fusion):
    model = model_of(fusion)

    def states(*images):
        batch = model.collator(training=False)([Example("x", list(images), "abc <image> def <image> ghi", ("x",))])
        places.append((batch["tasks"]["vqa"]["ids"][0] == PLACEHOLDER_ID).nonzero().flatten().tolist())
        with torch.no_grad():
            return model.task_outputs(batch)["vqa"].hidden[0]

    places = []
    one, other = states(RED, GREEN), states(RED, BLUE)
    length, second = places[0]
    assert torch.equal(one[:length], other[:length])
    assert torch.equal(one[length + 1 : second], other[length + 1 : second])
    assert not torch.equal(one[second + 1 :], other[second + 1 :])
    first = states(BLUE, GREEN)
    assert torch.equal(one[:length], first[:length])
    assert not torch.equal(one[length + 1 : second], first[length + 1 : second])


def test_a_penalty_on_repetition_does_not_see_the_padding_of_a_prompt():
    model = mmzoo.build(encoder="cnn", fusion="projector", language_model="gpt-mini", task="caption", seed=1)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(3)  # or it would write one token again and again
    options = {"repetition_penalty": 1.5, "max_new_tokens": 8}
    picture, prompts = Image.new("RGB", (64, 64), "red"), ["a", "what color is it ?"]
    alone = [model.generate(picture, prompt, **options) for prompt in prompts]
    assert model.generate(picture, prompts, **options) == alone
    assert alone[0] != model.generate(picture, prompts[0], max_new_tokens=8)


def test_a_single_prompt_with_placeholders_takes_a_list_of_images():
    model = model_of()
    text = "<image> or <image>?"
    assert model.generate([RED, GREEN], text, max_new_tokens=4) == model.generate([[RED, GREEN]], [text], max_new_tokens=4)[0]
    assert len(model.generate([RED, GREEN], "what", max_new_tokens=4)) == 2


@pytest.mark.parametrize(
    ("image", "prompt", "message"),
    [
        ([RED, GREEN], "<image> <image> <image>", "3 placeholders '<image>' in the text and 2 images"),
        (RED, "<image> <image>", "2 placeholders '<image>' in the text and 1 image;"),
        ([[RED, GREEN]], ["which"], "0 placeholders '<image>' in the text and 2 images"),
        (RED, [[{"role": "user"}]], "a turn of a conversation is"),
        (RED, "a" * 300, "300 text tokens, 16 from the fusion and 32 to generate exceed the language model's context of 256"),
        ([RED, RED], "<image><image>" + "a" * 200, "200 text tokens, 32 from the fusion and 32 to generate"),
    ],
)
def test_inputs_and_prompts_that_do_not_match_are_refused(image, prompt, message):
    model = model_of()
    model.language_model.tokenizer.chat_template = TEMPLATE
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        model.generate(image, prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 10**6}, "num_beams: must be a whole number from 1 to 1024"),
        ({"num_beams": True}, "num_beams"),
        ({"num_return_sequences": 0}, "num_return_sequences: must be a whole number from 1"),
        ({"num_return_sequences": 10**7, "do_sample": True}, "num_return_sequences"),
        ({"max_new_tokens": 10**9}, "max_new_tokens: must be a whole number from 1 to 1000000"),
        ({"max_length": 3}, "max_length: use max_new_tokens"),
        ({"generation_config": "x"}, "generation_config: give its settings"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
        ({"do_sample": True, "temperature": 1e-45}, "with do_sample, temperature: RuntimeError"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"forced_eos_token_id": 10**7}, "with forced_eos_token_id: IndexError"),
        ({"stopping_criteria": 1}, "stopping_criteria: must be a list"),
    ],
    ids=str,
)
@pytest.mark.parametrize("language_model", ["gpt2", "lstm"])
def test_a_wrong_option_is_named(language_model, options, message):
    """Include options with which the library fails in its own way, or would need all memory or days."""
    model = model_of("late-concat", language_model)
    with pytest.raises(BadRecipe, match=message):
        model.generate(RED, "what", **options)
    if "num_beams" not in options and "num_return_sequences" not in options:
        with pytest.raises(BadRecipe, match=message):
            list(model.stream(RED, "what", **options))


def test_predict_checks_options_too():
    model = model_of()
    with pytest.raises(BadRecipe, match="batch_size: must be a whole number of at least 1"):
        model.predict(RED, "what", batch_size=0)
    with pytest.raises(BadRecipe, match="one prediction"):
        model.predict(RED, "what", num_beams=2, num_return_sequences=2)
    with pytest.raises(
        DataError, match="20 positions of a prompt and 300 to generate exceed the language model's context of 256"
    ):
        model.predict(RED, "what", max_new_tokens=300)


def test_an_error_that_no_option_explains_is_raised_unchanged(monkeypatch):
    model = model_of()
    monkeypatch.setattr(model.language_model, "generate", lambda *_, **__: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        model.predict(RED, "what")


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_a_stream_joined_is_the_text(language_model):
    model = model_of(language_model=language_model)
    full = model.generate(RED, "what is", max_new_tokens=20)
    pieces = list(model.stream(RED, "what is", max_new_tokens=20))
    assert "".join(pieces) == full
    assert len(pieces) > 3 or len(full) < 4, "token by token"


def test_a_stream_can_be_closed_and_names_wrong_options():
    model = model_of()
    listening = model.stream(RED, "what", max_new_tokens=200)
    next(listening)
    listening.close()
    assert model.generate(RED, "what", max_new_tokens=3)
    with pytest.raises(BadRecipe, match="without beams"):
        list(model.stream(RED, "what", num_beams=2))
    with pytest.raises(BadRecipe, match="one image and one prompt"):
        list(model.stream([RED, GREEN], "what"))
    with pytest.raises(BadRecipe, match="no_such_option"):
        list(model.stream(RED, "what", no_such_option=1))
    with pytest.raises(BadRecipe, match="stream: streamer"):
        list(model.stream(RED, "what", streamer=None))


@pytest.mark.parametrize("language_model", ["gpt2", "gpt-mini"])
def test_stop_strings_end_each_row_where_it_has_them(language_model):
    model = model_of(language_model=language_model)
    prompts = ["what is", "x"]
    full = model.generate([RED, GREEN], prompts, max_new_tokens=20)
    stop = full[0][3:5]
    cut = model.generate([RED, GREEN], prompts, max_new_tokens=20, stop=stop)
    assert cut == [text[: text.find(stop)].strip() if stop in text else text for text in full]
    assert "".join(model.stream(RED, prompts[0], max_new_tokens=20, stop=[stop])) == cut[0]
    for wrong in ("", [""], [3], 5):
        with pytest.raises(BadRecipe, match="stop"):
            model.generate(RED, "x", stop=wrong)


def test_a_stop_string_that_begins_with_a_space_is_not_found_before_the_first_word():
    words = {"use": "gpt-mini", "vocabulary": learn_vocabulary(["red green blue what is this"], 100)}
    recipe = tiny(mmzoo.Recipe(**{**PARTNERS, "language_model": "gpt-mini", "task": {"use": "vqa", "template": "{text}"}}))
    model = mmzoo.build(recipe, language_model=words, seed=3)
    sampling = {"max_new_tokens": 60, "do_sample": True, "temperature": 3.0}

    def generated(write, **options):
        torch.manual_seed(0)
        return "".join(write(RED, "what is", **sampling, **options))

    full = generated(model.generate)
    stop = " " + full[0]
    assert full.find(stop) > len(full.split()[0]), "another word begins so, and not the second"
    assert generated(model.generate, stop=stop) == full[: full.find(stop)]
    assert generated(model.stream, stop=stop) == full[: full.find(stop)]


def test_a_conversation_goes_through_the_tokenizers_template():
    model = model_of(language_model="hf-causal")
    with pytest.raises(BadRecipe, match="no chat template"):
        model.generate(RED, "hello", chat=True)
    model.language_model.tokenizer.chat_template = TEMPLATE
    turns = [{"role": "user", "content": "hello"}]
    text = model.generate(RED, turns, max_new_tokens=6)
    assert text == model.generate(RED, "hello", chat=True, max_new_tokens=6)
    # An image without a placeholder stands where the user begins to speak.
    assert text == model.generate(RED, "<user><image>hello\n<assistant>", max_new_tokens=6)
    both = model.generate([RED, [RED, GREEN]], [turns, [{"role": "user", "content": "<image>a<image>b"}]], max_new_tokens=6)
    assert both[0] == text


def test_a_task_trains_on_and_answers_in_the_template():
    model = model_of(chat=True)
    model.language_model.tokenizer.chat_template = TEMPLATE
    example = Example("x", RED, "what", ("red",))
    batch = model.collator(training=True)([example])
    words = model.language_model.tokenizer.decode([i for i in batch["tasks"]["vqa"]["ids"][0].tolist() if i >= 0])
    assert words.replace(" ", "").startswith("<user>what\n<assistant>red")
    assert model.predict_examples([example])[0].label == model.generate(RED, "what", chat=True, max_new_tokens=4)


def test_data_files_hold_several_pictures_of_an_example(tmp_path):
    for name, picture in {"r": RED, "g": GREEN}.items():
        picture.save(tmp_path / f"{name}.png")
    rows = [
        {"image": ["r.png", "g.png"], "text": "<image> or <image>", "answer": "red"},
        {"image": "g.png", "text": "which", "answer": "green"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = list(open_dataset(str(tmp_path / "train.jsonl")).load("train"))
    assert [len(example.of("image")) for example in examples] == [2, 1]
    options = {"max_steps": 2, "batch_size": 2, "precision": "fp32"}
    run = train(
        tiny("cnn-prefix-gpt"), dataset=str(tmp_path / "train.jsonl"), output=tmp_path / "m", training=options, progress=False
    )
    assert run.steps == 2
    result = mmzoo.evaluate(run.model, dataset=str(tmp_path / "train.jsonl"), split="train", progress=False)
    assert result.examples == 2


def test_the_command_streams_stops_and_takes_several_images(tmp_path):
    model_of(language_model="gpt-mini").save(tmp_path / "m")
    paths = [str(tmp_path / f"{name}.png") for name in "rg"]
    RED.save(paths[0])
    GREEN.save(paths[1])
    model = mmzoo.load(tmp_path / "m")
    run = CliRunner().invoke
    plain = run(app, ["generate", str(tmp_path / "m"), paths[0], "--prompt", "what", "--json"])
    assert json.loads(plain.stdout) == [{"image": paths[0], "text": model.generate(paths[0], "what")}]
    streamed = run(app, ["generate", str(tmp_path / "m"), paths[0], "--prompt", "what", "--stream"])
    assert streamed.stdout.strip() == model.generate(paths[0], "what")
    two = run(app, ["generate", str(tmp_path / "m"), *paths, "--prompt", "<image> or <image>", "--json"])
    assert json.loads(two.stdout) == [{"image": paths, "text": model.generate(paths, "<image> or <image>")}]


@pytest.fixture
def own_loop(monkeypatch):
    """Return a model whose language model has its own decoding loop, without streaming and without several answers."""
    model = model_of(language_model="gpt-mini")

    def generate(embeddings, mask, memory=None, *, max_new_tokens=8, **options):
        ids = [[5 + i for i in range(max_new_tokens)]] * len(embeddings)
        return torch.tensor(ids)

    monkeypatch.setattr(model.language_model, "generate", generate)
    return model


def test_a_loop_without_streaming_yields_all_of_the_text_at_once(own_loop):
    text = own_loop.generate(RED, "what", max_new_tokens=3)
    assert text
    assert list(own_loop.stream(RED, "what", max_new_tokens=3)) == [text]


def test_a_loop_that_returns_another_number_of_texts_is_named(own_loop):
    with pytest.raises(PluginBroken, match=r"'gpt-mini' of plugin 'mmzoo': generate returned 2 rows instead of 6 texts"):
        own_loop.generate([RED, GREEN], "what", num_return_sequences=3, do_sample=True)
