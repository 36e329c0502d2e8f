"""Check that language models of transformers compute what the library's own classes compute, or are refused by name."""

import pytest
import torch
import transformers
from tiny_families import families, tiny_config
from torch.nn import functional as F

import mmzoo
from mmzoo.data.collate import tensors
from mmzoo.errors import DoesNotFit, MmzooError
from mmzoo.interfaces import Example
from mmzoo.testing import Sample
from mmzoo_transformers import probe, unpadded
from mmzoo_transformers.decoder import HFDecoder
from mmzoo_transformers.language import HFCausal, HFEncoder, HFSeq2Seq, LanguageOptions

CLASSES = {"causal": HFCausal, "decoder": HFDecoder, "bidirectional": HFEncoder, "seq2seq": HFSeq2Seq}
PARTS = {"encoder": "cnn", "fusion": "prefix-mlp", "task": "caption"}
# A head before the output layer; caps, scales and multipliers after it; other places of the base model; new kinds of blocks.
HEADS = ["modernbert-decoder", "gemma2", "granite", "cohere", "falcon_h1", "opt", "llama4_text", "minicpm3"]
CONTINUED = ["llama4_text", "falcon_h1", "bamba", "nemotron_h", "zamba2"]  # whose generation does not name embeddings


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def enlarged(module):
    """Give a module large random weights, so that each of them matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    return module.eval()


def language(kind, name, **more):
    return enlarged(CLASSES[kind](LanguageOptions(config={**tiny_config(name), **more})))


def built(name, **more):
    model = mmzoo.build(
        **PARTS, language_model={"use": "hf-causal", "config": {**tiny_config(name), **more}, "train": "full"}, seed=0
    )
    enlarged(model.language_model)
    return model


def batch_of(model, lengths):
    picture = Sample().load("train")[0].image
    examples = [Example(str(i), picture, "", ("x" * length,)) for i, length in enumerate(lengths)]
    return tensors(model.collator(training=True)(examples), "cpu")


def losses_of_class(model, batch):
    """Return the loss of a batch by the library's class, from the same embeddings."""
    text = batch["tasks"]["caption"]
    embeddings = model.language_model.embed(text["ids"])
    sequence = model.fusion.early(model.features(batch["encoders"])["image"], embeddings, text["mask"])
    logits = model.language_model.model(inputs_embeds=sequence.embeddings, attention_mask=sequence.mask).logits
    before = sequence.text.start - 1
    shifted = logits[:, before : before + text["labels"].shape[1]]
    return F.cross_entropy(shifted.flatten(0, 1).float(), text["labels"].flatten())


@pytest.mark.parametrize("name", HEADS)
def test_a_model_is_trained_on_the_logits_of_its_class(name):
    model = built(name)
    batch = batch_of(model, [3, 9])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)["loss"], losses_of_class(model, batch), atol=1e-4, rtol=1e-4)


def test_what_a_class_does_to_its_logits_is_done_by_the_class(monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def shouting(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 3 - 1
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", shouting)
    model = language("causal", "llama")
    ids = torch.randint(4, 200, (1, 5))
    with torch.no_grad():
        own = model.logits(model(model.embed(ids), torch.ones_like(ids)))
        torch.testing.assert_close(own, model.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_a_class_that_reads_embeddings_otherwise_is_refused(monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def scaling(self, input_ids=None, inputs_embeds=None, **kwargs):
        inputs_embeds = self.model.embed_tokens(input_ids) * 2 if inputs_embeds is None else inputs_embeds
        return forward(self, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", scaling)
    with pytest.raises(DoesNotFit, match=r"'a llama': LlamaForCausalLM .* from embeddings than from token ids \(they differ by"):
        built("llama")


@pytest.mark.parametrize(
    ("name", "more", "problem"),
    [
        ("gemma3n_text", {}, "also looks up model.embed_tokens_per_layer.* by token ids"),
        ("gemma4_text", {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 264}, "cannot .*run from embeddings"),
        ("deepseek_v4", {}, "cannot run from embeddings"),
        ("blt", {}, "cannot run from embeddings"),
        ("rwkv", {}, "changes its weights when it runs"),
        ("openai-gpt", {}, "generates text, and this model of 'hf-causal' cannot generate"),
    ],
)
def test_what_cannot_be_right_is_refused_by_check(name, more, problem):
    with pytest.raises(DoesNotFit, match=problem):
        mmzoo.check(**PARTS, language_model={"use": "hf-causal", "config": {**tiny_config(name), **more}})


@pytest.mark.parametrize("name", ["marian", "pegasus"])
def test_embeddings_are_scaled_as_the_encoder_scales_them(name):
    model, ids = language("seq2seq", name, scale_embedding=True), torch.randint(4, 200, (2, 6))
    with torch.no_grad():
        expected = model.model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        states = model(model.embed(ids), torch.ones_like(ids))
    torch.testing.assert_close(states, expected)


@pytest.mark.parametrize("name", ["nemotron", "doge", "llama"])
def test_texts_of_a_training_batch_do_not_see_each_other(name, monkeypatch):
    model = built(name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = batch_of(model, [2, 9, 14])
    loss = model(**batch)["loss"].detach()
    used = []
    monkeypatch.setattr(unpadded, "states", lambda *_: used.append(True))
    torch.testing.assert_close(loss, model(**batch)["loss"].detach(), atol=1e-4, rtol=1e-4)
    assert bool(used) == (name == "llama")  # which passes on what its attention needs
    texts = [batch_of(model, [length]) for length in (2, 9, 14)]
    alone = torch.stack([model(**text)["loss"].detach() for text in texts])
    counts = torch.tensor([(text["tasks"]["caption"]["labels"] >= 0).sum() for text in texts])
    torch.testing.assert_close(loss, (alone * counts).sum() / counts.sum(), atol=1e-3, rtol=1e-3)


def check_generation(model):
    """Check that the words are the likeliest after what was read, and the same beside a longer text."""
    torch.manual_seed(2)
    spread = model.embed(torch.arange(4, 100)[None]).std()
    embeddings = torch.cat([model.embed(torch.randint(4, 200, (2, 3))), torch.randn(2, 3, model.spec.dim) * spread], 1)
    mask = torch.ones(2, 6, dtype=torch.long)
    causal = model.architecture == "causal"
    mask[1, slice(0, 2) if causal else slice(4, 6)] = 0
    options = {"max_new_tokens": 2, "eos_token_id": -1}
    with torch.no_grad():
        both = model.generate(embeddings, mask, **options)
        real = mask[1].bool()
        alone = [
            model.generate(embeddings[i : i + 1, rows], mask[i : i + 1, rows], **options) for i, rows in ((0, ...), (1, real))
        ]
        assert torch.equal(both, torch.cat([row if row.ndim == 2 else row[0] for row in alone]))
        if causal:
            whole = torch.cat([embeddings[:1], model.embed(both[:1])], 1)
            logits = model.logits(model(whole, torch.ones(1, 8, dtype=torch.long)))[:, 5:-1]
        else:
            given = torch.cat([both[:1, :1], both[:1]], 1)  # the first is replaced
            logits = model.logits(model(embeddings[:1], mask[:1], decoder_ids=given))[:, :-1]
    assert torch.equal(logits.argmax(-1), both[:1])


@pytest.mark.parametrize("name", CONTINUED)
def test_families_that_do_not_name_embeddings_continue_them(name):
    model = language("causal", name)
    assert model.spec.generates
    check_generation(model)


@pytest.mark.parametrize("name", ["recurrent_gemma", "trocr", "git"])
def test_a_text_is_continued_as_alone_where_a_family_reads_padding(name):
    model = language("causal", name)
    check_generation(model)
    assert not model._found.keeps_batches


@pytest.mark.parametrize("fusion", ["late-concat", "cross-attention"])
def test_each_prompt_keeps_its_picture_where_lengths_are_continued_apart(fusion):
    parts = {**PARTS, "fusion": fusion, "language_model": {"use": "hf-causal", "config": tiny_config("trocr")}}
    model = mmzoo.build(**parts, seed=0)
    enlarged(model)
    images = [example.image for example in Sample().load("train")[:3]]
    prompts = ["a", "a long prompt", "b"]
    if fusion == "cross-attention":  # whose hooks count positions, too
        with pytest.raises(DoesNotFit, match="batch_size=1"):
            model.generate(images, prompts, max_new_tokens=3)
    together = model.generate(images, prompts, max_new_tokens=3, batch_size=1 if fusion == "cross-attention" else 8)
    alone = [model.generate(image, prompt, max_new_tokens=3) for image, prompt in zip(images, prompts, strict=True)]
    assert together == alone


@pytest.mark.parametrize("name", ["fnet", "mobilebert", "bert"])
def test_a_text_has_the_states_that_it_has_alone(name):
    model, ids = language("bidirectional", name), torch.randint(4, 200, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    with torch.no_grad():
        embeddings = model.embed(ids)
        states, alone = model(embeddings, mask), model(embeddings[1:, :3], mask[1:, :3])
        whole = model.model(input_ids=ids[:1], attention_mask=mask[:1]).last_hidden_state
    torch.testing.assert_close(states[1:, :3], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[:1], whole, atol=1e-4, rtol=1e-4)


def test_embeddings_are_left_as_they_are():
    model = language("causal", "ctrl")
    embeddings = torch.randn(1, 4, model.spec.dim)
    given = embeddings.clone()
    with torch.no_grad():
        first = model(given, torch.ones(1, 4, dtype=torch.long))
        assert torch.equal(given, embeddings)
        assert torch.equal(model(given, torch.ones(1, 4, dtype=torch.long)), first)


def test_a_probe_changes_no_weight_of_a_seed():
    probe._found.clear()
    first = mmzoo.build(**PARTS, language_model={"use": "hf-causal", "config": tiny_config("llama")}, seed=0)
    again = mmzoo.build(**PARTS, language_model={"use": "hf-causal", "config": tiny_config("llama")}, seed=0)  # not probed again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def expected_of_class(model, ids, mask):
    """Return what the library's class computes from ids."""
    try:
        return model.library_output(mask, input_ids=ids)
    except Exception:  # from embeddings only
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in CLASSES for name in families("bidirectional" if kind == "decoder" else kind)]
)
def test_every_type_is_as_its_class_or_refused_by_check(kind, name):
    options = LanguageOptions(config=tiny_config(name))
    try:
        with torch.device("meta"):
            seen = CLASSES[kind](options)
    except MmzooError:
        return  # by name
    model = enlarged(CLASSES[kind](options))
    assert model.spec == seen.spec
    ids = torch.randint(4, 130, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    with torch.no_grad():
        own = model.own_output(model.embed(ids), mask)
        expected = expected_of_class(model, ids[:1], mask[:1])
        alone = model.own_output(model.embed(ids[1:, :3]), mask[1:, :3])
    if expected is not None:
        torch.testing.assert_close(own[:1], expected.to(own), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(own[1:, : alone.shape[1]], alone, atol=1e-3, rtol=1e-3)
    if model.spec.generates:
        check_generation(model)
