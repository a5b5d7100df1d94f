"""The joint trunk's masks, and where it looks."""

import pytest
import torch

from vla_mini.auxiliary.keyframe import KeyframeLoss
from vla_mini.trunk.joint import JointTrunk


def test_masked_words_are_not_looked_at():
    trunk = JointTrunk(grid=(2, 3), num_cameras=1, width=16, num_heads=2).eval()
    image, words, state = torch.randn(2, 6, 16), torch.randn(2, 4, 16), torch.randn(2, 16)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    before = trunk(image, words, mask, state).tokens
    words[:, 2:] = torch.randn(2, 2, 16)
    after = trunk(image, words, mask, state).tokens
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_order_matters_to_words_and_to_pixels():
    trunk = JointTrunk(grid=(2, 3), num_cameras=1, width=16, num_heads=2).eval()
    image, words, state = torch.randn(1, 6, 16), torch.randn(1, 4, 16), torch.randn(1, 16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    tokens = trunk(image, words, mask, state).tokens
    assert (trunk(image.flip(1), words, mask, state).tokens - tokens).abs().max() > 1e-3
    assert (trunk(image, words.flip(1), mask, state).tokens - tokens).abs().max() > 1e-3


def test_positions_are_where_the_readouts_look():
    trunk = JointTrunk(grid=(2, 3), num_cameras=2, width=16, num_heads=2).eval()
    image, words, state = torch.randn(2, 12, 16), torch.randn(2, 4, 16), torch.randn(2, 16)
    context = trunk(image, words, torch.ones(2, 4, dtype=torch.bool), state)
    weights = context.attention.exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    columns, rows = torch.tensor([-2 / 3, 0, 2 / 3]).repeat(4), torch.tensor([0.5, -0.5]).repeat_interleave(3).repeat(2)
    expected = torch.stack([weights @ columns, weights @ rows], dim=-1)
    torch.testing.assert_close(context.positions, expected)


def test_the_keyframe_loss_is_refused_where_a_trunk_looks_nowhere():
    with pytest.raises(ValueError, match="auxiliary=none"):
        KeyframeLoss(grid=(2, 3), num_cameras=1, keyframe_size=2, num_positions=0)
