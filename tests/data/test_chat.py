"""Conversations in the shapes of chat templates that published tokenizers have, and tokenizers without special tokens."""

import json

import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import mmzoo
from mmzoo.data.tokens import prompt_ids, render_chat
from mmzoo.errors import BadRecipe, DoesNotFit, SourceError
from mmzoo.interfaces import CAUSAL, PLACEHOLDER_ID, SEQ2SEQ, Example, TextContext
from mmzoo.testing import tiny
from mmzoo_transformers.bytes import byte_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN3 = """{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "user" or message.role == "system" %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- else -%}"
    "{%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for message in rest -%}{{ '<start_of_turn>' + message['role'] + '\\n' + (first if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}"
    "{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ '\\n' + content['text'] }}"
    "{% endgeneration %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_VL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI_VISION = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>\\n' -}}{% endif %}"
)
# User's turns in parts, the others in texts.
MIXED = (
    "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}{% if c.type == 'image' %}[IMG]"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% else %}{{ '|' + m.content + '|' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "deepseek": DEEPSEEK,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "gemma3": GEMMA3,
    "mistral": MISTRAL,
    "smolvlm": SMOLVLM,
    "onevision": ONEVISION,
    "qwen-vl": QWEN_VL,
    "phi-vision": PHI_VISION,
    "mixed": MIXED,
}
PARTS = {"smolvlm", "onevision", "qwen-vl"}
HISTORY = [
    {"role": "user", "content": "What is in\r\nthe picture? "},
    {"role": "assistant", "content": "<think>\nA pig.\n\nSurely.\n</think>\n\nIt is a dog."},
    {"role": "user", "content": "  And its colour?\r\n"},
]


def context(template, **more):
    tokenizer = byte_tokenizer("causal")
    tokenizer.chat_template = template
    return TextContext(tokenizer, more.pop("architecture", CAUSAL), None, more.pop("added", {"image": 4}), **more)


def own(tokenizer, turns, name, **options):
    """Return what the tokenizer makes of the turns, in the form that the template is written for."""

    def parts(turn):
        return {**turn, "content": [{"type": "text", "text": turn["content"]}]}

    if name in PARTS:
        turns = [parts(turn) for turn in turns]
    if name == "mixed":
        turns = [parts(turn) if turn["role"] == "user" else turn for turn in turns]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_without_pictures_is_the_tokenizers_own_rendering(name):
    text = context(TEMPLATES[name], added={"image": 0})
    for turns in (HISTORY, HISTORY[:1], [{"role": "system", "content": "Be brief."}, *HISTORY]):
        if turns[0]["role"] == "system" and name in ("gemma", "mistral"):
            with pytest.raises(BadRecipe, match="rejects these messages: (System role not supported|Conversation roles must)"):
                render_chat(text, turns, {})
            continue
        rendered = render_chat(text, turns, {})
        assert rendered == own(text.tokenizer, turns, name, tokenize=False)
        expected = own(text.tokenizer, turns, name, tokenize=True, return_dict=True)["input_ids"]
        assert prompt_ids(text, [rendered], framed=True) == [expected]
        assert "colour" in rendered or len(turns) == 1


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("place", ["", "<image>", "before <image> and <image> "])
def test_each_picture_has_one_placeholder(name, place):
    text = context(TEMPLATES[name])
    count = max(1, place.count("<image>"))
    turns = [{**HISTORY[0], "content": place + HISTORY[0]["content"]}, *HISTORY[1:]]
    rendered = render_chat(text, turns, {"image": count})
    (row,) = prompt_ids(text, [rendered], framed=True)
    assert rendered.count("<image>") == row.count(PLACEHOLDER_ID) == count
    words = "".join(rendered.split())
    for said in ("Whatisinthepicture?", "Andits", "Itisadog."):
        assert said in words
    assert ("Surely" in words) == (name not in ("qwen3", "deepseek"))


def test_a_template_that_begins_a_text_does_it_once():
    text = context("{{ bos_token }}" + CHATML)
    (row,) = prompt_ids(text, [render_chat(text, HISTORY, {"image": 1})], framed=True)
    assert row.count(text.tokenizer.bos_token_id) == 1


def test_a_sequence_to_sequence_model_reads_the_rendering_alone():
    text = context(CHATML, architecture=SEQ2SEQ, added={"image": 0})
    rendered = render_chat(text, HISTORY, {})
    expected = text.tokenizer.apply_chat_template(HISTORY, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids(text, [rendered], framed=True) == [expected]


LAST = "{{ messages[-1].content if messages[-1].content is string else '' }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LAST, r"drops .*turn of 'assistant'"),
        ("hello", r"drops every word of a turn of 'user' or '<image>'"),
        ("{% for m in messages %}{{ m.content[:30] }}{% endfor %}", r"drops or changes words of turn 1, 'user': 'What is in the"),
        ("{% for m in messages %}{{ m.content.replace('<image>', '') }}{% endfor %}", "'user' or '<image>'"),
        (CHATML + "{% if messages | length == 3 %}<image>{% endif %}", r"writes '<image>' 2 times for 1"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "rejects these messages: can only concatenate"),
    ],
)
def test_what_a_template_loses_is_named(template, message):
    with pytest.raises(BadRecipe, match=message):
        render_chat(context(template), HISTORY, {"image": 1})


def _turns(*contents, first="user"):
    roles = [first, *("assistant" if i % 2 else "user" for i in range(1, len(contents)))]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


_TWO = "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
_KNOWN = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (_TWO, _turns("yes", "yes", "yes"), "drops turn 1 of 3, 'user'"),
        (_TWO, [*_turns("what", "a dog", "a"), {"role": "tool", "content": "s"}], "drops turn 1 of 4, 'user'"),
        (_KNOWN, [{"role": "developer", "content": "us"}, *_turns("what")], "drops turn 1 of 2, 'developer'"),
        (_KNOWN, [*_turns("what", "a"), {"role": "tool", "content": "a"}, *_turns("so")], "drops turn 3 of 4, 'tool'"),
    ],
)
def test_a_dropped_turn_is_named_though_its_words_are_elsewhere(template, turns, message):
    """ "us" is in "user" too, and who repeats a word has said it twice."""
    text = context(template, added={"image": 0})
    for _ in range(2):
        with pytest.raises(BadRecipe, match=message):
            render_chat(text, turns, {})
    assert render_chat(text, _turns("yes", "yes"), {}) == "user: yes\nassistant: yes\n"


def test_a_template_is_read_anew_when_it_is_replaced():
    text = context(CHATML)
    assert "<|im_start|>user\n<image>What" in render_chat(text, HISTORY, {"image": 1})
    text.tokenizer.chat_template = SMOLVLM
    assert "User:<image>What" in render_chat(text, HISTORY, {"image": 1})


def test_a_model_answers_after_reasoning(tmp_path):
    """Through the public door: the answer is that to the tokenizer's own rendering."""
    model = mmzoo.build(tiny("cnn-prefix-gpt", fusion="projector", language_model="gpt2"), seed=3)
    model.language_model.tokenizer.chat_template = QWEN3
    picture = Image.new("RGB", (32, 32), "red")
    turns = [{"role": "user", "content": "a <image>?"}, {"role": "assistant", "content": "<think>x</think>no"}, HISTORY[2]]
    written = own(model.language_model.tokenizer, turns, "qwen3", tokenize=False)
    assert "<image>" in written
    said = model.generate(image=picture, prompt=[turns], max_new_tokens=5)
    assert said == [model.generate(image=picture, prompt=written, max_new_tokens=5)]


# Tokenizers without special tokens


def language_model(folder, config=None, generation=None, **special):
    """Save a small GPT-2 whose tokenizer has only the ``special`` tokens; ``config`` is added to its configuration."""
    units = {token: i for i, token in enumerate(["<none>", "<stop>", "[SEP]", "[PAD]", "[CLS]", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(BPE(vocab=units, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    made = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(units), n_positions=96)
    GPT2LMHeadModel(made).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in written.items() if not key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps({**kept, **(config or {})}))
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    return f"hf-causal:{folder}"


SEVERAL = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({"config": {"eos_token_id": 1}}, 1),
        ({"config": {"eos_token_id": [1, 2]}, "pad_token": "[PAD]"}, 1),
        ({"generation": {"eos_token_id": 1}, "config": {"eos_token_id": 2}}, 1),
        ({"config": {"eos_token_id": 50256}, **SEVERAL}, 2),
        (SEVERAL, 2),
        ({"eos_token": "<stop>"}, 1),
    ],
    ids=str,
)
def test_the_end_of_a_text_is_the_one_that_the_files_name(files, end, tmp_path):
    model = mmzoo.build(tiny("cnn-prefix-gpt"), language_model=language_model(tmp_path / "lm", **files), seed=0)
    batch = model.collator(training=True)([Example("x", Image.new("RGB", (32, 32)), "", ("a dog",))])
    (labels,) = batch["tasks"]["vqa"]["labels"]
    assert labels[-1] == end
    assert end in model.language_model.end_ids
    assert isinstance(model.predict(image=Image.new("RGB", (32, 32))).label, str)
    saved = mmzoo.load(model.save(tmp_path / "model"))
    assert saved.language_model.tokenizer.eos_token_id == end


@pytest.mark.parametrize(
    "special", [{"pad_token": "[PAD]"}, {"unk_token": "<none>"}, {"bos_token": "[CLS]", "pad_token": "[PAD]"}]
)
def test_a_tokenizer_without_an_end_is_refused_for_tasks_that_write_only(special, tmp_path):
    name = language_model(tmp_path / "lm", **special)
    for make in (mmzoo.check, mmzoo.build):
        with pytest.raises(DoesNotFit, match=r"(?s)'vqa' generates text, and the tokenizer of .* names no end.*eos_token"):
            make(tiny("cnn-prefix-gpt"), language_model=name)
    model = mmzoo.build(tiny("cnn-prefix-gpt"), language_model=name, task={"use": "classify", "labels": ["a", "b"]}, seed=0)
    assert model.predict(image=Image.new("RGB", (32, 32)), text="").label in ("a", "b")
    assert model.predict(image=Image.new("RGB", (32, 32)), text="what").label in ("a", "b")


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    name = language_model(tmp_path / "lm")
    with pytest.raises(SourceError, match="neither a padding nor an end token"):
        mmzoo.check(tiny("cnn-prefix-gpt"), language_model=name)


def test_a_rendered_conversation_is_not_begun_twice():
    tokenizer = byte_tokenizer("causal")
    text = TextContext(tokenizer, CAUSAL, None, {"image": 0})
    begun, plain = prompt_ids(text, [f"{tokenizer.bos_token}a", "a"])
    assert begun == plain
    assert begun[0] == tokenizer.bos_token_id
