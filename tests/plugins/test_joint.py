"""Test the joint fusions against their formulas, written out in plain torch, and what all of them must do: stay finite without an
input, keep rows and positions apart, leak no text backwards, and train every weight."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmzoo.errors import DoesNotFit
from mmzoo.interfaces import Features, FeatureSpec, LanguageSpec
from mmzoo_fusions.bilinear import BilinearFusion
from mmzoo_fusions.convolution import Convolution
from mmzoo_fusions.crossmodal import Block, CrossModal, sinusoids
from mmzoo_fusions.gated import GatedFusion
from mmzoo_fusions.graph import GraphAttention, GraphLayer
from mmzoo_fusions.tensor import LowRankFusion, TensorFusion

DIM, TEXT = 8, 5
SPECS = {
    "image": FeatureSpec(6, 5, 4),
    "audio": FeatureSpec(7, 9, 3, "audio"),
    "video": FeatureSpec(10, 4, 3, "video"),
}
LATE = {
    "tensor": (TensorFusion, {"width": 3}),
    "low rank": (LowRankFusion, {"rank": 3}),
    "gated": (GatedFusion, {}),
    "mfb": (BilinearFusion, {"width": 6, "rank": 2}),
    "mutan": (BilinearFusion, {"form": "mutan", "width": 6, "rank": 2}),
}
EARLY = {
    "cross-modal": (CrossModal, {"width": 4, "heads": 2, "layers": 2}),
    "graph": (GraphAttention, {"width": 6, "heads": 2, "layers": 2}),
    "convolution": (Convolution, {"kernel": 7, "layers": 2}),
}
ARCHITECTURES = ["causal", "seq2seq", "bidirectional"]
ALLOWED = [(name, a) for name, (cls, _) in EARLY.items() for a in ARCHITECTURES if a in cls.architectures]
COUNTS = pytest.mark.parametrize("count", [1, 2, 3])
SEVERAL = pytest.mark.parametrize("count", [2, 3])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name, count, architecture="bidirectional", *, stirred=True, **options):
    """Build a fusion of ``count`` encoders in double precision; ``stirred`` gives every parameter a value of its own."""
    cls, tiny = {**LATE, **EARLY}[name]
    specs = dict(list(SPECS.items())[:count])
    fusion = cls(cls.Options(**{**tiny, **options}), specs, LanguageSpec(architecture, DIM, 99, 64, False, 2)).double()
    for parameter in fusion.parameters() if stirred else ():
        nn.init.normal_(parameter, std=0.5)
    return fusion


def features_of(count):
    """Return features of two rows: each first row lacks a token, and the second lacks the whole last input."""
    features = {}
    for name, spec in list(SPECS.items())[:count]:
        mask = torch.ones(2, spec.tokens, dtype=torch.long)
        mask[0, -1] = 0
        mask[1] = name != list(SPECS)[count - 1]
        tokens, pooled = torch.randn(2, spec.tokens, spec.dim).double(), torch.randn(2, spec.pooled_dim).double()
        features[name] = Features(tokens, pooled, mask, pooled[:, None], mask.bool().any(1, keepdim=True))
    return features


def text_of():
    mask = torch.ones(2, TEXT, dtype=torch.long)
    mask[1, 3:] = 0
    return torch.randn(2, TEXT, DIM).double(), mask


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# Late: formulas


def normed(norm, value):
    return F.layer_norm(value, value.shape[-1:], norm.weight, norm.bias)


def inputs(features, hidden):
    """Return every encoder's pooled features and the states, [batch, positions, channels]."""
    return [*(one.pooled[:, None].expand(-1, hidden.shape[1], -1) for one in features.values()), hidden]


def projections(fusion):
    return [*fusion.encoders.values(), fusion.text]


def with_one(value):
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def outer(sides):
    """Return the tensor of all products of the sides' channels, [batch, positions, channels, channels, ...]."""
    letters = "ijkl"[: len(sides)]
    return torch.einsum(",".join(f"bp{letter}" for letter in letters) + f"->bp{letters}", *sides)


@COUNTS
def test_tensor_fusion_is_a_linear_layer_on_the_outer_product(count):
    fusion, features, hidden = make("tensor", count), features_of(count), text_of()[0]
    sides = [project(value) for project, value in zip(projections(fusion), inputs(features, hidden), strict=True)]
    product = outer([with_one(side) for side in sides])
    assert product.shape[2:] == (4,) * (count + 1)
    close(fusion.late(features, hidden), product.flatten(2) @ fusion.out.weight.T + fusion.out.bias)


@COUNTS
def test_low_rank_fusion_is_the_contraction_with_the_whole_tensor(count):
    fusion, features, hidden = make("low rank", count), features_of(count), text_of()[0]
    sides, factors = [], []
    for (norm, linear), value in zip(projections(fusion), inputs(features, hidden), strict=True):
        sides.append(with_one(normed(norm, value)))
        factors.append(torch.cat([linear.weight, linear.bias[:, None]], 1).view(3, DIM, -1))
    letters = "ijkl"[: len(sides)]
    weights = torch.einsum(",".join(f"rd{letter}" for letter in letters) + f"->d{letters}", *factors)
    close(fusion.late(features, hidden), outer(sides).flatten(2) @ weights.flatten(1).T + fusion.bias)


@COUNTS
def test_gated_fusion_is_a_gated_multimodal_unit(count):
    fusion, features, hidden = make("gated", count), features_of(count), text_of()[0]
    norms = [*fusion.norms.values(), fusion.norm]
    sides = [normed(norm, value) for norm, value in zip(norms, inputs(features, hidden), strict=True)]
    expected = 0
    for i, (layer, side) in enumerate(zip(projections(fusion), sides, strict=True)):
        gate = torch.sigmoid(torch.cat(sides, -1) @ fusion.gates.weight[i * DIM : (i + 1) * DIM].T)
        expected = expected + gate * torch.tanh(side @ layer.weight.T)
    close(fusion.late(features, hidden), expected)


@COUNTS
def test_mfb_sums_products_and_normalises(count):
    fusion, features, hidden = make("mfb", count), features_of(count), text_of()[0]
    product = 1
    for project, value in zip(projections(fusion), inputs(features, hidden), strict=True):
        product = product * project(value)
    pooled = torch.stack([product[..., 2 * i] + product[..., 2 * i + 1] for i in range(6)], -1)
    pooled = torch.sign(pooled) * torch.sqrt(torch.abs(pooled))
    pooled = pooled / torch.linalg.vector_norm(pooled, dim=-1, keepdim=True)
    close(fusion.late(features, hidden), fusion.out(pooled))


@COUNTS
def test_mutan_is_a_tucker_decomposition_with_a_core_of_low_rank(count):
    fusion, features, hidden = make("mutan", count), features_of(count), text_of()[0]
    sides, factors = [], []
    for project, factor, value in zip(projections(fusion), fusion.factors, inputs(features, hidden), strict=True):
        sides.append(with_one(torch.tanh(project(value))))
        factors.append(torch.cat([factor.weight, factor.bias[:, None]], 1).view(6, 2, -1))
    letters = "ijkl"[: len(sides)]
    core = torch.einsum(",".join(f"zr{letter}" for letter in letters) + f"->z{letters}", *factors)
    close(fusion.late(features, hidden), fusion.out(outer(sides).flatten(2) @ core.flatten(1).T))


def test_mfb_has_a_finite_slope_where_a_product_is_zero():
    fusion = make("mfb", 1)
    nn.init.zeros_(fusion.text[1].weight)
    nn.init.zeros_(fusion.text[1].bias)
    fusion.late(features_of(1), text_of()[0]).sum().backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


# Late: what all must do


@pytest.mark.parametrize("name", LATE)
@COUNTS
def test_late_fusions_keep_positions_and_rows_apart(name, count):
    fusion, features, hidden = make(name, count), features_of(count), text_of()[0]
    assert fusion.joint
    assert fusion.places() == ["late"]
    together = fusion.late(features, hidden)
    assert together.shape == hidden.shape
    for row in range(2):
        one = {name: value.rows(torch.tensor([row])) for name, value in features.items()}
        for position in range(TEXT):
            alone = fusion.late(one, hidden[row : row + 1, position : position + 1])
            close(alone[0, 0], together[row, position])
    for name in features:
        other = {**features, name: Features(features[name].tokens, torch.randn_like(features[name].pooled), None)}
        assert not torch.allclose(fusion.late(other, hidden), together), f"{name} has no effect"


@pytest.mark.parametrize("name", LATE)
@COUNTS
def test_late_fusions_train_every_weight(name, count):
    fusion = make(name, count, stirred=False)
    out = fusion.late(features_of(count), text_of()[0])
    assert out.isfinite().all()
    (out * torch.randn_like(out)).sum().backward()
    assert not [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


@pytest.mark.parametrize("name", LATE)
def test_the_scale_of_features_and_states_changes_nothing(name):
    fusion, features, hidden = make(name, 2), features_of(2), text_of()[0]
    scaled = {name: Features(one.tokens, 100 * one.pooled, one.mask) for name, one in features.items()}
    torch.testing.assert_close(fusion.late(scaled, 0.1 * hidden), fusion.late(features, hidden), atol=2e-3, rtol=1e-2)


def test_a_tensor_that_is_too_large_is_refused():
    with pytest.raises(DoesNotFit, match=r"fusion.width: 100: the product of 3 sides has 1030301 numbers.*set it to 63 or less"):
        make("tensor", 2, width=100)
    make("tensor", 2, width=63)


# Early: formulas


def opened(fusion, embeddings, change):
    return embeddings + torch.tanh(fusion.gate) * change


def tokens_of(fusion, features, embeddings):
    return [*(fusion.encoders[name](one.tokens) for name, one in features.items()), fusion.text(embeddings)]


def masks_of(features, mask):
    return [*(one.mask.bool() for one in features.values()), mask.bool()]


def plain_attention(block):
    """Return torch's attention with the weights of a block."""
    attention = nn.MultiheadAttention(block.project.in_features, block.heads, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.queries.weight, block.keys_values.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.queries.bias, block.keys_values.bias]))
        attention.out_proj.load_state_dict(block.project.state_dict())
    return attention


def plain_block(block, states, source, real):
    query, key = normed(block.norm1, states), normed(block.norm1, source)
    states = states + plain_attention(block)(query, key, key, key_padding_mask=~real, need_weights=False)[0]
    first, _, last = block.mlp
    return states + last(torch.relu(first(normed(block.norm2, states))))


def test_a_cross_modal_block_is_mults():
    block = Block(12, 3).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    states, source, real = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double(), torch.ones(2, 7).bool()
    real[1, 4:] = False
    close(block(states, source, real[:, None]), plain_block(block, states, source, real))


def test_positions_are_sinusoids_of_the_real_positions():
    real = torch.tensor([[False, True, True, True]])
    expected = torch.zeros(4, 6).double()
    for position in range(3):
        for i in range(3):
            angle = torch.tensor(position / 10_000 ** (i / 3)).double()
            expected[position + 1, i], expected[position + 1, 3 + i] = angle.sin(), angle.cos()
    expected[0] = expected[1]  # padding
    close(sinusoids(real, expected[None]), expected[None])
    assert sinusoids(real, torch.zeros(1, 4, 5)).shape == (1, 4, 5)


@SEVERAL
def test_cross_modal_fusion_is_mult(count):
    fusion, features, (embeddings, mask) = make("cross-modal", count), features_of(count), text_of()
    features = {name: one.rows(torch.tensor([0])) for name, one in features.items()}  # torch's attention to nothing is NaN
    embeddings, mask = embeddings[:1], mask[:1]
    reals = masks_of(features, mask)
    streams = [x + sinusoids(real, x) for x, real in zip(tokens_of(fusion, features, embeddings), reals, strict=True)]
    results = []
    for target, module in enumerate(fusion.targets):
        crossed = []
        for stack, source in zip(module.cross, [i for i in range(count + 1) if i != target], strict=True):
            states = streams[target]
            for block in stack.layers:
                states = plain_block(block, states, streams[source], reals[source])
            crossed.append(normed(stack.norm, states))
        merged = torch.cat(crossed, -1)
        for block in module.itself.layers:
            merged = plain_block(block, merged, merged, reals[target])
        results.append(normed(module.itself.norm, merged))
    summaries = [r[0, real[0]].mean(0).expand(1, TEXT, -1) for r, real in zip(results[:-1], reals, strict=False)]
    change = fusion.out(torch.cat([*summaries, results[-1]], -1))
    fused = fusion.early(features, embeddings, mask)
    close(fused.embeddings, opened(fusion, embeddings, change))
    assert torch.equal(fused.mask, mask)
    assert fusion.added_tokens == 0


def neighbours(i, real, inputs, causal):
    """Return the nodes that node ``i`` of one row reads."""
    allowed = [j for j in range(len(real)) if not causal or (j < inputs if i < inputs else j <= i)]
    return [j for j in allowed if real[j] or j == i]


def plain_graph_layer(layer, nodes, real, inputs, causal):
    out = torch.zeros_like(nodes)
    width = nodes.shape[-1] // layer.heads
    for row in range(nodes.shape[0]):
        for head in range(layer.heads):
            span = slice(head * width, (head + 1) * width)
            values = nodes[row] @ layer.values.weight[span].T
            vector = torch.cat([layer.attention[0, head], layer.attention[1, head]])
            for i in range(nodes.shape[1]):
                read = neighbours(i, real[row], inputs, causal)
                scores = torch.stack([F.leaky_relu(vector @ torch.cat([values[i], values[j]]), 0.2) for j in read])
                weights = torch.exp(scores) / torch.exp(scores).sum()
                out[row, i, span] = F.elu(sum(w * values[j] for w, j in zip(weights, read, strict=True)))
    return out


@pytest.mark.parametrize("architecture", ["causal", "bidirectional"])
@SEVERAL
@torch.no_grad()
def test_graph_fusion_is_graph_attention(count, architecture):
    fusion, features, (embeddings, mask) = make("graph", count, architecture), features_of(count), text_of()
    nodes, real = torch.cat(tokens_of(fusion, features, embeddings), 1), torch.cat(masks_of(features, mask), 1)
    start = nodes.shape[1] - TEXT
    for layer in fusion.layers:
        nodes = plain_graph_layer(layer, nodes, real, start, architecture == "causal")
    fused = fusion.early(features, embeddings, mask)
    close(fused.embeddings, opened(fusion, embeddings, fusion.out(nodes[:, start:])))
    assert torch.equal(fused.mask, mask)
    assert fusion.added_tokens == 0


def test_a_graph_layer_has_the_papers_start():
    layer = GraphLayer(6, 2)
    assert layer.attention.shape == (2, 2, 3)
    assert layer.attention.abs().max() > 0


@pytest.mark.parametrize("architecture", ["causal", "bidirectional"])
@pytest.mark.parametrize("kernel", [1, 2, 3])
@SEVERAL
@torch.no_grad()
def test_convolution_reads_the_real_positions_only(count, architecture, kernel):
    fusion = make("convolution", count, architecture, kernel=kernel)
    features, (embeddings, mask) = features_of(count), text_of()
    states, real = torch.cat(tokens_of(fusion, features, embeddings), 1), torch.cat(masks_of(features, mask), 1)
    start = states.shape[1] - TEXT
    fused = fusion.early(features, embeddings, mask)
    assert fused.text == slice(start, start + TEXT)
    assert torch.equal(fused.mask.bool(), real)
    assert fusion.added_tokens == start == sum(spec.tokens for spec in list(SPECS.values())[:count])
    left = kernel - 1 if architecture == "causal" else (kernel - 1) // 2
    for row in range(2):
        places = real[row].nonzero()[:, 0].tolist()
        x = [states[row, i] for i in places]
        for layer in fusion.layers:
            y = []
            for i in range(len(x)):
                wide = layer.bias.clone()
                for k in range(kernel):
                    if 0 <= i + k - left < len(x):
                        wide += layer.weight[:, :, k] @ x[i + k - left]
                y.append((x[i] + wide[:DIM] * torch.sigmoid(wide[DIM:])) / 2**0.5)
            x = y
        for place, value in zip(places, x, strict=True):
            text = place >= start
            close(fused.embeddings[row, place], opened(fusion, embeddings[row, place - start], value) if text else value)


def test_the_convolved_tokens_are_unknown_if_one_encoders_are():
    specs = {**SPECS, "audio": FeatureSpec(7, 9, None, "audio")}
    fusion = Convolution(Convolution.Options(), specs, LanguageSpec("causal", DIM, 99, 64, True, 2))
    assert fusion.added_tokens is None


# Early: what all must do


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
@COUNTS
def test_early_fusions_start_from_the_texts_embeddings(name, architecture, count):
    fusion, (embeddings, mask) = make(name, count, architecture, stirred=False), text_of()
    assert fusion.joint
    assert fusion.needs_tokens
    assert fusion.places() == ["early"]
    fused = fusion.early(features_of(count), embeddings, mask)
    assert torch.equal(fused.embeddings[:, fused.text], embeddings)


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
@COUNTS
def test_early_fusions_train_every_weight_without_an_input(name, architecture, count):
    fusion, (embeddings, mask) = make(name, count, architecture), text_of()
    fused = fusion.early(features_of(count), embeddings, mask)
    assert fused.embeddings.isfinite().all()
    kept = fused.embeddings * torch.randn_like(fused.embeddings) * fused.mask[..., None]
    kept.sum().backward()
    unmoved = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # One bias adds the same to all scores of a softmax: that of keys.
    assert not [n for n in unmoved if not n.endswith("keys_values.bias")]
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
@torch.no_grad()
def test_a_row_without_any_input_or_text_is_finite(name, architecture):
    fusion, features, (embeddings, mask) = make(name, 2, architecture), features_of(2), text_of()
    empty = {n: Features(one.tokens, one.pooled, torch.zeros_like(one.mask)) for n, one in features.items()}
    assert fusion.early(empty, embeddings, mask).embeddings.isfinite().all()
    assert fusion.early(empty, embeddings, torch.zeros_like(mask)).embeddings.isfinite().all()


def real_rows(fused):
    return [(row[real.bool()]) for row, real in zip(fused.embeddings, fused.mask, strict=True)]


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
@SEVERAL
@torch.no_grad()
def test_padding_and_other_rows_change_nothing(name, architecture, count):
    fusion, features, (embeddings, mask) = make(name, count, architecture), features_of(count), text_of()
    expected = real_rows(fusion.early(features, embeddings, mask))
    noisy = {
        n: Features(torch.where(one.mask[..., None].bool(), one.tokens, 9.0), one.pooled, one.mask) for n, one in features.items()
    }
    text = torch.where(mask[..., None].bool(), embeddings, 9.0)
    left = mask.argsort(dim=1, stable=True)
    moved = text.gather(1, left[..., None].expand_as(text)), mask.gather(1, left)
    wide = {
        n: Features(F.pad(one.tokens, (0, 0, 2, 1), value=9.0), one.pooled, F.pad(one.mask, (2, 1))) for n, one in noisy.items()
    }
    for changed in (fusion.early(noisy, text, mask), fusion.early(wide, *moved)):
        for ours, theirs in zip(real_rows(changed), expected, strict=True):
            close(ours, theirs)
    for row, theirs in enumerate(expected):
        index = torch.tensor([row])
        one = {n: value.rows(index) for n, value in features.items()}
        close(real_rows(fusion.early(one, embeddings[index], mask[index]))[0], theirs)
    for n in features:
        other = {**features, n: Features(torch.randn_like(features[n].tokens), features[n].pooled, features[n].mask)}
        changed = fusion.early(other, embeddings, mask).embeddings[0, -TEXT:]
        assert not torch.allclose(changed, expected[0][-TEXT:], atol=1e-6), f"{n} has no effect"


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
@SEVERAL
@torch.no_grad()
def test_no_text_leaks_to_earlier_positions(name, architecture, count):
    fusion, features = make(name, count, architecture), features_of(count)
    embeddings, mask = text_of()[0], torch.ones(2, TEXT, dtype=torch.long)

    def fused(last):
        changed = embeddings.clone()
        changed[:, last:] += torch.randn(2, TEXT - last, DIM)
        one = fusion.early(features, changed, mask)
        return one.embeddings[:, : one.text.start + last]

    for last in range(TEXT):
        same = torch.equal(fused(last), fused(last))
        assert same == (architecture != "bidirectional" or (last == 0 and name != "convolution"))
    assert not torch.equal(fused(TEXT)[:, -1:], embeddings[:, -1:])


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
def test_early_fusions_run_in_half_precision(name, architecture):
    fusion, features, (embeddings, mask) = make(name, 2, architecture), features_of(2), text_of()
    whole = fusion.early(features, embeddings, mask).embeddings

    def cast(dtype):
        return {n: Features(one.tokens.to(dtype), one.pooled.to(dtype), one.mask) for n, one in features.items()}

    with torch.autocast("cpu", torch.bfloat16):
        mixed = fusion.float().early(cast(torch.float), embeddings.float(), mask).embeddings
    half = fusion.bfloat16().early(cast(torch.bfloat16), embeddings.bfloat16(), mask).embeddings
    assert mixed.dtype == torch.float
    assert half.dtype == torch.bfloat16
    for other in (mixed, half):
        torch.testing.assert_close(other.double(), whole, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("name", ["cross-modal", "graph"])
def test_heads_must_divide_the_width(name):
    with pytest.raises(DoesNotFit, match="fusion.heads: 3 heads do not divide dim 4"):
        make(name, 2, width=4, heads=3)


def test_layers_differ():
    """Check that the tests above see each layer: no two have the same weights."""
    layers = make("convolution", 2).layers
    assert all(not torch.equal(a.weight, b.weight) for a, b in pairwise(layers))
