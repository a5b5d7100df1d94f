"""Statistics are broadcast, unnormalizing is the inverse, and what does not move in the data is never divided by."""

import numpy as np
import pytest
import torch

from vla_mini.data.statistics import training_statistics
from vla_mini.normalization import Normalization, NormalizationSettings
from vla_mini.utils.features import Features, FeatureStatistics, Statistics

LOW, HIGH = np.array([-1, 0, 2], np.float32), np.array([3, 0, 4], np.float32)  # the second feature is constant
MEAN, STD = np.array([0.5, 0, 3], np.float32), np.array([2, 0, 0.1], np.float32)


@pytest.mark.parametrize("shape", [(5,), (5, 8), (2, 5, 8)])
def test_statistics_are_broadcast(shape):
    statistics = FeatureStatistics(LOW, HIGH, MEAN, STD, LOW, HIGH)
    normalization = Normalization(Statistics(statistics, statistics))
    values = torch.randn(*shape, 3)
    each = values.reshape(-1, 3).numpy()
    state, action = (each - MEAN) / [2, np.inf, 0.1], (each - (LOW + HIGH) / 2) / [2, np.inf, 1]
    np.testing.assert_allclose(normalization.state(values).reshape(-1, 3), state, rtol=1e-5)
    np.testing.assert_allclose(normalization.action(values).reshape(-1, 3), action, rtol=1e-5)
    back = normalization.unnormalize_action(normalization.action(values))
    torch.testing.assert_close(back[..., ::2], values[..., ::2])
    assert (back[..., 1] == 0).all()  # an action that never was anything else


def made(states, actions, **settings):
    features = Features(("top",), (4, 4), tuple("xyz"[: states.shape[1]]), tuple("xyz"[: actions.shape[1]]), 10)
    statistics = training_statistics(np.float32(states), np.float32(actions))
    return Normalization(statistics, settings=NormalizationSettings(**settings), features=features)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
@pytest.mark.parametrize("value", [0.0, 0.5, 90.0, -1e6, 1e-30])
def test_a_joint_that_stood_still_says_nothing_wherever_it_is_when_acting(mode, value):
    rng = np.random.default_rng(0)
    states = np.stack([rng.uniform(-1, 1, 200), np.full(200, value) * (1 + 1e-7 * rng.integers(0, 2, 200))], axis=1)
    normalization = made(states, states, state=mode, action=mode)
    assert normalization.state(torch.tensor([[0.1, value + 1.0]]))[0, 1] == 0
    assert normalization.unnormalize_action(torch.full((1, 1, 2), 3.0))[0, 0, 1] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("size", [4e-5, 1e-12, 1e6])
@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
def test_small_and_large_actions_use_the_whole_range(mode, size):
    actions = np.random.default_rng(0).uniform(-size, size, (500, 1))
    normalized = made(actions, actions, action=mode).action(torch.tensor(np.float32(actions)))
    assert 0.5 < normalized.abs().max() < 3


def test_rare_values_do_not_blow_up_what_most_values_hide():
    """A gripper that opens in one frame of a thousand, whose q01 and q99 are equal; and a joint with one outlier, which must
    not set its scale."""
    actions = np.zeros((1000, 2))
    actions[:, 1] = np.linspace(-0.01, 0.01, 1000)
    actions[7] = 1
    by_range, by_quantiles = (made(actions, actions, action=mode) for mode in ("min_max", "quantiles"))
    assert by_range.action(torch.tensor([[1.0, 1.0]])).tolist() == [[1, 1]]
    gripper, joint = by_quantiles.action(torch.tensor([[1.0, 0.009]]))[0].tolist()
    assert gripper == 1 and 0.8 < joint < 1


def test_modes_and_clipping():
    states = np.random.default_rng(0).standard_normal((2000, 2))
    by_quantiles = made(states, states, state="quantiles").state(torch.tensor(np.float32(states)))
    assert 0.97 < (by_quantiles.abs() <= 1).float().mean() < 0.99
    plain = torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(made(states, states, state="none", action="none").state(plain), plain)
    assert made(states, states, clip=1.5).state(plain).tolist() == [[1.5, -1.5]]


def test_relative_actions_are_those_to_the_state_at_the_chunks_start():
    states, actions = (np.random.default_rng(seed).uniform(-1, 1, (50, 3)) for seed in range(2))
    normalization = made(states, actions, relative=("x", "z"), action="none")
    state, chunk = torch.randn(2, 3), torch.randn(2, 5, 3)
    expected = chunk - torch.stack([state[:, 0], torch.zeros(2), state[:, 2]], dim=-1)[:, None]
    torch.testing.assert_close(normalization.action(chunk, state), expected)
    torch.testing.assert_close(normalization.unnormalize_action(expected, state), chunk)
