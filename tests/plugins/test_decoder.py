"""Test decoders: `bert-decoder` for BERT and its relatives, and the beams of `lstm`."""

from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from uncached import without_cache

import mmzoo
from mmzoo.errors import DoesNotFit, SourceError
from mmzoo.testing import Sample
from mmzoo_scratch.lstm import LSTM
from mmzoo_transformers.decoder import HFDecoder
from mmzoo_transformers.language import HFCausal, HFEncoder, LanguageOptions

TEXT = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    **{name: {} for name in ("bert", "ernie", "megatron-bert", "roformer", "big_bird")},
    **{name: {"pad_token_id": 1} for name in ("roberta", "camembert", "xlm-roberta", "roberta-prelayernorm", "data2vec-text")},
    "electra": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
}


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def decoder(name):
    """Build a decoder with large random weights, so that its words depend on all words before."""
    torch.manual_seed(0)
    model = HFDecoder(LanguageOptions(config={"model_type": name, **TEXT, **FAMILIES[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:  # RoFormer's table of sines must stay
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_it_reads_from_left_to_right_and_its_states_make_its_logits(name):
    model, ids = decoder(name), torch.randint(4, 260, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        states = model(model.embed(ids), mask)
        full = model.model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(model.logits(states), full, atol=1e-5, rtol=0)
        other = torch.cat([ids[:, :5], ids[:, 5:].flip(0)], 1)
        assert torch.equal(model(model.embed(other), mask)[:, :5], states[:, :5])
        wide = torch.cat([model.embed(ids), model.embed(ids[:, :3])], 1)
        padded = model(wide, torch.cat([mask, torch.zeros_like(mask[:, :3])], 1))
    torch.testing.assert_close(padded[:, :9], states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_writes_the_same_without_a_cache_and_beside_padding(name):
    model, ids = decoder(name), torch.randint(4, 260, (2, 9))
    embeddings, mask = model.embed(ids), torch.ones_like(ids)
    mask[1, :3] = 0
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        options["max_new_tokens"] = 6
        out = model.generate(embeddings, mask, **options)
        with without_cache():
            assert torch.equal(model.generate(embeddings, mask, **options), out)
        half = len(out) // 2
        alone = [model.generate(embeddings[:1], mask[:1], **options), model.generate(embeddings[1:, 3:], mask[1:, 3:], **options)]
        assert [row.tolist() for row in alone] == [out[:half].tolist(), out[half:].tolist()]
    greedy = model.generate(embeddings, mask, max_new_tokens=6, eos_token_id=-1)
    assert len(set(greedy.flatten().tolist())) > 2
    with torch.no_grad():  # each token that it writes is its likeliest when it reads the text
        states = model(torch.cat([embeddings[:1], model.embed(greedy[:1])], 1), torch.ones(1, 15, dtype=torch.long))
    assert torch.equal(model.logits(states)[:, 8:-1].argmax(-1), greedy[:1])


def test_an_lstms_state_follows_its_beams():
    """A private hook of transformers reorders it; without, the scores of beams are not those of their texts."""
    torch.manual_seed(0)
    model = LSTM(LSTM.Options(dim=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.0)
    ids = torch.randint(4, model.spec.vocab_size, (2, 3))
    embeddings, mask = model.embed(ids), torch.ones_like(ids)
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 5, "length_penalty": 0.0, "eos_token_id": -1}
    out = model.generate(embeddings, mask, return_dict_in_generate=True, output_scores=True, **options)
    with torch.no_grad():
        states = model(torch.cat([embeddings.repeat_interleave(4, 0), model.embed(out.sequences)], 1), None)
        tokens = model.logits(states)[:, 2:-1].log_softmax(-1).gather(2, out.sequences[..., None])
    torch.testing.assert_close(out.sequences_scores, tokens.sum((1, 2)), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Make a folder like BERT's: weights with its two pretraining heads, and a WordPiece tokenizer without start and end."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.BertForPreTraining(transformers.BertConfig(**TEXT)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "square", "##s"]
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def test_all_weights_come_from_a_masked_language_model(checkpoint):
    model = mmzoo.build(encoder="cnn", fusion="late-concat", language_model=f"bert-decoder:{checkpoint}", task="caption")
    stored, own = load_file(checkpoint / "model.safetensors"), model.language_model.model.state_dict()
    for name, value in own.items():
        if not name.startswith("cls.predictions.decoder."):  # tied to the embeddings and to the bias beside it
            assert torch.equal(value, stored[name]), name
    assert own["cls.predictions.decoder.weight"] is not None
    output = model.language_model.output_layer()
    assert torch.equal(output.weight, stored["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(output.bias, stored["cls.predictions.bias"])


def test_a_checkpoint_without_the_prediction_head_is_refused(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = {k: v for k, v in load_file(checkpoint / "model.safetensors").items() if not k.startswith("cls.predictions.transform")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 4 weights of BertLMHeadModel.*cls\.predictions\.transform"):
        mmzoo.build(encoder="cnn", fusion="late-sum", language_model=f"bert-decoder:{tmp_path}", task="caption")


def test_a_text_stands_between_cls_and_sep(checkpoint):
    model = mmzoo.build(encoder="cnn", fusion="late-sum", language_model=f"bert-decoder:{checkpoint}", task="caption", seed=0)
    [example] = Sample(1).load("train")
    batch = model.collator(training=True)([replace(example, text="", targets=("a red square",))])["tasks"]["caption"]
    assert batch["ids"].tolist() == [[2, 5, 6, 9, 3]]
    assert batch["labels"].tolist() == [[-100, 5, 6, 9, 3]]
    # A model that says "[SEP]" first says nothing.
    with torch.no_grad():
        model.language_model.output_layer().bias[3] = 1e4
    assert model.generate(image=example.image, prompt="a") == ""


@pytest.mark.parametrize(
    ("cls", "name"), [(HFDecoder, "gpt2"), (HFDecoder, "t5"), (HFDecoder, "distilbert"), (HFDecoder, "roc_bert")]
)
def test_what_cannot_be_a_decoder_is_refused(cls, name):
    with pytest.raises(DoesNotFit, match=f"is a {name} model, not a causal language model"):
        cls(LanguageOptions(config={"model_type": name}))


def test_other_entries_name_the_decoder(checkpoint):
    with pytest.raises(DoesNotFit, match=rf"write 'hf-encoder:{checkpoint}', or 'bert-decoder:{checkpoint}' to have it write"):
        HFCausal(LanguageOptions(variant=str(checkpoint)))
    for cls in (HFCausal, HFEncoder):
        with pytest.raises(DoesNotFit):
            cls(LanguageOptions(config={"model_type": "bert", "is_decoder": True, **TEXT}))


def test_roberta_counts_its_positions_from_behind_the_padding():
    assert decoder("roberta").spec.max_length == 62
    assert decoder("bert").spec.max_length == 64
