"""Compare each fusion family with its well-known implementation, on the same random weights."""

import pytest
import torch
import transformers
from transformers.models.idefics.configuration_idefics import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

from mmzoo.errors import DoesNotFit
from mmzoo.interfaces import Features, FeatureSpec, LanguageSpec
from mmzoo_fusions.coattention import CoAttention
from mmzoo_fusions.concat import SingleStream
from mmzoo_fusions.cross import GatedLayer
from mmzoo_fusions.projector import Projector
from mmzoo_fusions.qformer import QFormer
from mmzoo_fusions.resampler import Resampler

DIM, VISION, TEXT = 32, 24, 5
CAUSAL = LanguageSpec("causal", DIM, 99, 64, True, 2)
BERT = LanguageSpec("bidirectional", DIM, 99, 64, False, 2)
SIZES = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}


@pytest.fixture(autouse=True)
def deterministic():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def make(cls, vision=VISION, tokens=16, language=CAUSAL, **options):
    fusion = cls(cls.Options(**options), FeatureSpec(vision, vision, tokens), language).eval()
    return stirred(fusion)


def stirred(module):
    """Give every parameter values that no initialisation gives, so that a missing one is noticed."""
    for parameter in module.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    return module.eval()


def visual(fusion, tokens):
    """Return what the fusion puts before an empty text for an image's tokens."""
    features = Features(tokens, tokens.mean(1))
    return fusion.early(features, torch.zeros(len(tokens), 0, DIM), torch.ones(len(tokens), 0, dtype=torch.long)).embeddings


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def copy(ours, *theirs):
    """Copy the weight, and the bias if there is one, of one linear layer or norm, or of several, concatenated."""
    ours.weight.copy_(torch.cat([layer.weight for layer in theirs]))
    if ours.bias is not None:
        ours.bias.copy_(torch.cat([layer.bias for layer in theirs]))


@pytest.mark.parametrize("bias", [True, False])
def test_llavas_projector(bias):
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1}
    vision = transformers.CLIPVisionConfig(hidden_size=VISION, **sizes)
    text = transformers.LlamaConfig(hidden_size=DIM, **sizes)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, multimodal_projector_bias=bias)
    theirs = LlavaMultiModalProjector(config).eval()
    ours = make(Projector, bias=bias)
    copy(ours.model[0], theirs.linear_1)
    copy(ours.model[2], theirs.linear_2)
    tokens = torch.randn(2, 16, VISION)
    close(visual(ours, tokens), theirs(tokens))


@pytest.mark.parametrize("side", [2, 4])
def test_nanovlms_and_idefics3s_pixel_shuffle(side):
    config = transformers.Idefics3Config(
        vision_config={"hidden_size": VISION},
        text_config={"model_type": "llama", "hidden_size": DIM, "pad_token_id": 0},
        scale_factor=side,
    )
    theirs = Idefics3Connector(config).eval()
    ours = make(Projector, tokens=64, layers="linear", bias=False, pixel_shuffle=side)
    copy(ours.model, theirs.modality_projection.proj)
    tokens = torch.randn(2, 64, VISION)
    assert ours.added_tokens == 64 // side**2
    close(visual(ours, tokens), theirs(tokens))
    # Tiles are shuffled one by one.
    tiled = make(Projector, tokens=64, layers="linear", bias=False, pixel_shuffle=side, tiles=2)
    tiled.load_state_dict(ours.state_dict())
    pieces = torch.randn(2, 5, 64, VISION)
    assert tiled.added_tokens == 5 * 64 // side**2
    close(visual(tiled, pieces.flatten(1, 2)), torch.stack([theirs(tile) for tile in pieces]).flatten(1, 2))


@pytest.mark.parametrize(
    ("tokens", "side", "message"),
    [
        (50, 2, "50 tokens are no square grid.*keep_class_token to false"),
        (49, 2, r"grid of 7 x 7 tokens; set it to 1, or"),
        (36, 4, r"grid of 6 x 6 tokens; set it to 1 or 2, or"),
        (None, 2, "depends on the image"),
    ],
)
def test_pixel_shuffle_refuses_tokens_that_are_not_a_grid(tokens, side, message):
    with pytest.raises(DoesNotFit, match=message):
        make(Projector, tokens=tokens, pixel_shuffle=side)


def test_flamingos_resampler():
    heads, width, latents = 3, 5, 4
    config = IdeficsConfig(
        vision_config={"embed_dim": VISION}, perceiver_config={"qk_layer_norms_perceiver": False}, use_resampler=True
    )
    theirs = stirred(IdeficsPerceiverResampler(config, VISION, 2, heads, width, latents))
    ours = make(Resampler, latents=latents, layers=2, heads=heads, head_dim=width, activation="relu")
    ours.perceiver.latents.copy_(theirs.latents)
    copy(ours.perceiver.norm, theirs.layer_norm)
    for layer, (attention, mlp) in zip(ours.perceiver.layers, theirs.blocks, strict=True):
        copy(layer.norm_tokens, attention.context_layer_norm)
        copy(layer.norm_latents, attention.latents_layer_norm)
        copy(layer.queries, attention.q_proj)
        copy(layer.keys_values, attention.k_proj, attention.v_proj)
        copy(layer.project, attention.output_proj)
        copy(layer.mlp[0], mlp.ln)
        copy(layer.mlp[1], mlp.fc)
        copy(layer.mlp[3], mlp.c_proj)
    tokens = torch.randn(2, 7, VISION)
    close(visual(ours, tokens), ours.project(theirs(tokens)))
    same = make(Resampler, vision=DIM)
    assert not list(same.project.parameters()), "where the dims are equal there is no projection"


def test_blip2s_q_former():
    vision = {"hidden_size": VISION, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    query = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.Blip2Config(
        vision_config={**vision, "image_size": 16, "patch_size": 8},
        qformer_config={**query, "encoder_hidden_size": VISION, "vocab_size": 99},
        text_config={"model_type": "opt", **SIZES, "word_embed_proj_dim": DIM},
        num_query_tokens=3,
    )
    theirs = stirred(transformers.Blip2ForConditionalGeneration(config))
    pixels = torch.randn(2, 3, 16, 16)
    tokens = theirs.vision_model(pixels).last_hidden_state
    expected = theirs.get_image_features(pixels).pooler_output  # through the projection
    ours = make(QFormer, tokens=tokens.shape[1], queries=3, dim=16, layers=3, heads=2)
    ours.model.load_state_dict(theirs.qformer.state_dict())
    ours.queries.copy_(theirs.query_tokens[0])
    copy(ours.project, theirs.language_projection)
    close(visual(ours, tokens), expected)


def test_flamingos_gated_cross_attention():
    """Compare after giving ours the differences of IDEFICS: RMS norms, a gated MLP and no norm on the visual tokens."""
    config = IdeficsConfig(
        hidden_size=DIM, num_attention_heads=4, intermediate_size=48, alpha_initializer="ones", alpha_type="float", dropout=0.0,
        vision_config={"embed_dim": VISION}, qk_layer_norms=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = stirred(IdeficsGatedCrossAttentionLayer(config, layer_idx=0))
    ours = stirred(GatedLayer(DIM, VISION, 4, 2))
    ours.norm1, ours.norm2, ours.norm_vision = theirs.input_layernorm, theirs.post_attention_layernorm, torch.nn.Identity()
    ours.mlp = theirs.mlp
    copy(ours.queries, theirs.cross_attn.q_proj)
    copy(ours.keys_values, theirs.cross_attn.k_proj, theirs.cross_attn.v_proj)
    copy(ours.project, theirs.cross_attn.o_proj)
    ours.gates.copy_(torch.cat([theirs.alpha_cross_attn, theirs.alpha_dense]))
    hidden, tokens = torch.randn(2, TEXT, DIM), torch.randn(2, 6, VISION)
    # The first position is before any image, the next two see one image of three tokens, the others both images.
    visible = torch.tensor([[0] * 6, [1] * 3 + [0] * 3, [1] * 3 + [0] * 3, [1] * 6, [1] * 6]).bool().expand(2, -1, -1)
    expected = theirs(
        hidden,
        image_hidden_states=tokens,
        image_attention_mask=torch.zeros(2, 1, TEXT, 6).masked_fill(~visible[:, None], torch.finfo(torch.float).min),
        cross_attention_gate=visible.any(-1).float(),
    )
    close(ours(hidden, tokens, visible), expected)


def test_visualberts_single_stream():
    """Compare with a table that has the same position for all visual tokens, as VisualBERT has; ours counts on."""
    theirs = stirred(transformers.VisualBertModel(transformers.VisualBertConfig(**SIZES, visual_embedding_dim=VISION)))
    bert = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    bert.load_state_dict({key: value for key, value in theirs.state_dict().items() if "visual" not in key})
    table = bert.embeddings.position_embeddings.weight
    table[TEXT:] = theirs.embeddings.visual_position_embeddings.weight[0]
    ours = make(SingleStream, language=BERT, norm=False)
    copy(ours.project, theirs.embeddings.visual_projection)
    types = theirs.embeddings.visual_token_type_embeddings.weight[1]
    ours.type_embedding.copy_(types - bert.embeddings.token_type_embeddings.weight[0])
    ids, tokens = torch.randint(99, (2, TEXT)), torch.randn(2, 7, VISION)
    mask = torch.ones_like(ids)
    fused = ours.early(Features(tokens, tokens.mean(1)), bert.get_input_embeddings()(ids), mask)
    states = bert(inputs_embeds=fused.embeddings, attention_mask=fused.mask).last_hidden_state
    close(states, theirs(input_ids=ids, attention_mask=mask, visual_embeds=tokens).last_hidden_state)


def test_lxmerts_cross_modality_layer():
    """Compare the whole layer, with an open gate and LXMERT's own attention and MLP of the text as the block after it."""
    config = transformers.LxmertConfig(hidden_size=DIM, num_attention_heads=4, intermediate_size=64)
    theirs = stirred(LxmertXLayer(config))
    ours = make(CoAttention, language=BERT, heads=4, mlp_ratio=2).layers[0]
    cross, itself = theirs.visual_attention, theirs.visn_self_att
    for attention, (inner, output) in (
        (ours.text, (cross.att, cross.output)),
        (ours.vision, (cross.att, cross.output)),
        (ours.itself, (itself.self, itself.output)),
    ):
        copy(attention.queries, inner.query)
        copy(attention.keys_values, inner.key, inner.value)
        copy(attention.project, output.dense)
        copy(attention.norm, output.LayerNorm)
    copy(ours.mlp[0], theirs.visn_inter.dense)
    copy(ours.mlp[2], theirs.visn_output.dense)
    copy(ours.norm, theirs.visn_output.LayerNorm)
    ours.gate.fill_(100.0)
    text, vision = torch.randn(2, TEXT, DIM), torch.randn(2, 7, DIM)
    words, tokens = torch.ones(2, 1, TEXT).bool(), torch.ones(2, 1, 7).bool()
    words[1, :, 3:] = False
    tokens[0, :, 5:] = False
    additive = [torch.zeros(2, 1, 1, mask.shape[2]).masked_fill(~mask[:, None], -1e9) for mask in (words, tokens)]
    expected = theirs(text, additive[0], vision, additive[1])
    crossed, new_vision = ours(text, vision, words, tokens)
    close(new_vision, expected[1])
    attended = theirs.lang_self_att(crossed, additive[0])[0]
    close(theirs.lang_output(theirs.lang_inter(attended), attended), expected[0])
    ours.gate.zero_()
    assert torch.equal(ours(text, vision, words, tokens)[0], text)
