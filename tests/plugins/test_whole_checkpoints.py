"""Whole vision-language checkpoints as a part: their text model, their vision tower, and refusals that are true."""

import json
import re

import pytest
import torch
import transformers
from hub import environment, run_script, serve
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_families import tiny_config

import mmzoo
from mmzoo.errors import DoesNotFit, MmzooError
from mmzoo_transformers.language import HFCausal, HFEncoder, HFSeq2Seq, LanguageOptions
from mmzoo_transformers.vision import HFVision, VisionOptions

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_SIZES, **_IDS, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 256}
_HEADS = {**_TEXT, "head_dim": 16}
_IMAGE = {**_SIZES, "image_size": 32, "patch_size": 8}
_GRID = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
_CLIP = {"model_type": "clip_vision_model", **_IMAGE}
_SIGLIP = {"model_type": "siglip_vision_model", **_IMAGE}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_QFORMER = {**_SIZES, "encoder_hidden_size": 32, "vocab_size": 300}
_OPT = {"model_type": "opt", **_SIZES, **_IDS, "vocab_size": 300, "word_embed_proj_dim": 32, "ffn_dim": 64}
_T5 = {"model_type": "t5", "vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
_PIXTRAL = {"model_type": "pixtral", **_IMAGE, "head_dim": 16}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
_GEMMA4 = {**_HEADS, **_LAYERS, "num_global_key_value_heads": 1, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
_AUDIO = {"model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
_AUDIO |= {"encoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 16}

# Name: the class, the text's configuration, the tower's, and other sizes.
FAMILIES = {
    "gemma3": ("Gemma3ForConditionalGeneration", _HEADS, _IMAGE, {}),
    "gemma4": ("Gemma4ForConditionalGeneration", _GEMMA4, None, {"vision_config": None, "audio_config": None}),
    "llava-1.5": ("LlavaForConditionalGeneration", {"model_type": "llama", **_TEXT}, _CLIP, {}),
    "llava-mistral": ("LlavaForConditionalGeneration", {"model_type": "mistral", **_TEXT}, _CLIP, {}),
    "llava-next": ("LlavaNextForConditionalGeneration", {"model_type": "mistral", **_TEXT}, _CLIP, {}),
    "llava-onevision": ("LlavaOnevisionForConditionalGeneration", {"model_type": "qwen2", **_TEXT}, _SIGLIP, {}),
    "internvl": (
        "InternVLForConditionalGeneration",
        {"model_type": "qwen2", **_TEXT},
        {**_IMAGE, "image_size": [32, 32], "patch_size": [8, 8]},
        {},
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {"model_type": "gemma", **_HEADS},
        {**_SIGLIP, "projection_dim": 32, "vision_use_head": False},
        {"projection_dim": 32},
    ),
    "mistral3": ("Mistral3ForConditionalGeneration", {"model_type": "mistral", **_HEADS}, _PIXTRAL, {}),
    "qwen2-vl": ("Qwen2VLForConditionalGeneration", {**_TEXT, **_MROPE}, _GRID, {}),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", {**_TEXT, **_MROPE}, _GRID, {}),
    "qwen3-vl": ("Qwen3VLForConditionalGeneration", _HEADS, {**_GRID, "deepstack_visual_indexes": [0]}, {}),
    "idefics3": ("Idefics3ForConditionalGeneration", {"model_type": "llama", **_TEXT}, _IMAGE, {}),
    "smolvlm": ("SmolVLMForConditionalGeneration", {"model_type": "llama", **_TEXT}, _IMAGE, {}),
    "blip-2": ("Blip2ForConditionalGeneration", _OPT, _IMAGE, {"qformer_config": _QFORMER}),
    "aya-vision": ("AyaVisionForConditionalGeneration", {"model_type": "cohere2", **_HEADS, **_LAYERS}, _SIGLIP, {}),
    "mllama": (
        "MllamaForConditionalGeneration",
        {**_TEXT, "cross_attention_layers": [1]},
        {**_IMAGE, "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64},
        {},
    ),
    "qwen2-audio": ("Qwen2AudioForConditionalGeneration", {"model_type": "qwen2", **_TEXT}, None, {"audio_config": _AUDIO}),
}
TOWERS = [  # whose encoder is a tower of pictures of one size
    *("gemma3", "llava-1.5", "llava-next", "llava-onevision", "internvl", "paligemma", "idefics3", "smolvlm", "blip-2"),
    "aya-vision",
]
WRAPPED = {"qwen2-vl", "qwen2.5-vl", "qwen3-vl", "mllama"}  # whose text model the library has only within the larger one


def _make(name: str) -> transformers.PreTrainedModel:
    """A small random model of a family, on the CPU."""
    cls, text, vision, more = FAMILIES[name]
    cls = getattr(transformers, cls)
    given = {} if vision is None else {"vision_config": dict(vision)}
    config = cls.config_class(text_config=dict(text), **given, **more)
    for key in ("image_token_id", "image_token_index", "video_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 299)
    torch.manual_seed(0)
    whole = cls(config).eval()
    with torch.no_grad():
        for value in whole.parameters():  # not the small ones that hide an error of scale
            value.normal_(0, 0.1)
    return whole


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each family's model, and the folder where the library saved it."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(".", "-"))
            whole = _make(name)
            whole.save_pretrained(folder)
            made[name] = whole, folder
        return made[name]

    return get


def _text(folder, cls=HFCausal):
    with torch.device("meta"):
        part = cls(LanguageOptions(variant=str(folder), tokenizer="bytes"))
    part.load_pretrained()
    return part.eval()


def _tower(folder, **options):
    with torch.device("meta"):
        part = HFVision(VisionOptions(variant=str(folder), **options))
    part.load_pretrained()
    return part.eval()


IDS = torch.arange(3, 17).reshape(2, 7)


def _check_text(name, whole, folder):
    part = _text(folder)
    inner = whole.language_model if name == "blip-2" else whole  # BLIP-2 itself needs a picture
    if name == "paligemma":  # reads a prompt both ways, and would read the words that it is to write
        for module in whole.model.language_model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = True
    with torch.no_grad():
        expected = inner(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        logits = part.logits(part(part.embed(IDS), torch.ones_like(IDS)))
    # AyaVisionForConditionalGeneration leaves out the scale of Command R7B, as which its text model was trained.
    scale = whole.config.text_config.logit_scale if name == "aya-vision" else 1
    torch.testing.assert_close(logits, expected * scale, rtol=1e-5, atol=1e-5)
    count = sum(value.numel() for value in part.parameters())
    assert count < sum(value.numel() for value in whole.parameters()) or name == "gemma4"  # the part alone
    return part


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_model_gives_the_logits_of_the_whole(saved, name):
    whole, folder = saved(name)
    part = _check_text(name, whole, folder)
    assert (type(part.model).__module__.startswith("transformers.")) == (name not in WRAPPED)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    together = part.generate(part.embed(IDS), mask, max_new_tokens=4)
    alone = part.generate(part.embed(IDS[:1, 3:]), mask[:1, 3:], max_new_tokens=4)
    assert together[0, : alone.shape[1]].tolist() == alone[0].tolist()
    with torch.no_grad():
        states = [part(part.embed(ids), torch.ones_like(ids)) for ids in (IDS, torch.cat([IDS[:, :5], IDS[:, :2] + 30], 1))]
    torch.testing.assert_close(states[0][:, :5], states[1][:, :5])  # what is to be written is not read


@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_the_library_today_are_read_too(saved, name, tmp_path):
    """`save_pretrained` writes the names of the first checkpoints; others hold those that the modules have now."""
    whole, folder = saved(name)
    names = dict(whole.named_parameters())
    buffers = {key: value for key, value in whole.named_buffers() if key in whole.state_dict()}
    save_file({key: value.detach().clone() for key, value in {**names, **buffers}.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    _check_text(name, whole, tmp_path)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_the_tokens_that_the_whole_reads(saved, name):
    whole, folder = saved(name)
    part = _tower(folder, keep_class_token=True)
    pixels = torch.randn(2, 3, 32, 32)
    names = ("vision_tower", "vision_model")
    tower = next(module for key, module in whole.named_modules() if key.rpartition(".")[2] in names)
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state
        features = part(pixels)
    torch.testing.assert_close(features.tokens, expected, rtol=1e-5, atol=1e-5)
    assert (part.spec.dim, part.spec.tokens) == (32, expected.shape[1])


def test_a_layer_of_a_tower_is_the_one_that_llava_reads(saved):
    whole, folder = saved("llava-1.5")
    part = _tower(folder, layer=-2)
    pixels = torch.randn(2, 3, 32, 32)
    read = []
    handle = whole.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        whole.get_image_features(pixels)
        tokens = part(pixels).tokens
    handle.remove()
    torch.testing.assert_close(tokens, read[0])


def test_a_seq2seq_text_model_within_blip_2(tmp_path):
    config = transformers.Blip2Config(vision_config=_IMAGE, qformer_config=_QFORMER, text_config=_T5)
    whole = transformers.Blip2ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    part = _text(tmp_path, HFSeq2Seq)
    given = torch.cat([torch.zeros(2, 1, dtype=torch.long), IDS[:, :3]], 1)
    with torch.no_grad():
        expected = whole.language_model(input_ids=IDS, decoder_input_ids=given).logits
        logits = part.logits(part(part.embed(IDS), torch.ones_like(IDS), given))
    torch.testing.assert_close(logits, expected)
    with pytest.raises(DoesNotFit, match=f"write 'hf-seq2seq:{re.escape(str(tmp_path))}'"):
        _text(tmp_path)


PICTURE = Image.effect_noise((90, 50), 80).convert("RGB")
_TILES = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
PROCESSORS = [
    (
        "llava-next",
        "LlavaNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **_TILES},
        0,
    ),
    ("llava-onevision", "LlavaOnevisionImageProcessor", {"size": {"height": 32, "width": 32}, **_TILES}, 0),
    ("internvl", "GotOcr2ImageProcessor", {"size": {"height": 32, "width": 32}, "crop_to_patches": True}, 0),
    ("gemma3", "Gemma3ImageProcessor", {"size": {"height": 32, "width": 32}}, 0),
]


@pytest.mark.parametrize(("name", "processor", "options", "at"), PROCESSORS)
def test_a_tower_reads_the_overview_of_a_processor_that_cuts_tiles(saved, name, processor, options, at):
    _, folder = saved(name)
    made = getattr(transformers, processor)(**options)
    made.save_pretrained(folder)
    try:
        part = _tower(folder)
    finally:
        (folder / "preprocessor_config.json").unlink()
    pictures = made(images=PICTURE, return_tensors="pt")["pixel_values"].reshape(-1, 3, 32, 32)
    torch.testing.assert_close(part.transform(PICTURE), pictures[at], rtol=1e-5, atol=1e-5)


ENTRIES = {"hf-causal": HFCausal, "hf-seq2seq": HFSeq2Seq, "hf-encoder": HFEncoder, "hf-vision": HFVision}


@pytest.mark.parametrize("name", [*FAMILIES, "clip", "siglip", "bert"])
def test_no_refusal_names_an_entry_that_refuses_too(saved, name, tmp_path):
    if name in FAMILIES:
        _, folder = saved(name)
    else:
        folder, config = tmp_path, transformers.AutoConfig.for_model(name)
        config.save_pretrained(folder)
    refused = {}
    for entry, cls in ENTRIES.items():
        try:
            with torch.device("meta"):
                cls(cls.Options(variant=str(folder)))
        except MmzooError as error:  # nothing else
            refused[entry] = str(error)
    assert len(refused) < len(ENTRIES)
    for message in refused.values():
        named = set(re.findall(r"(hf-\w+):", message))
        assert not named & set(refused), message
    text = {"clip", "siglip"}
    assert ("hf-causal" in refused) == (name in text | {"bert"})


def test_towers_of_pictures_of_any_size_are_refused_by_name(saved):
    for name, tower in (("qwen2-vl", "Qwen2VisionTransformer"), ("qwen3-vl", "Qwen3VLVisionModel"), ("mllama", "MllamaVision")):
        with pytest.raises(DoesNotFit, match=f"its vision tower, a {tower}.*choose another encoder, e.g. clip, siglip"):
            _tower(saved(name)[1])


def test_only_the_files_that_hold_the_part_are_read(saved, tmp_path):
    whole, _ = saved("gemma3")
    whole.save_pretrained(tmp_path, max_shard_size="30KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    text = {file for key, file in index.items() if "language_model" in key or "lm_head" in key}
    vision = {file for key, file in index.items() if "vision" in key}
    assert text != set(index.values()) != vision
    for part, files in ((_text(tmp_path), text), (_tower(tmp_path), vision)):
        assert {name for name in part.lock()["files"] if name.endswith(".safetensors")} == files
    for file in set(index.values()) - text:
        (tmp_path / file).unlink()
    _check_text("gemma3", whole, tmp_path)


def test_a_folder_that_changes_does_not_change_the_part(saved, tmp_path):
    whole, _ = saved("llava-1.5")
    whole.save_pretrained(tmp_path)
    part = _text(tmp_path)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\1" * (path.stat().st_size // 4))
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_a_model_of_both_parts_is_saved_and_loaded(saved, tmp_path):
    _, folder = saved("llava-1.5")
    parts = {"encoder": {"use": f"hf-vision:{folder}", "layer": -2}, "fusion": "projector", "task": "caption"}
    language = {"use": f"hf-causal:{folder}", "tokenizer": "bytes", "train": "lora:2"}
    model = mmzoo.build(language_model=language, pretrained=True, seed=0, **parts)
    said = model.generate(PICTURE, "a", max_new_tokens=4)
    model.save(tmp_path / "saved")
    loaded = mmzoo.load(tmp_path / "saved")
    assert loaded.generate(PICTURE, "a", max_new_tokens=4) == said
    lock = loaded.lock()
    assert lock["language_model"]["files"]["model.safetensors"] == lock["encoders.image"]["files"]["model.safetensors"]
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert not any("vision" in name or name.endswith("embed_tokens.weight") for name in file.keys())  # noqa: SIM118


_ON_THE_HUB = """
import json, sys
import torch
from mmzoo_transformers.language import HFCausal, LanguageOptions
with torch.device("meta"):
    part = HFCausal(LanguageOptions(variant="google/gemma-3-4b-it", tokenizer="bytes"))
part.load_pretrained()
ids = torch.arange(3, 17).reshape(2, 7)
with torch.no_grad():
    logits = part.eval().logits(part(part.embed(ids), torch.ones_like(ids)))
print(json.dumps([logits.double().abs().sum().item(), sorted(part.lock()["files"])]))
"""


@pytest.mark.slow
def test_from_the_hub_only_the_files_of_the_part_are_fetched(saved, tmp_path):
    whole, _ = saved("gemma3")
    folder = tmp_path / "hub" / "google" / "gemma-3-4b-it"
    whole.save_pretrained(folder, max_shard_size="30KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    text = {file for key, file in index.items() if "language_model" in key or "lm_head" in key}
    with serve(tmp_path / "hub") as hub:
        total, files = run_script(_ON_THE_HUB, env=environment(hub.url, tmp_path / "home"))
        fetched = {request.file for request in hub.requests if request.method == "GET" and request.status == 200}
    assert {name for name in files if name.endswith(".safetensors")} == text
    assert {name for name in fetched if name and name.endswith(".safetensors")} == text != set(index.values())
    with torch.no_grad():
        expected = whole(input_ids=IDS).logits
    assert total == pytest.approx(expected.double().abs().sum().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["kosmos-2.5", "pix2struct"])
def test_a_refused_tower_says_what_it_takes(kind):
    with pytest.raises(DoesNotFit, match="takes no plain pictures of one size but flattened_patches; choose"):
        HFVision(VisionOptions(config=tiny_config(kind)))
