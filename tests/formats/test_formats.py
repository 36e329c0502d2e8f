"""Checkpoints of other code, in and out: what is computed stays the same, and what is wrong is named."""

import json
import pickle
import zipfile

import foreign
import numpy as np
import pytest
import torch
from command_line import run
from fake_plugins import with_plugin
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision import transforms
from transformers import AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

import mmzoo
from mmzoo.backbones import repository as source
from mmzoo.cli import app
from mmzoo.data.tokens import pad_with_mask, prompt_ids
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, SourceError
from mmzoo.formats.format import Format
from mmzoo.interfaces import PLACEHOLDER_ID
from mmzoo.testing import tiny
from mmzoo_transformers.bytes import byte_tokenizer

TOWER = {**foreign.CLIP, "num_hidden_layers": 1, "projection_dim": 24}  # stands in for the CLIP that a ClipCap was trained with
ENCODER = {"use": "clip", "config": TOWER}


def picture(seed=0, size=(45, 61)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@torch.no_grad()
def logits(model, pixels, prompts, index=None):
    """Logits at the positions of the prompts' text, [batch, text, vocab], and the ids."""
    text = model.text_context()
    ids, mask = pad_with_mask(prompt_ids(text, prompts), text.tokenizer.pad_token_id)
    features = model.encode(pixels, torch.arange(len(prompts)) if index is None else index)
    return model.language_model.logits(model.outputs({"image": features}, {"ids": ids, "mask": mask}).hidden), ids


# ClipCap


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def clipcap(request, tmp_path_factory):
    """What the original computed, its state with the buffers of its time, and the file."""
    data, sizes, state = foreign.clipcap(request.param)
    for i in range(2):
        state[f"gpt.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8)
        state[f"gpt.transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    path = tmp_path_factory.mktemp("clipcap") / "coco.pt"
    torch.save(state, path)
    return data, sizes, state, path


def test_clipcap_computes_what_the_original_does(clipcap, tmp_path):
    data, sizes, _, path = clipcap
    heads = json.loads(sizes["gpt2_config"])["n_head"]
    mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=heads).save(tmp_path / "model")
    model = mmzoo.load(tmp_path / "model")
    with torch.no_grad():
        prefix = model.fusion.prefix(data["in/prefix"])
        assert torch.allclose(prefix, data["out/prefix_embeddings"], atol=1e-5)
        text = model.language_model.embed(data["in/tokens"])
        out = model.language_model.logits(model.language_model(torch.cat([prefix, text], 1), data["in/mask"]))
        assert torch.allclose(out, data["out/logits"], atol=1e-5)
        first = int(sizes["prefix_length"]) - 1
        loss = F.cross_entropy(out[:, first:-1].flatten(0, 1), data["in/tokens"].flatten(), ignore_index=0)
        assert loss.item() == pytest.approx(data["out/loss"].item(), abs=1e-5)
        mask = torch.ones(1, first + 1, dtype=torch.long)
        written = model.language_model.generate(prefix[:1], mask, max_new_tokens=len(data["out/greedy"]))
    assert written[0].tolist() == data["out/greedy"].tolist()


def test_clipcap_from_safetensors_says_its_heads(clipcap, tmp_path):
    _, sizes, state, _ = clipcap
    path = tmp_path / "coco.safetensors"
    save_file({key: value.clone() for key, value in state.items()}, path, {"gpt2_config": sizes["gpt2_config"]})
    model = mmzoo.import_model("clipcap", path, encoder=ENCODER)
    assert model.recipe.language_model.options["config"]["n_head"] == 4
    assert model.generate(image=picture(), prompt="5 7").replace(" ", "").isdigit()  # nobody knows the words of 101 ids
    save_file({key: value.clone() for key, value in state.items()}, path)
    assert mmzoo.import_model("clipcap", path, encoder=ENCODER).recipe.language_model.options["config"]["n_head"] == 1


def test_clipcap_has_its_words_under_either_name_and_once(clipcap, tmp_path):
    """safetensors keeps one name of a shared matrix; two that differ are no file that ClipCap's training saved."""
    state, path = dict(clipcap[2]), tmp_path / "coco.pt"
    whole = mmzoo.import_model("clipcap", clipcap[3], encoder=ENCODER, heads=4).state_dict()
    for name in ("gpt.lm_head.weight", "gpt.transformer.wte.weight"):
        torch.save({key: value for key, value in state.items() if key != name}, path)
        found = mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=4).language_model.state_dict()
        assert all(torch.equal(value, whole[f"language_model.{key}"]) for key, value in found.items())
    torch.save({**state, "gpt.lm_head.weight": state["gpt.lm_head.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"gpt.lm_head.weight differs from gpt.transformer.wte.weight"):
        mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=4)


def test_clipcap_normalises_the_embedding_on_request(clipcap):
    path = clipcap[3]
    plain, scaled = (mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=4, normalize_prefix=n) for n in (False, True))
    plain.encoder.load_state_dict(scaled.encoder.state_dict())
    features = scaled.encode(torch.randn(2, 3, 32, 32))
    features.pooled = features.pooled * 7
    ids = torch.tensor([[5], [6]])
    batch = {"ids": ids, "mask": torch.ones_like(ids)}
    with torch.no_grad():
        one = scaled.outputs({"image": features}, batch).states.hidden
        features.pooled = F.normalize(features.pooled, dim=-1)
        assert torch.allclose(one, plain.outputs({"image": features}, batch).states.hidden, atol=1e-5)


def test_clipcap_alone_goes_before_the_pretrained_gpt2(tmp_path, monkeypatch):
    """Checkpoints of the mapper alone: GPT-2 is the pretrained one, frozen; an older mapper is one linear layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from mmzoo_formats import clipcap

    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=32, n_layer=1, n_head=2, n_positions=128)).save_pretrained(gpt2)
    byte_tokenizer().save_pretrained(gpt2)
    monkeypatch.setattr(clipcap, "SIZES", {768: str(gpt2), 32: str(gpt2)})
    weights = {"clip_project.weight": torch.randn(12 * 768, 24), "clip_project.bias": torch.randn(12 * 768)}
    torch.save(weights, tmp_path / "linear.pt")
    with pytest.raises(CheckpointError, match=r"clip_project.weight is \[9216, 24\]"):  # 768 channels, and this GPT-2 has 32
        mmzoo.import_model("clipcap", tmp_path / "linear.pt", encoder=ENCODER)
    monkeypatch.setattr(clipcap, "CHANNELS", 32)
    torch.save({key: value[: 12 * 32] for key, value in weights.items()}, tmp_path / "linear.pt")
    model = mmzoo.import_model("clipcap", tmp_path / "linear.pt", encoder=ENCODER)
    assert model.fusion.options.length == 12
    assert model.provenance.pretrained["language_model"]
    assert model.provenance.policies["language_model"] == "frozen"


def test_an_import_replaces_no_model(clipcap, tmp_path):
    kept = mmzoo.build(tiny("cnn-product-lstm"), seed=0).save(tmp_path / "trained")
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    said = run("import", "clipcap", str(clipcap[3]), "--output", str(kept), code=2).stderr
    assert "is not empty; an import needs a new folder" in said
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_a_pickle_that_holds_more_than_tensors_is_refused(clipcap, tmp_path):
    state, path = clipcap[2], tmp_path / "bad.pt"
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return open, (str(ran), "w")

    for held, said in [
        ({**state, "note": Hostile()}, "more than tensors"),
        ({**state, "epoch": 3}, r"more than tensors: epoch \(int\)"),
        ({"state_dict": state}, r"more than tensors: state_dict \(dict\)"),
        ([state], "list, not a mapping"),
    ]:
        torch.save(held, path)
        with pytest.raises(CheckpointError, match=said):
            mmzoo.import_model("clipcap", path, encoder=ENCODER)
    path.write_bytes(pickle.dumps({"weights": Hostile()}))
    with pytest.raises(CheckpointError, match=r"more than tensors|not written by torch"):
        mmzoo.import_model("clipcap", path, encoder=ENCODER)
    assert not ran.exists()


def test_damaged_and_compressed_files_are_refused(clipcap, tmp_path):
    whole = clipcap[3].read_bytes()
    path = tmp_path / "bad.pt"
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            mmzoo.import_model("clipcap", path)
    with zipfile.ZipFile(clipcap[3]) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        mmzoo.import_model("clipcap", path)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="not valid safetensors"):
        mmzoo.import_model("clipcap", path)


def test_what_is_missing_or_left_over_is_listed(clipcap, tmp_path):
    state, path = dict(clipcap[2]), tmp_path / "bad.pt"

    def refused(changed, said):
        torch.save(changed, path)
        with pytest.raises(CheckpointError, match=said):
            mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=4)

    refused({**state, "gpt.extra": torch.ones(2)}, "1 keys are unexpected: gpt.extra")
    refused({k: v for k, v in state.items() if "c_attn.bias" not in k}, "2 keys are missing(.|\n)*end like those of its old mask")
    refused({k: v for k, v in state.items() if ".ln_1." not in k and ".mlp." not in k}, "c_fc.weight")
    refused({k: v for k, v in state.items() if not k.startswith("gpt.transformer.h.0.ln")}, "4 keys are missing")
    many = {f"extra.{i:02d}": torch.ones(1) for i in range(25)}
    refused({**state, **many}, "25 keys are unexpected: extra.00, .*extra.09 and 15 more")
    wide = {**state, "gpt.transformer.ln_f.bias": torch.ones(65)}
    refused(wide, r"1 tensors do not fit: gpt.transformer.ln_f.bias is \[65\].*\[64\]")
    refused({**state, "gpt.transformer.ln_f.bias": torch.ones(64, dtype=torch.int8)}, "quantised")
    for empty in (state["gpt.transformer.wpe.weight"].to_sparse(), state["gpt.transformer.wpe.weight"].to("meta")):
        refused({**state, "gpt.transformer.wpe.weight": empty}, "gpt.transformer.wpe.weight is sparse, or on the meta")
    huge = torch.ones(1, 1).expand(10**7, 10**7)  # of one number: a terabyte only if it were believed
    refused({**state, "gpt.transformer.wpe.weight": huge}, r"gpt.transformer.wpe.weight is \[10000000, 10000000\]")


def test_clipcap_needs_the_clip_that_it_was_trained_with(clipcap):
    path = clipcap[3]
    with pytest.raises(BadRecipe, match="embeddings of size 24"):
        mmzoo.import_model("clipcap", path, heads=4)
    with pytest.raises(BadRecipe, match="7 fits its 64 channels"):
        mmzoo.import_model("clipcap", path, encoder=ENCODER, heads=7)
    with pytest.raises(CheckpointError, match="tensors do not fit"):
        mmzoo.import_model("clipcap", path, encoder={"use": "clip", "config": {**TOWER, "projection_dim": 20}}, heads=4)
    with pytest.raises(BadRecipe, match="unknown option"):
        mmzoo.import_model("clipcap", path, head=4)
    with pytest.raises(BadRecipe, match="'train'"):
        mmzoo.import_model("clipcap", path, train="full")


# nanoVLM


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lm_tie_weights": False, "mp_pixel_shuffle_factor": 4}, {"mp_image_token_length": 16, "max_img_size": 32}],
    ids=["first", "untied", "later"],
)
def test_nanovlm_computes_the_published_mathematics(changes, tmp_path, tokenizer):
    config, state = foreign.nanovlm(tmp_path / "nano", **changes)
    mmzoo.import_model("nanovlm", tmp_path / "nano", tokenizer=tokenizer).save(tmp_path / "model")
    model = mmzoo.load(tmp_path / "model")
    shown = picture()
    pixels = model.encoder.transform(shown)[None]
    original = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])  # its get_image_processor
    assert torch.allclose(pixels[0], original(shown), atol=1e-6)
    out, ids = logits(model, pixels, ["Question: what? Answer:"])
    assert torch.allclose(out[0], foreign.nanovlm_logits(config, state, pixels, ids[0]), atol=1e-5)
    prompt, written = ids[0], []
    for _ in range(6):
        so_far = torch.cat([prompt, torch.tensor(written).long()])
        written.append(int(foreign.nanovlm_logits(config, state, pixels, so_far)[-1].argmax()))
    end = model.language_model.tokenizer.eos_token_id
    expected = written[: written.index(end)] if end in written else written
    said = model.generate(image=shown, prompt="Question: what? Answer:", max_new_tokens=6)
    assert said == model.language_model.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_nanovlm_brings_its_own_tokens_and_template(tmp_path, tokenizer):
    tokens = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", "r1c1": "<row_1_col_1>"}
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    pieces = {"vlm_extra_tokens": tokens, "mp_image_token_length": 16, "max_img_size": 64, "lm_chat_template": template}
    foreign.nanovlm(tmp_path / "nano", **pieces)
    with pytest.raises(DoesNotFit, match="cuts pictures larger than 32(.|\n)*whole_images"):
        mmzoo.import_model("nanovlm", tmp_path / "nano", tokenizer=tokenizer)
    model = mmzoo.import_model("nanovlm", tmp_path / "nano", tokenizer=tokenizer, whole_images=True)
    known = model.language_model.tokenizer
    assert known.convert_tokens_to_ids(list(tokens.values())) == [261, 262, 263]
    assert known.chat_template == template
    assert known.pad_token == known.eos_token
    model.generate(image=picture(), prompt="<|global_image|><image>what?", chat=True, max_new_tokens=2)


def test_nanovlm_with_either_name_of_a_tied_matrix(tmp_path, tokenizer):
    _, state = foreign.nanovlm(tmp_path / "nano")
    first = mmzoo.import_model("nanovlm", tmp_path / "nano", tokenizer=tokenizer)
    state["decoder.head.weight"] = state.pop("decoder.token_embedding.weight")
    save_file(state, tmp_path / "nano" / "model.safetensors")
    second = mmzoo.import_model("nanovlm", tmp_path / "nano", tokenizer=tokenizer)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vit_cls_flag": True}, "vit_cls_flag"),
        ({"lm_use_tokens": True}, "lm_use_tokens"),
        ({"lm_attn_scaling": 0.5}, "lm_attn_scaling: 0.5"),
        ({"mp_image_token_length": 64}, "mp_image_token_length: 64, where its sizes make 16"),
        ({"mp_pixel_shuffle_factor": 8}, "mp_pixel_shuffle_factor: 8"),
    ],
)
def test_nanovlm_that_no_parts_compute_is_refused(changes, said, tmp_path):
    foreign.nanovlm(tmp_path / "nano", **changes)
    with pytest.raises(DoesNotFit, match=said):
        mmzoo.import_model("nanovlm", tmp_path / "nano")


def test_nanovlm_that_is_damaged_is_refused(tmp_path, tokenizer):
    folder = tmp_path / "nano"
    config, state = foreign.nanovlm(folder)

    def refused(said, error=CheckpointError):
        with pytest.raises(error, match=said):
            mmzoo.import_model("nanovlm", folder, tokenizer=tokenizer)

    qkv = "vision_encoder.blocks.0.attn.qkv_proj.weight"
    save_file({**state, qkv: torch.ones(71, 24)}, folder / "model.safetensors")
    refused(r"qkv_proj.weight is \[71, 24\]")
    save_file({key: value for key, value in state.items() if key != qkv}, folder / "model.safetensors")
    refused("qkv_proj.weight")
    (folder / "config.json").write_text(json.dumps({**config, "lm_vocab_size": 10**13}))
    save_file(state, folder / "model.safetensors")
    refused(r"token_embedding.weight is \[264, 32\], but .*\[10000000000000, 32\]")
    (folder / "config.json").write_text(json.dumps({**config, "vit_n_blocks": "many"}))
    refused("vit_n_blocks")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])
    refused("truncated")
    (folder / "config.json").unlink()
    refused("no config.json", SourceError)


# LLaVA


LLAVAS = {
    "clip, llama": {},
    "siglip, qwen3, tied": {"vision": "siglip", "text": "qwen3", "strategy": "full", "tied": True},
    "class token, last layer, mistral, no bias": {"strategy": "full", "layer": -1, "bias": False, "text": "mistral"},
    "granite whose scales are 1": {"text": "granite"},
    "siglip's last layer before its norm": {"vision": "siglip", "strategy": "full", "layer": -1},
}
TEXTS = ["a <image> b <image> what", "<image>xyz is this thing"]
IMAGES = [[picture(1), picture(2)], [picture(3, (80, 33))]]


def both(folder, hf, model):
    """The library's model, loaded by its processor, and ours give the same logits and tokens."""
    processor = AutoProcessor.from_pretrained(folder)
    for texts, images in ((TEXTS[:1], IMAGES[:1]), (TEXTS[1:], IMAGES[1:])):
        inputs = processor(images=images, text=texts, return_tensors="pt")
        with torch.no_grad():
            theirs = hf(**inputs).logits[0][inputs["input_ids"][0] != hf.config.image_token_id]
        pixels = torch.stack([model.encoder.transform(image) for image in images[0]])
        assert torch.allclose(pixels, inputs["pixel_values"], atol=1e-6)
        ours, ids = logits(model, pixels, texts, torch.arange(len(images[0]))[None])
        ours = ours[0][ids[0] != PLACEHOLDER_ID]
        assert torch.allclose(ours, theirs[:, : ours.shape[1]], atol=1e-5)
    processor.tokenizer.padding_side = "left"
    inputs = processor(images=IMAGES, text=TEXTS, return_tensors="pt", padding=True)
    out = hf.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said = [line.strip() for line in processor.tokenizer.batch_decode(out, skip_special_tokens=True)]
    assert said == model.generate(image=IMAGES, prompt=TEXTS, max_new_tokens=12)


@pytest.mark.parametrize("options", LLAVAS.values(), ids=LLAVAS)
def test_llava_in_and_out_computes_the_same(options, tmp_path):
    hf = foreign.llava(tmp_path / "hf", **options)
    imported = mmzoo.import_model("llava", tmp_path / "hf")
    imported.save(tmp_path / "model")
    model = mmzoo.load(tmp_path / "model")
    both(tmp_path / "hf", hf, model)
    mmzoo.export_model("llava", model, tmp_path / "out")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert {name: p.shape for name, p in again.named_parameters()} == {name: p.shape for name, p in hf.named_parameters()}
    both(tmp_path / "out", again, model)


@pytest.mark.parametrize("layout", ["4.40", "5", "sharded"])
def test_llava_by_the_names_of_other_versions(layout, tmp_path):
    """4.x to 4.51 kept the vision model's own level; in memory transformers 5 has all but the head in ``model``."""
    foreign.llava(tmp_path / "hf")
    first = mmzoo.import_model("llava", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    if layout == "4.40":
        state = {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in state.items()}
        state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if layout == "5":
        moved = {key.replace("language_model.model.", "language_model."): value for key, value in state.items()}
        state = {f"model.{key}": value for key, value in moved.items()}
        state["lm_head.weight"] = state.pop("model.language_model.lm_head.weight")
    if layout == "sharded":
        path.unlink()
        names = sorted(state)
        files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: state[name] for name in names if files[name] == file}, path.parent / file)
        (path.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        save_file(state, path)
    again = mmzoo.import_model("llava", tmp_path / "hf")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_llava_that_says_tied_and_holds_two_matrices_has_two(tmp_path):
    """As transformers takes it. A list of one layer is that layer."""
    foreign.llava(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["tie_word_embeddings"] = True
    path.write_text(json.dumps({**config, "vision_feature_layer": [-2]}))
    model = mmzoo.import_model("llava", tmp_path / "hf")
    both(tmp_path / "hf", LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf"), model)


def ours(language="llama", fusion="projector", encoder=None, **more):
    """A model of this package whose tokenizer knows no placeholder and fills the vocabulary."""
    text = {**foreign.TEXT, "model_type": language, "vocab_size": 261, **more}
    model = mmzoo.build(
        encoder=encoder or {"use": "clip", "config": foreign.CLIP, "layer": -2},
        fusion=fusion,
        language_model={"use": "hf-causal", "config": text, "train": more.pop("train", "frozen")},
        task={"use": "vqa", "template": "{text}", "max_new_tokens": 4},
        seed=1,
    )
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_made_here_goes_out_with_a_token_for_the_image(tied, tmp_path):
    model = ours(tie_word_embeddings=tied)
    model.language_model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    mmzoo.export_model("llava", model, tmp_path / "out")
    hf, processor = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "out"),
        AutoProcessor.from_pretrained(tmp_path / "out"),
    )
    both(tmp_path / "out", hf, model)
    assert hf.config.image_token_id == processor.image_token_id == 261
    assert hf.config.text_config.vocab_size == 262
    assert processor.chat_template == processor.tokenizer.chat_template == model.language_model.tokenizer.chat_template
    rows = hf.get_output_embeddings().weight
    assert torch.equal(rows[261], rows[0])  # never likelier than the padding token
    assert hf.generation_config.suppress_tokens == [261]
    assert "<image>" not in model.language_model.tokenizer.get_vocab()


def test_adapters_are_merged_on_the_way_out(tmp_path):
    model = ours(train="lora:2")
    assert any("lora_B" in name for name, p in model.named_parameters() if p.requires_grad)
    mmzoo.export_model("llava", model, tmp_path / "out")
    both(tmp_path / "out", LlavaForConditionalGeneration.from_pretrained(tmp_path / "out"), model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"language": "gpt2"}, "cannot hold a gpt2(.|\n)*like Llama"),
        ({"language": "opt", "word_embed_proj_dim": 32}, "cannot hold a opt"),
        ({"language": "cohere"}, "computes other logits with a cohere"),
        ({"fusion": "prefix-mlp"}, "fusion 'prefix-mlp'"),
        ({"fusion": {"use": "projector", "layers": "linear"}}, "layers: mlp"),
        ({"fusion": {"use": "projector", "pixel_shuffle": 2}}, "pixel_shuffle: 1"),
        ({"encoder": "cnn"}, "encoder 'cnn'"),
        ({"encoder": {"use": "siglip", "config": {**foreign.CLIP, "model_type": "siglip_vision_model"}}}, "layer: -2"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(next(iter(value.values())))[:20],
)
def test_what_llava_has_no_place_for_is_refused(options, said, tmp_path):
    with pytest.raises(DoesNotFit, match=said):
        mmzoo.export_model("llava", ours(**options), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_needs_a_new_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        mmzoo.export_model("llava", ours(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act: relu"),
        ({"vision_feature_layer": [-2, -1]}, "several layers"),
        ({"vision_config": {**foreign.CLIP, "model_type": "siglip_vision_model"}}, "not patches"),
        ({"text_config": {**foreign.TEXT, "model_type": "cohere", "logit_scale": 0.5}}, "cohere scales its logits"),
    ],
    ids=["activation", "layers", "strategy", "scale"],
)
def test_llava_that_no_parts_compute_is_refused(change, said, tmp_path):
    foreign.llava(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DoesNotFit, match=said):
        mmzoo.import_model("llava", tmp_path / "hf")


def test_llava_that_is_damaged_is_refused(tmp_path):
    folder = tmp_path / "hf"
    foreign.llava(folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    state = {key: value.clone() for key, value in load_file(path).items()}
    save_file({key: value for key, value in state.items() if "multi_modal" not in key}, path)
    with pytest.raises(CheckpointError, match="4 keys are missing: multi_modal_projector.linear_1.bias"):
        mmzoo.import_model("llava", folder)
    path.write_bytes(whole[:2000])
    with pytest.raises(CheckpointError, match="truncated"):
        mmzoo.import_model("llava", folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="pickled weights are never loaded"):
        mmzoo.import_model("llava", folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(SourceError, match="no preprocessor_config.json"):
        mmzoo.import_model("llava", folder)


def test_llava_from_a_repository_with_an_older_template(tmp_path, monkeypatch):
    """Old processors keep their template, which takes turns in parts, in a file of its own."""
    folder = tmp_path / "snapshots" / ("a" * 40)
    foreign.llava(folder)
    template = (
        "{% for m in messages %}{{ m.role }}:{% for c in m.content if c.type == 'image' %} <image>{% endfor %}"
        "{% for c in m.content if c.type == 'text' %} {{ c.text }}{% endfor %}{% endfor %} A:"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, revision))
        if not (folder / name).is_file():
            raise source.RemoteEntryNotFoundError(
                f"no {name}", response=type("R", (), {"headers": {}, "request": None, "status_code": 404})
            )
        return str(folder / name)

    monkeypatch.setattr(source, "hf_hub_download", download)
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *args, **kwargs: None)
    model = mmzoo.import_model("llava", "owner/tiny@v1")
    assert asked[0] == ("owner/tiny", "v1")
    assert asked[-1] == ("owner/tiny", "a" * 40)
    model.save(tmp_path / "model")
    loaded = mmzoo.load(tmp_path / "model")
    said = loaded.generate(image=picture(), prompt="what?", chat=True, max_new_tokens=8)
    assert said == loaded.generate(image=picture(), prompt="user: <image> what? A:", max_new_tokens=8)


# Every format


def test_a_source_of_another_format_is_told_by_its_looks(clipcap, tmp_path):
    foreign.llava(tmp_path / "llava")
    foreign.nanovlm(tmp_path / "nano")
    save_file({key: value.clone() for key, value in clipcap[2].items()}, tmp_path / "clipcap.safetensors")
    ours().save(tmp_path / "ours")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    for asked, found, said in [
        ("nanovlm", "llava", "it looks like llava: mmzoo import llava"),
        ("llava", "nano", "it looks like nanovlm"),
        ("clipcap", "llava", "it looks like llava"),
        ("llava", "clipcap.safetensors", "it looks like clipcap"),
        ("llava", "ours", "a checkpoint of mmzoo"),
        ("llava", "gpt2", "its model_type is 'gpt2'"),
        ("clipcap", "nothing.pt", "is not a file"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            mmzoo.import_model(asked, tmp_path / found)
    (tmp_path / "gpt2" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is a folder"):
        mmzoo.import_model("clipcap", tmp_path / "gpt2")
    with pytest.raises(SourceError, match="no such folder"):
        mmzoo.import_model("llava", tmp_path / "nowhere")


def test_a_stranger_brings_a_format(tmp_path):
    module = type("stranger", (), {})
    module.mmzoo_formats = mmzoo.hookimpl(
        lambda: [mmzoo.Entry("format", "words", target=f"{__name__}:Words", summary="the summary in a text file")]
    )
    with with_plugin(module, "mmzoo-words"):
        folder = mmzoo.export_model("words", ours(), tmp_path / "new" / "out")
        assert "projector" in (folder / "model.txt").read_text()
        with pytest.raises(BadRecipe, match="does not import; these do: clipcap, llava, nanovlm"):
            mmzoo.import_model("words", folder)


class Words(Format):
    def write(self, model, folder):
        (folder / "model.txt").write_text(str(model.summary()))


def test_the_command_line_takes_in_and_gives_out(tmp_path):
    foreign.llava(tmp_path / "hf")
    call = CliRunner().invoke
    done = call(app, ["import", "llava", str(tmp_path / "hf"), "--output", str(tmp_path / "model")], catch_exceptions=False)
    assert "projector" in done.stdout
    done = call(app, ["export", "llava", str(tmp_path / "model"), str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "out" / "processor_config.json").is_file()
    path = tmp_path / "coco.pt"
    torch.save(foreign.clipcap("mlp")[2], path)
    encoder = [f"--set=encoder.config.{key}={value}" for key, value in TOWER.items()]
    arguments = [
        "import",
        "clipcap",
        str(path),
        "-o",
        str(tmp_path / "caption"),
        "--set=heads=4",
        "--set=encoder.use=clip",
        *encoder,
    ]
    assert call(app, arguments, catch_exceptions=False).exit_code == 0
    assert mmzoo.load(tmp_path / "caption").fusion.options.length == 5
    with pytest.raises(BadRecipe, match="does not export"):
        call(app, ["export", "clipcap", str(tmp_path / "caption"), str(tmp_path / "x")], catch_exceptions=False)
