"""The encoders and language models of transformers, timm and OpenCLIP, on tiny random weights and without a network."""

import errno
import hashlib
import json
import pickle
import re
import shutil
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from uncached import without_cache

import mmzoo
from mmzoo.backbones import hub_errors, transformers_models, weights
from mmzoo.backbones import repository as source
from mmzoo.errors import BadRecipe, DoesNotFit, SourceError, UnknownName
from mmzoo.interfaces import FusedInput
from mmzoo.models.sequence import pad_to_side, text_states
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.manager import plugin_manager
from mmzoo_open_clip.encoder import OpenCLIP, OpenCLIPOptions
from mmzoo_timm.encoder import Timm, TimmOptions
from mmzoo_transformers.bytes import SIZE, byte_tokenizer
from mmzoo_transformers.language import HFCausal, HFEncoder, HFSeq2Seq, LanguageOptions
from mmzoo_transformers.vision import HFVision, PlainTransform, VisionOptions

VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT_32 = {**VIT, "image_size": 32, "patch_size": 8}
TEXT = {**VIT, "vocab_size": 264, "max_position_embeddings": 64}
GPT2 = {"model_type": "gpt2", "vocab_size": 264, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
BART = {
    "model_type": "bart",
    **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    "vocab_size": 264,
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"model_type": "t5", "vocab_size": 264, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}

VISION = {
    "clip": {"model_type": "clip_vision_model", **VIT_32, "projection_dim": 24},
    "whole clip": {"model_type": "clip", "vision_config": VIT_32, "projection_dim": 20},
    "siglip": {"model_type": "siglip_vision_model", **VIT_32},
    "vit": {"model_type": "vit", **VIT_32},
    "deit": {"model_type": "deit", **VIT_32},
    "dinov2": {"model_type": "dinov2", **VIT_32},
    "registers": {"model_type": "dinov2_with_registers", **VIT_32},
    "swin": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
        "image_size": 32,
        "patch_size": 4,
    },
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "image_size": 64},
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
        "image_size": 64,
    },
}
CAUSAL = {
    "gpt2": GPT2,
    "opt": {
        "model_type": "opt",
        "vocab_size": 264,
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    "llama": {"model_type": "llama", **TEXT},
    "qwen3": {"model_type": "qwen3", **TEXT, "head_dim": 16, "num_key_value_heads": 1},
    "gpt_neox": {"model_type": "gpt_neox", **TEXT},
    "mistral": {"model_type": "mistral", **TEXT, "num_key_value_heads": 1, "sliding_window": 6},
    "bloom": {"model_type": "bloom", "vocab_size": 264, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"model_type": "mamba", "vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "gemma2": {"model_type": "gemma2", **TEXT, "head_dim": 16, "num_key_value_heads": 1},
    "cohere": {"model_type": "cohere", **TEXT},
    "granite": {"model_type": "granite", **TEXT, "logits_scaling": 3.0},
}
ENCODERS = {
    "bert": {"model_type": "bert", **TEXT},
    "roberta": {"model_type": "roberta", **TEXT, "pad_token_id": 1},
    "distilbert": {"model_type": "distilbert", "vocab_size": 264, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "modernbert": {"model_type": "modernbert", **TEXT, "pad_token_id": 0, "local_attention": 6},
}
SEQ2SEQ = {
    "t5": T5,
    "untied t5": {**T5, "tie_word_embeddings": False},
    "bart": BART,
    "pegasus": {**BART, "model_type": "pegasus"},
}

ENTRIES = [
    entry
    for kind in ("encoder", "language_model")
    for entry in plugin_manager().registry.entries(kind)
    if entry.target.split(".")[0] in ("mmzoo_transformers", "mmzoo_timm", "mmzoo_open_clip") and entry.name != "gpt-mini"
]


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars, and no word of default ids beyond a tiny vocabulary."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    yield
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_progress_bar()


def picture(width=70, height=50):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def on_meta(cls, options):
    with torch.device("meta"):
        return cls(options)


def causal(config=None, **options):
    return HFCausal(LanguageOptions(config=config, **options)).eval()


def ids(rows=2, length=9):
    return torch.randint(4, 260, (rows, length))


def save(model, folder, kind="causal"):
    model.save_pretrained(folder)
    byte_tokenizer(kind).save_pretrained(folder)
    return folder


def contents(folder):
    return {p.name: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """A folder as transformers saves it, of a tiny GPT-2 and a tokenizer."""
    config = transformers.GPT2Config(**{key: value for key, value in GPT2.items() if key != "model_type"})
    return save(transformers.GPT2LMHeadModel(config), tmp_path / "gpt2")


# Every entry in its tiny form


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_meta_and_real_builds_agree(entry):
    found = resolve(entry.kind, PartConfig(use=entry.name, **entry.tiny))
    meta, real = on_meta(found.cls, found.options), found.cls(found.options)
    assert meta.spec == real.spec
    assert all(p.is_meta for p in meta.parameters())
    assert not any(t.is_meta for t in (*real.parameters(), *real.buffers()))
    assert [*meta.state_dict()] == [*real.state_dict()]
    assert meta.default_train == "frozen"
    assert meta.pretrainable
    assert real.lock() == {}
    assert len(real.blocks()) > 0


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.kind == "encoder"], ids=lambda entry: entry.name)
def test_tiny_encoders_keep_their_spec(entry):
    found = resolve(entry.kind, PartConfig(use=entry.name, **entry.tiny))
    check_encoder(found.cls(found.options), on_meta(found.cls, found.options))


def check_encoder(encoder, meta=None):
    transform = pickle.loads(pickle.dumps((meta or encoder).transform))  # one made on the meta device works too
    pixels = torch.stack([transform(picture()), transform(picture(31, 64)), transform(picture().convert("L"))])
    assert pixels.dtype == torch.float32
    assert pixels.ndim == 4
    with torch.no_grad():
        features = encoder.eval()(pixels)
    assert features.tokens.shape == (3, encoder.spec.tokens, encoder.spec.dim)
    assert features.pooled.shape == (3, encoder.spec.pooled_dim)
    return pixels, features


# Vision models of transformers


@pytest.mark.parametrize("name", VISION)
def test_vision_models_keep_their_spec(name):
    check_encoder(HFVision(VisionOptions(config=VISION[name])))


@pytest.mark.parametrize(
    ("name", "prefix"), [("clip", 1), ("deit", 2), ("dinov2", 1), ("registers", 5), ("siglip", 0), ("swin", 0)]
)
def test_class_and_register_tokens_are_left_out(name, prefix):
    without = HFVision(VisionOptions(config=VISION[name]))
    kept = HFVision(VisionOptions(config=VISION[name], keep_class_token=True))
    assert kept.spec.tokens == without.spec.tokens + prefix == 16 + prefix
    kept.load_state_dict(without.state_dict())
    _, features = check_encoder(without)
    _, whole = check_encoder(kept)
    assert torch.equal(whole.tokens[:, prefix:], features.tokens)


def test_clip_gives_the_projected_embedding_and_any_layer(tmp_path):
    text = {**VIT, "num_hidden_layers": 1, "vocab_size": 99}
    config = transformers.CLIPConfig(text_config=text, vision_config=VIT_32, projection_dim=20)
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    last, earlier = (on_meta(HFVision, VisionOptions(variant=str(tmp_path), layer=layer)) for layer in (-1, -2))
    for encoder in (last, earlier):
        encoder.load_pretrained()
    pixels, features = check_encoder(last)
    assert torch.equal(pixels[0], processor(picture(), return_tensors="pt")["pixel_values"][0])
    with torch.no_grad():
        assert torch.equal(features.pooled, whole.get_image_features(pixel_values=pixels).pooler_output)
        states = whole.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert torch.equal(check_encoder(earlier)[1].tokens, states[-2][:, 1:])
    assert set(last.lock()["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    with pytest.raises(DoesNotFit, match="layer"):
        HFVision(VisionOptions(variant=str(tmp_path), layer=-9))


def test_tokens_are_counted_at_the_processors_size(tmp_path):
    """DINOv2's configuration says 518 pixels, its processor crops to 224."""
    transformers.Dinov2Model(transformers.Dinov2Config(**{**VIT_32, "image_size": 40})).save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    encoder = on_meta(HFVision, VisionOptions(variant=str(tmp_path)))
    encoder.load_pretrained()
    assert encoder.spec.tokens == 9
    check_encoder(encoder)


def test_a_classifiers_checkpoint_needs_no_pooler(tmp_path):
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT_32)).eval()
    model.save_pretrained(tmp_path)
    encoder = on_meta(HFVision, VisionOptions(variant=str(tmp_path)))
    encoder.load_pretrained()
    pixels, features = check_encoder(encoder)
    with torch.no_grad():
        states = model.vit(pixel_values=pixels).last_hidden_state
    assert torch.equal(features.tokens, states[:, 1:])
    assert torch.equal(features.pooled, states[:, 0])


def test_the_plain_transform_cuts_out_the_centre():
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (0, 0, 80, 100))
    out = PlainTransform(32, 32)(image)
    assert out.shape == (3, 32, 32)
    assert out.min() > 0.99
    assert PlainTransform(20, 40)(picture()).shape == (3, 20, 40)


def test_a_language_model_is_no_encoder():
    with pytest.raises(DoesNotFit, match="no images"):
        HFVision(VisionOptions(config=GPT2))


# Causal language models


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_logits_are_the_full_models(name):
    model, row = causal(CAUSAL[name]), ids()
    with torch.no_grad():
        hidden = model(model.embed(row), torch.ones_like(row))
        full = model.model(input_ids=row).logits
    assert hidden.shape == (2, 9, model.spec.dim)
    assert full.shape[-1] == model.spec.vocab_size
    torch.testing.assert_close(model.logits(hidden), full, atol=1e-6, rtol=0)


def padded_in_three_places(model, embeddings):
    """States of the real positions, with padding on the left, on the right, and in the middle, arranged as models take it."""
    junk = torch.randn(2, 3, embeddings.shape[-1])
    for at in (0, embeddings.shape[1], 4):
        mask = torch.ones(2, embeddings.shape[1] + 3, dtype=torch.long)
        mask[:, at : at + 3] = 0
        wide = torch.cat([embeddings[:, :at], junk, embeddings[:, at:]], 1)
        sequence = FusedInput(wide, mask, slice(0, wide.shape[1]))
        right, _ = pad_to_side(sequence, left=False)
        states = text_states(model(right.embeddings, right.mask), right.text)
        yield pad_to_side(sequence, left=True)[0], states[mask.bool()].view_as(embeddings)


@pytest.mark.parametrize("name", [*CAUSAL, *ENCODERS, "t5", "bart"])
def test_padding_anywhere_changes_no_state(name):
    cls = HFCausal if name in CAUSAL else HFEncoder if name in ENCODERS else HFSeq2Seq
    model = cls(LanguageOptions(config={**CAUSAL, **ENCODERS, **SEQ2SEQ}[name])).eval()
    embeddings = model.embed(ids())
    with torch.no_grad():
        alone = model(embeddings, torch.ones(2, 9, dtype=torch.long))
        for _, states in padded_in_three_places(model, embeddings):
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen3", "gpt_neox"])
def test_generation_needs_no_cache_and_sees_no_padding(name):
    model, row = causal(CAUSAL[name]), ids()
    embeddings, mask = model.embed(row), torch.ones_like(row)
    out = model.generate(embeddings, mask, max_new_tokens=6)
    assert out.shape == (2, 6) or (out == 2).any()
    with without_cache():
        assert torch.equal(out, model.generate(embeddings, mask, max_new_tokens=6))
    assert torch.equal(out[:1], model.generate(embeddings[:1], mask[:1], max_new_tokens=6))
    assert model.generate(embeddings, mask, max_new_tokens=3, num_beams=2, num_return_sequences=2).shape[0] == 4
    for left, _ in padded_in_three_places(model, embeddings):
        assert torch.equal(out, model.generate(left.embeddings, left.mask, max_new_tokens=6))


def test_generation_is_greedy_whatever_the_checkpoint_says(folder):
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.9, "eos_token_id": [2, 77]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = on_meta(HFCausal, LanguageOptions(variant=str(folder)))
    model.load_pretrained()
    row = ids(1)
    embeddings, mask = model.embed(row), torch.ones_like(row)
    transformers.logging.set_verbosity_warning()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model.eval().generate(embeddings, mask, max_new_tokens=20)
    with torch.no_grad():
        for token in out[0].tolist():
            assert token == model.model(input_ids=row).logits[0, -1].argmax()
            row = torch.cat([row, torch.tensor([[token]])], 1)
    assert out.shape[1] == 20 or out[0, -1] in (2, 77)
    assert model.generate(embeddings, mask, do_sample=True, max_new_tokens=3, num_return_sequences=3).shape == (3, 3)
    assert model.generate(embeddings, mask).shape[1] <= model.spec.max_length - 9


def test_gradients_reach_embeddings_and_blocks_through_a_frozen_model():
    model = causal(GPT2).requires_grad_(False)
    embeddings = model.embed(ids()).requires_grad_()
    model.logits(model(embeddings, torch.ones(2, 9, dtype=torch.long))).sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert [type(block).__name__ for block in model.blocks()] == ["GPT2Block"] * 2


# Encoders and encoder-decoders


@pytest.mark.parametrize("name", ENCODERS)
def test_bidirectional_states_are_the_full_models(name):
    model, row = HFEncoder(LanguageOptions(config=ENCODERS[name])).eval(), ids()
    mask = torch.ones_like(row)
    with torch.no_grad():
        hidden = model(model.embed(row), mask)
        full = model.model(input_ids=row, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden, full, atol=1e-6, rtol=0)
    assert torch.equal(model.pool(hidden, mask), hidden[:, 0])
    assert model.output_layer() is None
    assert not model.spec.generates
    assert not [key for key in model.state_dict() if "pooler" in key]


def test_roberta_counts_its_positions_from_two():
    assert HFEncoder(LanguageOptions(config=ENCODERS["roberta"])).spec.max_length == 62
    assert HFEncoder(LanguageOptions(config=ENCODERS["bert"])).spec.max_length == 64


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_decoder_states_and_generation_are_the_full_models(name):
    model, row, out = HFSeq2Seq(LanguageOptions(config=SEQ2SEQ[name])).eval(), ids(), ids(2, 5)
    mask, start = torch.ones_like(row), SEQ2SEQ[name].get("decoder_start_token_id", 0)
    out[:, 0] = 99  # a task need not know the family's start token
    embeddings = model.embed(row)
    with torch.no_grad():
        assert model(embeddings, mask).shape == (2, 9, 32)
        hidden = model(embeddings, mask, out)
        shifted = torch.cat([torch.full((2, 1), start), out[:, 1:]], 1)
        full = model.model(input_ids=row, attention_mask=mask, decoder_input_ids=shifted).logits
    torch.testing.assert_close(model.output_layer()(hidden), full, atol=1e-6, rtol=0)
    new = model.generate(embeddings, mask, max_new_tokens=6)
    assert torch.equal(new, model.generate(embeddings, mask, max_new_tokens=6, use_cache=False))
    ends = {"eos_token_id": 2, "pad_token_id": 0, "forced_eos_token_id": None}
    ref = model.model.generate(
        input_ids=row, attention_mask=mask, max_new_tokens=6, decoder_start_token_id=start, do_sample=False, **ends
    )
    assert torch.equal(new, ref[:, 1:])
    assert len(model.blocks()) == 4


def test_t5_has_no_longest_input():
    assert HFSeq2Seq(LanguageOptions(config=T5)).spec.max_length is None
    assert HFSeq2Seq(LanguageOptions(config=BART)).spec.max_length == 64


def test_a_family_that_generates_from_token_ids_alone_is_refused_where_it_must_write():
    xlnet = {"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 264}
    parts = {"encoder": "cnn", "fusion": "prefix-mlp", "language_model": {"use": "hf-causal", "config": xlnet}}
    with pytest.raises(DoesNotFit, match="cannot generate from embeddings"):
        mmzoo.build(**parts, task="caption")
    assert mmzoo.build(**parts, task={"use": "classify", "labels": ["a", "b"]}).predict(Image.new("RGB", (32, 32)), "x").label


@pytest.mark.parametrize(
    ("cls", "config"), [(HFCausal, T5), (HFCausal, ENCODERS["bert"]), (HFEncoder, GPT2), (HFEncoder, T5), (HFSeq2Seq, GPT2)]
)
def test_a_model_of_another_kind_is_refused(cls, config):
    with pytest.raises(DoesNotFit, match=r"not a (causal|bidirectional|seq2seq) language model"):
        cls(LanguageOptions(config=config))


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(DoesNotFit, match="16 channels"):
        HFEncoder(LanguageOptions(config={"model_type": "electra", **TEXT, "embedding_size": 16}))


# The byte tokenizer


@pytest.mark.parametrize(("kind", "first", "last"), [("causal", None, None), ("bidirectional", 1, 2), ("seq2seq", None, 2)])
def test_bytes_give_back_any_text(kind, first, last):
    tokenizer, text = byte_tokenizer(kind), "héllo  你好\n\t🤗 it's ."
    row = tokenizer(text)["input_ids"]
    length = len(text.encode())
    assert len(row) == length + (first is not None) + (last is not None)
    assert first is None or row[0] == first
    assert last is None or row[-1] == last
    assert tokenizer.decode(row, skip_special_tokens=True) == text
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == length
    assert len(tokenizer) == SIZE
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert pickle.loads(pickle.dumps(tokenizer))(text)["input_ids"] == row


def test_a_tokenizer_must_fit_the_embeddings():
    with pytest.raises(DoesNotFit, match="261 tokens"):
        _ = causal({**GPT2, "vocab_size": 100}).tokenizer


# Folders


def test_a_folder_loads_as_transformers_loads_it_and_stays_as_it_is(folder):
    before = contents(folder)
    model = on_meta(HFCausal, LanguageOptions(variant=str(folder)))
    model.load_pretrained()
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    row = ids()
    with torch.no_grad():
        hidden = model.eval()(model.embed(row), torch.ones_like(row))
        assert torch.equal(model.logits(hidden), reference(input_ids=row).logits)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert model.tokenizer("a b")["input_ids"] == byte_tokenizer()("a b")["input_ids"]
    lock = model.lock()
    assert (lock["source"], lock["id"], lock["commit"]) == ("folder", str(folder), None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(lock["files"])
    assert all(before[name][1] == digest for name, digest in lock["files"].items())
    assert contents(folder) == before
    assert causal(variant=str(folder)).lock() == {}  # random weights came from nowhere


def test_a_loaded_model_does_not_hang_on_its_file(folder):
    model = on_meta(HFCausal, LanguageOptions(variant=str(folder)))
    model.load_pretrained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\0" * (file.stat().st_size // 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shards_half_precision_and_one_name_of_tied_weights_load(folder):
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    reference.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:  # as the Hub's converter did with OPT
        state = load_file(shard)
        if "transformer.wte.weight" in state:
            state["lm_head.weight"] = state.pop("transformer.wte.weight")
            save_file(state, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("transformer.wte.weight", "lm_head.weight"))
    model = on_meta(HFCausal, LanguageOptions(variant=str(folder)))
    model.load_pretrained()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.embed(torch.tensor([7])), reference.lm_head.weight[7:8].float())
    assert {*(shard.name for shard in shards), index.name} <= set(model.lock()["files"])


def test_another_tokenizer_is_locked_too(folder, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = on_meta(HFCausal, LanguageOptions(variant=str(folder), tokenizer=str(tmp_path / "tokenizer")))
    model.load_pretrained()
    assert f"{tmp_path / 'tokenizer'}:tokenizer.json" in model.lock()["files"]
    assert "tokenizer.json" not in model.lock()["files"]


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert causal(variant=str(folder)).tokenizer.pad_token_id == 2


# What goes wrong


def break_weights(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def change_config(**changes):
    def change(folder):
        data = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, "no model.safetensors"),
        (truncate_weights, "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (change_config(model_type=None), "no model_type"),
        (change_config(model_type="unheard-of"), "does not have"),
        (change_config(model_type="own", auto_map={"AutoConfig": "own.Config"}), "never runs such code"),
        (change_config(quantization_config={"quant_method": "gptq"}), "quantised"),
        (change_config(n_layer=3), r"lacks 12 weights .*h\.2\."),
        (change_config(n_embd=16), "other shapes"),
        (change_config(n_layer="many"), "n_layer"),
    ],
)
def test_a_damaged_folder_is_explained(folder, damage, message):
    damage(folder)

    def attempt():
        on_meta(HFCausal, LanguageOptions(variant=str(folder))).load_pretrained()

    with pytest.raises(SourceError, match=message):
        attempt()


@pytest.mark.parametrize("variant", ["./nowhere", "~/nowhere-at-all", "a/b/c", "not an id"])
def test_what_is_neither_a_folder_nor_an_id_is_explained(variant):
    with pytest.raises(SourceError, match="folder"):
        HFCausal(LanguageOptions(variant=variant))


def test_a_folder_has_no_revision(folder):
    with pytest.raises(SourceError, match="no revision"):
        HFCausal(LanguageOptions(variant=str(folder), revision="main"))


@pytest.mark.parametrize(
    ("config", "message"),
    [({"model_type": "gpt9"}, "gpt9"), ({**GPT2, "n_layer": "x"}, "n_layer"), ({**GPT2, "n_embd": 33}, "divisible")],
)
def test_a_wrong_config_is_explained(config, message):
    with pytest.raises(BadRecipe, match=message):
        causal(config)


def test_a_config_has_no_pretrained_weights():
    model = on_meta(HFCausal, LanguageOptions(config=GPT2))
    assert not model.has_pretrained
    with pytest.raises(SourceError, match="pretrained: false"):
        model.load_pretrained()


@pytest.mark.parametrize("use", ["hf-vision", "hf-causal", "hf-encoder", "hf-seq2seq", "timm"])
def test_generic_entries_need_a_variant(use):
    kind = "encoder" if use in ("hf-vision", "timm") else "language_model"
    with pytest.raises(BadRecipe, match="needs a variant"):
        resolve(kind, PartConfig(use=use))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
def test_without_a_network_each_source_says_so():
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        HFCausal(LanguageOptions(variant="mmzoo-tests/not-in-any-cache"))
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        HFVision(VisionOptions(variant="mmzoo-tests/not-in-any-cache"))
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        on_meta(Timm, TimmOptions(variant="test_vit", revision="0" * 40)).load_pretrained()
    clip = OpenCLIPOptions(variant="ViT-B-32/laion2b_s34b_b79k", revision="0" * 40)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        on_meta(OpenCLIP, clip).load_pretrained()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for the Hub: ``hub[revision] = folder`` serves a folder's files as snapshots of that revision."""
    revisions = {}

    def download(repository, name, revision=None):
        kept = revisions.get(revision or "main") or next(f for f in revisions.values() if f.name == revision)
        if not (kept / name).is_file():
            raise RemoteEntryNotFoundError(
                f"no {name}", response=types.SimpleNamespace(headers={}, request=None, status_code=404)
            )
        return str(kept / name)

    monkeypatch.setattr(source, "hf_hub_download", download)
    monkeypatch.setattr(weights, "hf_hub_download", download)
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *args, **kwargs: None)
    return revisions


def snapshot(folder, commit):
    target = folder.parent / "snapshots" / commit
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_everything_comes_from_the_commit_of_the_configuration(hub, folder):
    hub["main"] = snapshot(folder, "a" * 40)
    model = on_meta(HFCausal, LanguageOptions(variant="owner/gpt2"))
    (folder / "config.json").unlink()
    hub["a" * 40], hub["main"] = hub["main"], snapshot(folder, "b" * 40)  # main moves on meanwhile
    model.load_pretrained()
    lock = model.lock()
    assert (lock["source"], lock["id"], lock["commit"]) == ("hub", "owner/gpt2", "a" * 40)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(lock["files"])


def test_pickled_weights_give_way_to_the_hubs_own_conversion(hub, folder, monkeypatch):
    hub["refs/pr/7"] = snapshot(folder, "b" * 40)
    break_weights(folder)
    hub["main"] = snapshot(folder, "a" * 40)

    class Api:
        def get_repo_discussions(self, repository, **_):
            def request(number, author):
                return type("D", (), {"num": number, "author": author, "title": source.CONVERTED})

            return [request(7, source.CONVERTER), request(9, "somebody")]

    monkeypatch.setattr(source, "HfApi", Api)
    model = on_meta(HFCausal, LanguageOptions(variant="owner/gpt2"))
    model.load_pretrained()
    assert model.lock()["commit"] == "b" * 40
    named = on_meta(HFCausal, LanguageOptions(variant="owner/gpt2", revision="main"))
    with pytest.raises(SourceError, match="pickled weights are never loaded"):
        named.load_pretrained()


@pytest.mark.usefixtures("offline")
def test_a_cached_conversion_is_found_without_a_network(folder):
    main, conversion = "a" * 40, "b" * 40
    cache = Path(constants.HF_HUB_CACHE) / "models--owner--gpt2"
    for reference, commit in (("main", main), ("refs/pr/7", conversion)):
        (cache / "refs" / reference).parent.mkdir(parents=True, exist_ok=True)
        (cache / "refs" / reference).write_text(commit)
        shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "snapshots" / main / "model.safetensors").unlink()
    (cache / ".no_exist" / main).mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json"):  # as the library notes that a commit has no such file
        (cache / ".no_exist" / main / name).touch()
    model = on_meta(HFCausal, LanguageOptions(variant="owner/gpt2"))
    model.load_pretrained()
    assert model.lock()["commit"] == conversion


# Errors of the Hub


def http_error(cls, status, text="the hub's words"):
    return cls(text, response=types.SimpleNamespace(headers={}, request=None, status_code=status))


def wrapped(kind, cause):
    error = kind("wrapped")
    error.__cause__ = cause
    return error


SECRET = "hf_abcdefghijklmnop"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(GatedRepoError, 403), "is gated: accept its terms at .*/owner/name, then log in"),
        (http_error(RepositoryNotFoundError, 404), "there is no such repository at .* or it is private"),
        (http_error(RevisionNotFoundError, 404), "has no revision 'v9'"),
        (HFValidationError("x"), "write owner/name"),
        (http_error(HfHubHTTPError, 401), r"does not accept the token \(401\)"),
        (http_error(HfHubHTTPError, 403), r"config.json: .*write permission"),
        (http_error(HfHubHTTPError, 409), r"config.json: conflicts .*\(409\)"),
        (http_error(HfHubHTTPError, 412), "someone else pushed to 'v9' meanwhile"),
        (http_error(HfHubHTTPError, 413), "too large"),
        (http_error(HfHubHTTPError, 429), "too many requests"),
        (http_error(HfHubHTTPError, 418, f"{{teapot}} {SECRET} Bearer {SECRET}"), r"refused \(418\): \{teapot\} \*\*\*"),
        (http_error(HfHubHTTPError, 503), r"has a fault \(503\); try again later, or give a folder"),
        (http_error(RemoteEntryNotFoundError, 404), "config.json: does not exist at revision 'v9'"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written: .*No space left.*HF_HOME"),
        (wrapped(RuntimeError, http_error(HfHubHTTPError, 429)), "too many requests"),
        (
            wrapped(LocalEntryNotFoundError, ConnectionError(f"no route {SECRET}\x1b[31m")),
            r"connection to .* failed .*no route \*\*\*\?",
        ),
    ],
    ids=str,
)
def test_errors_of_the_hub_say_what_to_do(error, words, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    options = {"item": "config.json", "revision": "v9", "kind": SourceError, "alternative": "give a folder"}
    explained = hub_errors.hub_error(error, "'owner/name'", "owner/name", **options)
    assert isinstance(explained, SourceError)
    assert re.match(f"'owner/name': .*{words}|'owner/name': {words}", str(explained)), explained
    assert SECRET not in str(explained)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_optional_file_is_left_out_if_the_hub_does_not_answer_but_not_if_there_is_no_repository(hub, monkeypatch, status):
    requests = []
    cls = RepositoryNotFoundError if status == 404 else HfHubHTTPError

    def download(repository, name, revision=None):
        requests.append(name)
        raise http_error(cls, status)

    monkeypatch.setattr(source, "hf_hub_download", download)
    files = source.Source("owner/name")
    if status == 404:
        with pytest.raises(SourceError, match=r"'owner/name' \(not a folder here\): there is no such repository"):
            files.find("config.json")
        return
    assert files.find("config.json") is files.find("config.json") is None
    assert requests == ["config.json"]


# timm


@pytest.mark.parametrize(
    ("name", "size", "tokens", "dim", "pooled", "blocks"),
    [
        ("test_vit", 64, 16, 64, 64, 6),
        ("test_resnet", 64, 4, 96, 96, 4),
        ("test_convnext", 64, 4, 64, 64, 4),
        ("mobilenetv3_small_100", 64, 4, 576, 1024, 6),
    ],
)
def test_timm_models_keep_their_spec(name, size, tokens, dim, pooled, blocks):
    encoder = Timm(TimmOptions(variant=name, image_size=size))
    assert (encoder.spec.tokens, encoder.spec.dim, encoder.spec.pooled_dim) == (tokens, dim, pooled)
    assert len(encoder.blocks()) == blocks
    check_encoder(encoder, on_meta(Timm, encoder.options))


@pytest.mark.parametrize(
    ("name", "tokens", "dim", "pooled"),
    [
        ("resnet18", 49, 512, 512),
        ("vgg16", 49, 512, 4096),
        ("vit_tiny_patch16_224", 196, 192, 192),
        ("deit_tiny_distilled_patch16_224", 196, 192, 192),
        ("vit_small_patch14_reg4_dinov2", 1369, 384, 384),
        ("convnext_atto", 49, 320, 320),
        ("swin_tiny_patch4_window7_224", 49, 768, 768),
        ("efficientnet_b0", 49, 1280, 1280),
        ("tf_efficientnet_lite0", 49, 1280, 1280),
    ],
)
def test_large_timm_models_are_measured_on_the_meta_device(name, tokens, dim, pooled):
    spec = on_meta(Timm, TimmOptions(variant=name)).spec
    assert (spec.tokens, spec.dim, spec.pooled_dim) == (tokens, dim, pooled)


def test_timm_rows_of_the_grid_become_tokens():
    encoder = Timm(TimmOptions(variant="test_resnet", image_size=64)).eval()
    pixels, features = check_encoder(encoder)
    with torch.no_grad():
        grid = encoder.model.forward_features(pixels)
    assert torch.equal(features.tokens[:, 3], grid[:, :, 1, 1])
    torch.testing.assert_close(features.pooled, grid.mean((2, 3)))


def test_timm_weights_come_whole_or_not_at_all(hub, tmp_path):
    torch.manual_seed(1)
    kept = tmp_path / "snapshots" / ("c" * 40)
    kept.mkdir(parents=True)
    hub["main"] = kept
    saved = Timm(TimmOptions(variant="test_vit")).eval()
    save_file(saved.model.state_dict(), kept / "model.safetensors")
    encoder = on_meta(Timm, TimmOptions(variant="test_vit"))
    encoder.load_pretrained()
    pixels, features = check_encoder(encoder)
    with torch.no_grad():
        assert torch.equal(features.tokens, saved(pixels).tokens)
    lock = encoder.lock()
    assert (lock["id"], lock["commit"]) == ("timm/test_vit.r160_in1k", "c" * 40)
    assert lock["files"]["model.safetensors"] == contents(kept)["model.safetensors"][1]
    state = saved.model.state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, kept / "model.safetensors")
    with pytest.raises(SourceError, match=r"lacks 1 weights .*blocks\.0\.attn\.qkv\.weight"):
        encoder.load_pretrained()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnt18", UnknownName, "did you mean 'resnet18'"),
        ("resnet18.tv_in1", UnknownName, "tv_in1k"),
        ("coat_tiny", DoesNotFit, "several scales"),
    ],
)
def test_timm_refuses_with_a_reason(name, error, message):
    with pytest.raises(error, match=message):
        on_meta(Timm, TimmOptions(variant=name))


def test_timm_without_weights_says_so():
    with pytest.raises(SourceError, match="no pretrained weights"):
        on_meta(Timm, TimmOptions(variant="mixer_s16_224")).load_pretrained()


# OpenCLIP


@pytest.mark.parametrize(
    ("vision", "tokens", "dim"),
    [
        ({"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}, 16, 32),
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, 4, 256),
        ({"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}, 100, 64),
    ],
    ids=["vit", "resnet", "timm"],
)
def test_open_clip_towers_keep_their_spec(vision, tokens, dim):
    encoder = OpenCLIP(OpenCLIPOptions(config={"embed_dim": 24, "vision_cfg": vision}))
    assert (encoder.spec.tokens, encoder.spec.dim, encoder.spec.pooled_dim) == (tokens, dim, 24)
    pixels, features = check_encoder(encoder, on_meta(OpenCLIP, encoder.options))
    with torch.no_grad():
        torch.testing.assert_close(features.pooled, encoder.model(pixels))
    assert len(encoder.blocks()) in (2, 4, 6)


def test_open_clip_variants():
    clip = on_meta(OpenCLIP, OpenCLIPOptions(variant="ViT-B-32/openai"))
    assert (clip.spec.tokens, clip.spec.dim, clip.spec.pooled_dim) == (49, 768, 512)
    assert clip._config["quick_gelu"]  # as its weights were trained, though the architecture's name says otherwise
    assert on_meta(OpenCLIP, OpenCLIPOptions(variant="ViT-B/32/openai")).spec == clip.spec
    siglip = on_meta(OpenCLIP, OpenCLIPOptions(variant="ViT-B-16-SigLIP/webli"))
    assert siglip.spec.tokens == 196
    assert siglip.transform.steps.transforms[-1].mean == (0.5, 0.5, 0.5)
    with pytest.raises(SourceError, match="names no weights"):
        on_meta(OpenCLIP, OpenCLIPOptions(variant="ViT-B-32")).load_pretrained()


@pytest.mark.parametrize(
    ("variant", "message"), [("ViT-B-33/openai", "ViT-B-32"), ("ViT-B-32/laion2b", "laion2b_s34b_b79k"), ("nothing", "no arch")]
)
def test_open_clip_suggests_names(variant, message):
    with pytest.raises(UnknownName, match=message):
        OpenCLIP(OpenCLIPOptions(variant=variant))


def test_open_clip_refuses_a_wrong_config():
    with pytest.raises(BadRecipe, match="image_sise"):
        OpenCLIP(OpenCLIPOptions(config={"embed_dim": 24, "vision_cfg": {"image_sise": 32}}))


def test_a_part_of_the_model_that_a_source_holds(tmp_path):
    """As a plugin takes the encoder out of a checkpoint of encoder and decoder."""
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
    config = transformers_models.config_of({"model_type": "whisper", "d_model": 8, "vocab_size": 64, "pad_token_id": 0, **sizes})
    whole = transformers.WhisperForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    encoder = whole.get_encoder()
    found = transformers_models.load_backbone(type(encoder), config, source.Source(str(tmp_path)), within="encoder.")
    assert {"conv1.weight", "layers.1.fc2.bias"} <= set(found.state_dict())
    for name, value in encoder.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    with pytest.raises(SourceError, match="lacks"):
        transformers_models.load_backbone(type(encoder), config, source.Source(str(tmp_path)), within="nowhere.")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x10" + bytes(7) + b"not JSON at all!", b"\x00" * 4096])
def test_a_file_that_is_not_safetensors_has_no_names(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert weights.names_in(tmp_path / "file") == weights.names_in(tmp_path / "missing") == weights.names_in(tmp_path) == []
    save_file({"b": torch.zeros(1), "a": torch.zeros(2)}, tmp_path / "file", {"format": "pt"})
    assert sorted(weights.names_in(tmp_path / "file")) == ["a", "b"]


def test_a_model_is_float32_whatever_its_configuration_and_the_default_type(monkeypatch):
    monkeypatch.setitem(GPT2, "dtype", "bfloat16")
    torch.set_default_dtype(torch.float64)
    try:
        model = causal(GPT2).model
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 10**9},
        {"num_labels": 10**9},
        {"attn_implementation": "me/kernel"},
        {"text_config": {"_attn_implementation": "me/kernel"}},
        {"vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:me/model"}},
    ],
    ids=str,
)
def test_a_configuration_that_reaches_out_or_has_no_end(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, **change}))
    with pytest.raises(SourceError, match="config.json: (n_layer|num_labels|_?attn_implementation|architecture): "):
        HFCausal(LanguageOptions(variant=str(tmp_path)))


def test_a_configuration_may_name_labels_as_it_likes(tmp_path):
    labels = {"a block of flats": 5000, "layer cake": 5001}
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "label2id": labels, "attn_implementation": "eager"}))
    assert HFCausal(LanguageOptions(variant=str(tmp_path))).spec.vocab_size == GPT2["vocab_size"]
