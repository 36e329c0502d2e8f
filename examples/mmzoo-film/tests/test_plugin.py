"""Run each check of the contract with mmzoo on each entry, then test what is special to FiLM."""

import pytest
import torch
from mmzoo import testing
from mmzoo.api import Features, FeatureSpec, LanguageSpec

from mmzoo_film.fusion import FilmBlock, FilmFusion

PLUGIN = "mmzoo-film"


@pytest.mark.parametrize("case", testing.cases(PLUGIN), ids=str)
def test_contract(case):
    case.run()


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    vision = FeatureSpec(dim=6, pooled_dim=6, tokens=5)
    language = LanguageSpec("causal", dim=4, vocab_size=10, max_length=None, generates=False, blocks=0)
    return FilmFusion(FilmFusion.Options(channels=8, blocks=2), vision, language)


def features(tokens, mask=None):
    return Features(tokens, tokens.mean(1), mask)


def test_a_block_is_the_papers_formula():
    torch.manual_seed(0)
    block = FilmBlock(channels=8, dim=4)
    tokens, states = torch.rand(2, 1, 5, 8), torch.randn(2, 3, 4)
    gamma, beta = block.modulation(states)[..., :8], block.modulation(states)[..., 8:]
    modulated = block(tokens, states)
    for position in range(3):
        scaled = gamma[:, position, None] * block.features(tokens[:, 0]) + beta[:, position, None]
        torch.testing.assert_close(modulated[:, position], tokens[:, 0] + scaled.relu())


def test_a_block_with_gamma_and_beta_zero_is_the_identity():
    block = FilmBlock(channels=8, dim=4)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    tokens = torch.rand(2, 1, 5, 8)
    assert torch.equal(block(tokens, torch.randn(2, 3, 4)), tokens.expand(2, 3, 5, 8))


def test_the_text_changes_the_picture(fusion):
    picture, hidden = features(torch.randn(2, 5, 6)), torch.randn(2, 3, 4, requires_grad=True)
    change = fusion.late(picture, hidden) - hidden  # without the skip connection
    change.sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).all()
    for block in fusion.blocks():
        assert block.modulation.weight.grad.abs().sum() > 0


def test_masked_tokens_change_nothing(fusion):
    tokens, hidden = torch.randn(2, 5, 6), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    fused = fusion.late(features(tokens, mask), hidden)
    torch.testing.assert_close(fused[1:], fusion.late(features(tokens[1:, :2]), hidden[1:]))
    without_tokens = fusion.late(features(tokens, torch.zeros_like(mask)), hidden)
    assert without_tokens.isfinite().all()


def test_the_order_of_tokens_and_the_batch_change_nothing(fusion):
    tokens, hidden = torch.randn(2, 5, 6), torch.randn(2, 3, 4)
    fused = fusion.late(features(tokens), hidden)
    torch.testing.assert_close(fusion.late(features(tokens.flip(1)), hidden), fused)
    torch.testing.assert_close(fusion.late(features(tokens[1:]), hidden[1:]), fused[1:])
