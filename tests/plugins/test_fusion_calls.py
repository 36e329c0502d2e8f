"""Test what every fusion does with an example that lacks its input, and that what it reads belongs to the pass."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmzoo.interfaces import Features, FeatureSpec, Fusion, LanguageSpec
from mmzoo.interfaces.fusion import FusionCall, ModelPass, running
from mmzoo_fusions.coattention import CoAttention
from mmzoo_fusions.cross import GatedCrossAttention
from mmzoo_fusions.late import LateAttention
from mmzoo_fusions.plugin import mmzoo_fusions

ENTRIES = {entry.name: entry for entry in mmzoo_fusions() if entry.name != "none"}
ARCHITECTURES = ["causal", "seq2seq", "bidirectional"]
ALLOWED = [(name, a) for name, entry in ENTRIES.items() for a in ARCHITECTURES if a in entry.load().architectures]
SPEC = FeatureSpec(8, 8, 4)
DIM, TEXT, BLOCKS = 16, 5, 2


class Block(nn.Module):
    """Mix positions, as a block does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, hidden):
        return torch.tanh(self.linear(hidden)) + hidden.mean(1, keepdim=True)


class Tower(nn.Module):
    """Have blocks, as a language model has; ``recomputed`` runs each again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(BLOCKS))

    def blocks(self):
        return self.layers

    def decoder_blocks(self):
        return ()

    def forward(self, hidden, *, recomputed=False):
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False) if recomputed else layer(hidden)
        return hidden


def make(target, architecture="causal", **options):
    torch.manual_seed(0)
    encoder = {"image": SPEC} if target.joint else SPEC
    fusion = target(target.Options(**options), encoder, LanguageSpec(architecture, DIM, 99, 64, True, BLOCKS)).eval()
    for parameter in fusion.parameters():  # gates are open
        nn.init.normal_(parameter, std=0.3)
    tower = Tower()
    if fusion.needs_blocks:
        fusion.deep(tower)
    return fusion, tower


def features_of(masked):
    """Return features of two rows; the second has no image if ``masked``."""
    torch.manual_seed(1)
    tokens, pooled = torch.randn(2, 4, 8), torch.randn(2, 8)
    mask = torch.ones(2, 4, dtype=torch.long)
    mask[1] = not masked
    return Features(tokens, pooled, mask, pooled[:, None], mask.bool().any(1, keepdim=True))


def run(fusion, tower, features, embeddings, *, recomputed=False):
    """Return the fused states of the text and the fused input, as a model computes them."""
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    seen = {"image": features} if fusion.joint else features
    call = FusionCall(fusion.prepare(seen))
    with running(ModelPass({fusion: call})):
        fused = fusion.early(seen, embeddings, mask)
        call.mask = fused.mask
        hidden = tower(fused.embeddings, recomputed=recomputed)[:, fused.text]
        out = fusion.late(seen, hidden)
        if recomputed:
            out.square().sum().backward()
    return out, fused


@pytest.mark.parametrize(("name", "architecture"), ALLOWED)
def test_a_row_without_an_input_is_finite_and_the_others_are_as_before(name, architecture):
    fusion, tower = make(ENTRIES[name].load(), architecture, **ENTRIES[name].tiny)
    embeddings = torch.randn(2, TEXT, DIM)
    expected = run(fusion, tower, features_of(masked=False), embeddings)[0]
    out, fused = run(fusion, tower, features_of(masked=True), embeddings)
    assert out.isfinite().all()
    assert fused.embeddings.isfinite().all()
    torch.testing.assert_close(out[0], expected[0], atol=1e-5, rtol=1e-5)
    if fusion.needs_tokens and fused.memory is None and fused.mask.shape[1] == TEXT:  # no positions that only the mask hides
        assert not torch.allclose(out[1], expected[1], atol=1e-4), "the tokens of a missing input are read"
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("same_size", [True, False])
def test_late_attention_gives_a_row_without_tokens_only_its_own_state(same_size):
    spec = FeatureSpec(DIM, DIM, 4) if same_size else SPEC
    fusion = LateAttention(LateAttention.Options(heads=2), spec, LanguageSpec("causal", DIM, 99, 64, True, 0)).eval()
    tokens, hidden = torch.randn(3, 4, spec.dim), torch.randn(3, TEXT, DIM)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    out = fusion.late(Features(tokens, tokens.mean(1), mask), hidden)
    for row in range(3):
        real, state = fusion.norm_vision(tokens[row : row + 1, : int(mask[row].sum())]), hidden[row : row + 1]
        if row < 2:
            state = state + fusion.attention(state, real, real)[0]
        state = fusion.norm(state)
        torch.testing.assert_close(out[row : row + 1], state + fusion.mlp(state))


@pytest.mark.parametrize("target", [CoAttention, GatedCrossAttention])
def test_recomputed_blocks_see_the_same_features(target):
    options = {"heads": 2, "mlp_ratio": 2} | ({"resampler": 3, "resampler_layers": 1} if target is GatedCrossAttention else {})
    fusion, tower = make(target, "bidirectional", **options)
    embeddings, found = torch.randn(2, TEXT, DIM), []
    for recomputed in (False, True):
        fusion.zero_grad()
        out, _ = run(fusion, tower, features_of(masked=True), embeddings, recomputed=recomputed)
        if not recomputed:
            out.square().sum().backward()
        found.append({name: p.grad.clone() for name, p in fusion.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("target", [CoAttention, GatedCrossAttention])
def test_deep_hooks_change_nothing_outside_of_a_pass(target):
    fusion, tower = make(target, "bidirectional", heads=2)
    embeddings = torch.randn(2, TEXT, DIM)
    fused = run(fusion, tower, features_of(masked=False), embeddings)[0]
    bare = make(Fusion)[1]
    bare.load_state_dict(tower.state_dict())
    assert torch.equal(tower(embeddings), bare(embeddings))
    assert not torch.allclose(fused, bare(embeddings))


def test_co_attentions_late_step_reads_the_last_stream_or_else_the_first():
    fusion, tower = make(CoAttention, "bidirectional", heads=2)
    features, embeddings = features_of(masked=True), torch.randn(2, TEXT, DIM)
    call = FusionCall(fusion.prepare(features), mask=torch.ones(2, TEXT, dtype=torch.long))

    def expected(stream):
        pooled = torch.stack([stream[0].mean(0), torch.zeros(DIM)])
        return embeddings + torch.tanh(fusion.gate) * torch.tanh(fusion.pooler(pooled))[:, None]

    first = fusion.norm(fusion.project(features.tokens))
    with running(ModelPass({fusion: call})):
        torch.testing.assert_close(fusion.late(features, embeddings), expected(first))
        tower(embeddings)
        streams = call.kept["vision"]
        assert len(streams) == BLOCKS + 1
        torch.testing.assert_close(fusion.late(features, embeddings), expected(streams[-1]))
        again = streams[-1]
        tower(embeddings)
        assert streams[-1] is again


def test_a_resampler_runs_once_a_pass_and_masks_what_is_missing():
    fusion, _ = make(GatedCrossAttention, resampler=3, resampler_layers=1, heads=2)
    prepared = fusion.prepare(features_of(masked=True))
    assert prepared.tokens.shape == (2, 3, 8)
    assert prepared.mask.tolist() == [[True] * 3, [False] * 3]
    plain = features_of(masked=True)
    assert make(GatedCrossAttention, heads=2)[0].prepare(plain) is plain
    two = replace(plain, each=torch.stack([plain.pooled, plain.pooled], 1), present=torch.tensor([[True, True], [True, False]]))
    assert fusion.prepare(two).mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
