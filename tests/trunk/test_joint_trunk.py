"""The joint trunk's masks, and its attention maps."""

import pytest
import torch

from tests.factory import make_policy
from vla_mini.parts import TrunkSpec
from vla_mini.trunk.joint import JointTrunk

SPEC = TrunkSpec(grid=(2, 3), num_cameras=1)


def test_masked_words_have_no_effect():
    trunk = JointTrunk(SPEC, width=16, num_heads=2).eval()
    image, words, state = torch.randn(2, 6, 16), torch.randn(2, 4, 16), torch.randn(2, 16)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    before = trunk(image, words, mask, state).tokens
    words[:, 2:] = torch.randn(2, 2, 16)
    after = trunk(image, words, mask, state).tokens
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_the_order_of_words_and_of_image_tokens_matters():
    trunk = JointTrunk(SPEC, width=16, num_heads=2).eval()
    image, words, state = torch.randn(1, 6, 16), torch.randn(1, 4, 16), torch.randn(1, 16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    tokens = trunk(image, words, mask, state).tokens
    assert (trunk(image.flip(1), words, mask, state).tokens - tokens).abs().max() > 1e-3
    assert (trunk(image, words.flip(1), mask, state).tokens - tokens).abs().max() > 1e-3


def test_attention_maps_are_probabilities_and_their_mean_position_reaches_the_context():
    trunk = JointTrunk(TrunkSpec(grid=(2, 3), num_cameras=2), width=16, num_heads=2).eval()
    image, words, state = torch.randn(2, 12, 16), torch.randn(2, 4, 16), torch.randn(2, 16)
    inputs = (image, words, torch.ones(2, 4, dtype=torch.bool), state)
    context = trunk(*inputs)
    weights = context.attention.exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    columns, rows = torch.tensor([-2 / 3, 0, 2 / 3]).repeat(4), torch.tensor([0.5, -0.5]).repeat_interleave(3).repeat(2)
    positions = torch.stack([weights @ columns, weights @ rows], dim=-1)
    embedded = trunk.positional_embedding(positions)
    trunk.positional_embedding.forward = lambda positions: torch.zeros(2, 4, 16)
    torch.testing.assert_close(context.tokens, trunk(*inputs).tokens + embedded)


def test_the_keyframe_loss_is_refused_for_a_trunk_without_attention_maps():
    class MeanTrunk(JointTrunk):
        def __init__(self, spec: TrunkSpec):
            super().__init__(spec)
            self.num_queries = 0

    make_policy(trunk=MeanTrunk, auxiliary={})
    with pytest.raises(ValueError, match="auxiliary=none"):
        make_policy(trunk=MeanTrunk)
