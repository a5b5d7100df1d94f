"""The positions of the bins, and that an action falls into the nearest one."""

import numpy as np
import pytest
import torch

from tests.action.test_flow_head import SPEC, make_context
from tests.factory import make_policy, spec
from vla_mini.action.bins import BinsHead
from vla_mini.data.statistics import training_statistics
from vla_mini.normalization import Normalization
from vla_mini.parts import FitData

NO_PAD = torch.zeros(4, 3, dtype=torch.bool)


def certain(head: BinsHead, bin: int) -> BinsHead:
    """The head, with logits that give one bin all the probability, whatever the context."""
    last = head.layers[-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(50.0 * (torch.arange(head.bins) == bin).repeat(len(last.bias) // head.bins))
    return head


@pytest.mark.parametrize(("action", "bin"), [(-1.0, 0), (-7.0, 0), (0.26, 3), (0.24, 2), (1.0, 4)])
def test_an_action_falls_into_the_nearest_bin(action, bin):
    head = certain(BinsHead(SPEC, bins=5), bin)
    assert head.loss(make_context(4), torch.full((4, 3, 2), action), NO_PAD).max() < 1e-3
    torch.testing.assert_close(head.predict(make_context(4)), torch.full((4, 3, 2), -1 + 0.5 * bin))


def test_quantile_bins_follow_the_distribution_of_the_data():
    """Each bin gets about the same share of the actions, in each dimension."""
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(0, 0.3, 6000), rng.exponential(2.0, 6000)], axis=1).astype(np.float32)
    statistics = training_statistics(actions, actions)
    chunks = Normalization(statistics).action(torch.from_numpy(actions))
    head = BinsHead(SPEC, bins=21, spacing="quantile")
    head.fit(FitData(("lift it",), chunks.unflatten(0, (2000, 3)), statistics))
    expected = np.quantile(chunks.numpy(), np.linspace(0, 1, 21), axis=0).T
    torch.testing.assert_close(head.centres, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    nearest = (chunks[..., None] - head.centres).abs().argmin(-1)
    shares = torch.nn.functional.one_hot(nearest, 21).float().mean(0)
    assert shares.max() < 0.1  # with uniform bins, a few would get half of all actions


def test_quantile_bins_are_saved_with_the_policy(tmp_path):
    policy = make_policy(action=spec("action", "bins") | {"spacing": "quantile"})
    assert policy.action.centres.diff().std() > 1e-3  # fitted: not uniform
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert torch.equal(loaded.action.centres, policy.action.centres)


def test_logits_of_ten_thousand_do_not_overflow():
    """exp(1e4) is infinite in every dtype; loss and gradient are exact all the same."""
    head = BinsHead(SPEC, bins=5)
    torch.nn.init.zeros_(head.layers[-1].weight)
    logits = torch.tensor([1e4, -1e4, 0.0, 3.0, -1e4])
    head.layers[-1].bias.data.copy_(logits.repeat(6))
    loss = head.loss(make_context(4), torch.ones(4, 3, 2), NO_PAD)  # the last bin, the least probable
    assert (loss == 2e4).all()
    loss.mean().backward()
    expected = np.array([1, 0, 0, 0, -1]) / 6  # softmax minus one-hot target
    np.testing.assert_allclose(head.layers[-1].bias.grad, np.tile(expected, 6), atol=1e-7)
    torch.testing.assert_close(head.predict(make_context(4)), torch.full((4, 3, 2), -1.0))
