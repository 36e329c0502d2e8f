"""Test the score of a generated text: the product of its tokens' probabilities, alone and in a batch, where asked for."""

import json

import pytest
import torch
import transformers
from PIL import Image
from transformers import StoppingCriteria
from typer.testing import CliRunner

import mmzoo
from mmzoo.cli import app
from mmzoo.data.collate import tensors
from mmzoo.errors import BadRecipe
from mmzoo.interfaces import Example
from mmzoo_transformers.bytes import byte_tokenizer

PICTURES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue", "black")]
TEXTS = ["what", "a much longer question", "", "and this?"]
EXAMPLES = [Example(f"#{i}", image, text) for i, (image, text) in enumerate(zip(PICTURES, TEXTS, strict=True))]
TOKENS = 7


def folder_of(folder, kind, *, pad=0, start=None, ends=(2, 3)):
    """Save a small language model with several end ids, whose tokenizer has one."""
    torch.manual_seed(1)
    if kind == "causal":
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"vocab_size": 264, "max_position_embeddings": 256, "initializer_range": 0.6}
        ids = {"pad_token_id": pad, "bos_token_id": 1, "eos_token_id": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, **ids))
    else:
        small = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_layers": 2}
        small |= {"decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 264, "init_std": 1.0}
        ids = {"pad_token_id": pad, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
        config = transformers.BartConfig(**small, **ids, decoder_start_token_id=start)
        model = transformers.BartForConditionalGeneration(config)
    model.generation_config.eos_token_id = list(ends)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer("causal" if kind == "causal" else "seq2seq")
    if pad == 2:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


def model_on(folder, kind, fusion="projector"):
    task = {"use": "vqa", "template": "{text} ", "max_new_tokens": TOKENS}
    use = f"{'hf-causal' if kind == 'causal' else 'hf-seq2seq'}:{folder}"
    return mmzoo.build(encoder="cnn", fusion=fusion, language_model=use, task=task, seed=2)


@pytest.fixture(scope="module", params=["causal", "causal, padded with the end", "late", "seq2seq, which starts with the end"])
def model(request, tmp_path_factory):
    kind = "seq2seq" if "seq2seq" in request.param else "causal"
    options = {"pad": 2 if "padded" in request.param else 0, "start": 2 if kind == "seq2seq" else None}
    folder = folder_of(tmp_path_factory.mktemp("base"), kind, **options)
    fusion = "late-concat" if request.param == "late" else "projector"
    written = [by_hand(model_on(folder, kind, fusion), example)[0] for example in EXAMPLES]
    ends = {row[i] for i, row in zip((1, 3, 5), written, strict=False)}  # so that the texts end at different tokens
    folder_of(folder, kind, **options, ends=sorted({2, 3, *ends}))
    return model_on(folder, kind, fusion)


def by_hand(model, example, **options):
    """Return the tokens that an example generates alone, and the product of their probabilities, each from a pass of its own."""
    batch = tensors(model.collator(training=False)([example]), model.device)
    own = batch["tasks"]["vqa"]
    with torch.no_grad():
        features = model.features(batch["encoders"])
        out = model.generate_ids(features, own["ids"], own["mask"], max_new_tokens=TOKENS, **options)[0]
        probability = 1.0
        for i, token in enumerate(out):
            if model.language_model.architecture == "causal":
                ids = torch.cat([own["ids"], out[None, :i]], 1)
                at, given = ids.shape[1], {"ids": torch.cat([ids, token[None, None]], 1)}
                given["mask"] = torch.ones_like(given["ids"])
            else:
                start = torch.tensor([[model.language_model.start_id]])
                at, given = i, {**own, "decoder_ids": torch.cat([start, out[None, :i]], 1)}
            logits = model.outputs(features, given).logits(torch.tensor([0]), torch.tensor([at]))[0]
            probability *= logits.double().softmax(-1)[token].item()
    return out.tolist(), probability


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_score_is_the_product_of_the_tokens_probabilities_alone_and_in_a_batch(model, options):
    assert len(model.language_model.end_ids) > 1
    alone = [by_hand(model, example, **options) for example in EXAMPLES]
    lengths = {len(out) for out, _ in alone}
    assert len(lengths) > 1, "or no row would be padded"
    expected = [pytest.approx(probability, rel=1e-3) for _, probability in alone]
    for size in (1, 2, len(EXAMPLES)):
        predictions = model.predict_examples(EXAMPLES, batch_size=size, scores=True, **options)
        assert [p.score for p in predictions] == expected
    assert [p.label for p in predictions] == [p.label for p in model.predict_examples(EXAMPLES, **options)]


def test_a_text_without_an_end_counts_none(tmp_path):
    model = model_on(folder_of(tmp_path, "causal"), "causal")
    out, probability = by_hand(model, EXAMPLES[1])
    assert len(out) == TOKENS
    assert not set(out) & {2, 3}
    assert model.predict_examples(EXAMPLES, scores=True)[1].score == pytest.approx(probability, rel=1e-3)


class AtSecond(StoppingCriteria):
    """Stop a row of which the second token is even."""

    def __init__(self, skipped):
        self.skipped = skipped

    def __call__(self, input_ids, scores, **_):
        text = input_ids[:, self.skipped :]
        if text.shape[1] < 2:
            return torch.zeros(len(text), dtype=torch.bool)
        return text[:, 1] % 2 == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_what_follows_a_stop_in_a_batch_is_not_counted(model, beams):
    criteria = [AtSecond(0 if model.language_model.architecture == "causal" else 1)]
    options = {"stopping_criteria": criteria, "num_beams": beams}
    alone = [by_hand(model, example, **options) for example in EXAMPLES]
    assert len({len(out) for out, _ in alone}) > 1
    together = model.predict_examples(EXAMPLES, scores=True, **options)
    assert [p.score for p in together] == [pytest.approx(probability, rel=1e-3) for _, probability in alone]


def test_stop_strings_of_the_library_are_seen_too(model):
    written = "".join(p.label for p in model.predict_examples(EXAMPLES, eos_token_id=[2]))
    letter = next(letter for letter in written if letter.isascii() and letter.isprintable())
    options = {"stop_strings": letter, "tokenizer": model.language_model.tokenizer}
    alone = [by_hand(model, example, **options)[1] for example in EXAMPLES]
    together = model.predict_examples(EXAMPLES, scores=True, **options)
    assert [p.score for p in together] == [pytest.approx(probability, rel=1e-3) for probability in alone]


def test_texts_have_a_score_only_where_it_is_asked_for(model, monkeypatch):
    passes = []
    monkeypatch.setattr(type(model.task), "token_losses", lambda *_: passes.append(1))
    assert [p.score for p in model.predict_examples(EXAMPLES)] == [None] * len(EXAMPLES)
    assert model.predict(image=PICTURES[0], text="what").score is None
    assert not passes, "and nothing is computed for it"


def test_the_command_has_scores_where_asked(tmp_path):
    PICTURES[0].save(tmp_path / "red.png")
    model_on(folder_of(tmp_path / "base", "causal"), "causal").save(tmp_path / "model")
    call = ["predict", str(tmp_path / "model"), str(tmp_path / "red.png"), "--text", "what", "--json"]
    without, with_scores = (CliRunner().invoke(app, call + more) for more in ([], ["--scores"]))
    assert json.loads(without.stdout)[0]["score"] is None
    assert 0 < json.loads(with_scores.stdout)[0]["score"] <= 1


def test_classes_have_scores_for_free():
    task = {"use": "classify", "labels": ["a", "b"]}
    parts = {"encoder": "cnn", "fusion": "late-product", "language_model": "lstm", "task": task}
    model = mmzoo.build(**parts, seed=0)
    first, second = (model.predict(image=PICTURES[0], text="what", scores=scores) for scores in (False, True))
    assert first.score == second.score == max(first.scores.values())


def test_a_wrong_option_is_still_refused(model):
    with pytest.raises(BadRecipe, match="num_return_sequences"):
        model.predict_examples(EXAMPLES, scores=True, num_return_sequences=2)


def test_stop_strings_that_the_library_cannot_use_are_named(monkeypatch):
    def refuse(*_):
        raise ValueError("substring not found")  # as for tokenizers of whole words

    monkeypatch.setattr("mmzoo_tasks.generative.StopStringCriteria", refuse)
    model = mmzoo.build(encoder="cnn", fusion="projector", task="caption", language_model="gpt-mini", seed=0)
    with pytest.raises(BadRecipe, match=r"stop_strings: .*substring not found\); use model.generate"):
        model.predict(PICTURES[0], "a", scores=True, stop_strings=["re"])
