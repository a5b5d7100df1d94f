"""The joint trunk's masks, and what it cannot do."""

import pytest
import torch

from tests.factory import make_policy
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


def test_the_keyframe_loss_is_refused():
    with pytest.raises(ValueError, match="auxiliary=none"):
        make_policy(trunk="joint", auxiliary="keyframe")
