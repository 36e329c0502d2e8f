"""Checkpoints of other code for the tests: tiny and random, written as that code writes them, and what it computes with them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


# ClipCap


def clipcap(mapping):
    """Inputs, outputs and sizes of the original's run, and its whole state.

    The files lack GPT-2's ``c_attn.bias``, whose names end like those of its old mask buffers. Their maker drew every parameter
    from torch's generator at seed 0 in the model's order, after the initialisation of the model: the same draws are made here,
    and that each tensor in the file comes out equal shows that the missing ones are those that the outputs came from.
    """
    path = FIXTURES / f"clipcap-{mapping}.safetensors"
    with safe_open(path, "pt") as file:
        sizes = file.metadata()
    data = load_file(path)
    state = {name.removeprefix("state/"): value for name, value in data.items() if name.startswith("state/")}
    generator = torch.Generator().manual_seed(0)
    torch.rand({"mlp": 327136, "transformer": 342784}[mapping], generator=generator)  # what the initialisation drew
    for name, shape in _order(state, int(sizes["num_layers"])):
        drawn = torch.randn(shape, generator=generator) * 0.15
        assert torch.allclose(state.setdefault(name, drawn), drawn, atol=1e-6), name
    return data, sizes, state


def _order(state, layers):
    """The parameters in the order of the original's modules, GPT-2's first, with their shapes."""
    block = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    both = ("weight", "bias")
    names = ["wte.weight", "wpe.weight", *(f"h.{i}.{part}.{leaf}" for i in range(2) for part in block for leaf in both)]
    names = [f"gpt.transformer.{name}" for name in (*names, "ln_f.weight", "ln_f.bias")]
    mapper = ["norm1.weight", "norm1.bias", "attn.to_queries.weight", "attn.to_keys_values.weight"]
    mapper += ["attn.project.weight", "attn.project.bias", "norm2.weight", "norm2.bias"]
    mapper += [f"mlp.{part}.{leaf}" for part in ("fc1", "fc2") for leaf in both]
    if "clip_project.prefix_const" in state:
        own = [
            "prefix_const",
            *(f"transformer.layers.{i}.{part}" for i in range(layers) for part in mapper),
            "linear.weight",
            "linear.bias",
        ]
    else:
        own = [f"model.{i}.{leaf}" for i in (0, 2) for leaf in both]
    for name in [*names, *(f"clip_project.{name}" for name in own)]:
        yield name, state[name].shape if name in state else (state[name.replace("bias", "weight")].shape[1],)


# nanoVLM

NANO = {
    "vit_hidden_dim": 24,
    "vit_inter_dim": 48,
    "vit_patch_size": 4,
    "vit_img_size": 32,
    "vit_n_heads": 2,
    "vit_dropout": 0.0,
    "vit_n_blocks": 2,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "vit_model_type": "google/siglip-base-patch16-224",
    "lm_hidden_dim": 32,
    "lm_inter_dim": 48,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 5000,
    "lm_max_position_embeddings": 128,
    "lm_vocab_size": 264,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_dropout": 0.0,
    "lm_n_blocks": 2,
    "lm_attn_scaling": 1.0,
    "lm_use_tokens": False,
    "lm_tie_weights": True,
    "lm_tokenizer": "tokenizer",
    "mp_pixel_shuffle_factor": 2,
    "vlm_load_backbone_weights": True,
    "vlm_checkpoint_path": "checkpoints",
}


def nanovlm(folder, **changes):
    """A folder as `VisionLanguageModel.save_pretrained` writes it, and its state."""
    c = {**NANO, **changes}
    torch.manual_seed(0)
    state = {}

    def make(prefix, shapes):
        state.update({prefix + name: torch.randn(shape) * 0.15 for name, shape in shapes.items()})

    v, w, d, m = c["vit_hidden_dim"], c["vit_inter_dim"], c["lm_hidden_dim"], c["lm_inter_dim"]
    kv = d // c["lm_n_heads"] * c["lm_n_kv_heads"]
    patches = (c["vit_img_size"] // c["vit_patch_size"]) ** 2
    conv = {
        "conv.weight": (v, 3, c["vit_patch_size"], c["vit_patch_size"]),
        "conv.bias": (v,),
        "position_embedding": (1, patches, v),
    }
    make("vision_encoder.patch_embedding.", conv)
    for i in range(c["vit_n_blocks"]):
        pairs = {
            "ln1": (v,),
            "attn.qkv_proj": (3 * v, v),
            "attn.out_proj": (v, v),
            "ln2": (v,),
            "mlp.fc1": (w, v),
            "mlp.fc2": (v, w),
        }
        for name, shape in pairs.items():
            make(f"vision_encoder.blocks.{i}.{name}.", {"weight": shape, "bias": shape[:1]})
    make("vision_encoder.layer_norm.", {"weight": (v,), "bias": (v,)})
    make("MP.proj.", {"weight": (d, v * c["mp_pixel_shuffle_factor"] ** 2)})
    make("decoder.token_embedding.", {"weight": (c["lm_vocab_size"], d)})
    for i in range(c["lm_n_blocks"]):
        own = {"mlp.gate_proj": (m, d), "mlp.up_proj": (m, d), "mlp.down_proj": (d, m), "norm1": (d,), "norm2": (d,)}
        own |= {"attn.q_proj": (d, d), "attn.k_proj": (kv, d), "attn.v_proj": (kv, d), "attn.out_proj": (d, d)}
        make(f"decoder.blocks.{i}.", {f"{name}.weight": shape for name, shape in own.items()})
    make("decoder.norm.", {"weight": (d,)})
    if not c["lm_tie_weights"]:
        make("decoder.head.", {"weight": (c["lm_vocab_size"], d)})
    state["decoder.rotary_embd.inv_freq"] = torch.ones(d // c["lm_n_heads"] // 2)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(c))
    save_file(state, folder / "model.safetensors")
    return c, state


def nanovlm_logits(c, state, pixels, ids):
    """nanoVLM's published mathematics on one image [1, 3, height, width] before the text ``ids`` [text]: [text, vocab]."""

    def of(prefix):
        return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}

    def linear(x, weights, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def heads(x, count):
        return x.unflatten(-1, (count, -1)).transpose(0, 1)  # [heads, positions, channels]

    def norm(x, weights, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], c["vit_ln_eps"])

    def rms(x, weight):
        return x * (x.pow(2).mean(-1, keepdim=True) + c["lm_rms_eps"]).rsqrt() * weight

    vision = of("vision_encoder.")
    x = F.conv2d(pixels, vision["patch_embedding.conv.weight"], vision["patch_embedding.conv.bias"], stride=c["vit_patch_size"])
    x = (x.flatten(2).transpose(1, 2) + vision["patch_embedding.position_embedding"])[0]
    for i in range(c["vit_n_blocks"]):
        b = of(f"vision_encoder.blocks.{i}.")
        q, k, v = (heads(part, c["vit_n_heads"]) for part in linear(norm(x, b, "ln1"), b, "attn.qkv_proj").chunk(3, -1))
        attended = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(attended.transpose(0, 1).flatten(1), b, "attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, b, "ln2"), b, "mlp.fc1"), approximate="tanh"), b, "mlp.fc2")
    x = norm(x, vision, "layer_norm")
    side, s = int(x.shape[0] ** 0.5), c["mp_pixel_shuffle_factor"]
    squares = [x.view(side, side, -1)[r : r + s, k : k + s].flatten() for r in range(0, side, s) for k in range(0, side, s)]
    visual = F.linear(torch.stack(squares), state["MP.proj.weight"])
    x = torch.cat([visual, state["decoder.token_embedding.weight"][ids]])
    size = c["lm_hidden_dim"] // c["lm_n_heads"]
    angles = torch.arange(len(x))[:, None] / c["lm_re_base"] ** (torch.arange(0, size, 2) / size)

    def turn(h):  # pairs (i, i + size / 2), as Llama in transformers
        a, b = h.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    future = torch.ones(len(x), len(x)).triu(1).bool()
    for i in range(c["lm_n_blocks"]):
        b = of(f"decoder.blocks.{i}.")
        h = rms(x, b["norm1.weight"])
        q, k, v = (heads(linear(h, b, f"attn.{n}_proj"), c["lm_n_heads" if n == "q" else "lm_n_kv_heads"]) for n in "qkv")
        k, v = (part.repeat_interleave(c["lm_n_heads"] // c["lm_n_kv_heads"], 0) for part in (turn(k), v))
        scores = (turn(q) @ k.transpose(1, 2) / size**0.5).masked_fill(future, -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), b, "attn.out_proj")
        h = rms(x, b["norm2.weight"])
        x = x + linear(F.silu(linear(h, b, "mlp.gate_proj")) * linear(h, b, "mlp.up_proj"), b, "mlp.down_proj")
    head = state["decoder.token_embedding.weight"] if c["lm_tie_weights"] else state["decoder.head.weight"]
    return F.linear(rms(x, state["decoder.norm.weight"])[len(visual) :], head)


# LLaVA


def llava(folder, *, vision="clip", text="llama", strategy="default", layer=-2, bias=True, tied=False):
    """The library's model, saved in ``folder`` with its processor."""
    import transformers

    from mmzoo_transformers.bytes import byte_tokenizer

    torch.manual_seed(0)
    sizes = {key: value for key, value in CLIP.items() if key != "model_type"}
    towers = {
        "clip": (transformers.CLIPVisionConfig(**sizes), transformers.CLIPImageProcessor, {"shortest_edge": 32}, 1),
        "siglip": (transformers.SiglipVisionConfig(**sizes), transformers.SiglipImageProcessor, {"height": 32, "width": 32}, 0),
    }
    tower, processor, size, extra = towers[vision]
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([transformers.AddedToken("<image>", special=True, normalized=False)])
    language = transformers.AutoConfig.for_model(text, **TEXT, tie_word_embeddings=tied)
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        multimodal_projector_bias=bias,
        tie_word_embeddings=tied,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    crop = {"crop_size": {"height": 32, "width": 32}} if vision == "clip" else {}
    transformers.LlavaProcessor(
        image_processor=processor(size=size, **crop),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
    ).save_pretrained(folder)
    return model
