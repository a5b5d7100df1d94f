"""The keyframes of episodes, against a reading of every frame, and their normalisation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from vla_mini.auxiliary.keyframe import KeyframeLoss
from vla_mini.parts import AuxiliarySpec, FitData
from vla_mini.utils.features import FeatureStatistics, Statistics
from vla_mini.utils.layers import grid_positions

SPEC = AuxiliarySpec((2, 2), 1, 1, 4, ("x", "y", "closed"), ("dx", "close"))


def keyframe_loss(threshold: float = 0.0, *, end: bool = False) -> KeyframeLoss:
    return KeyframeLoss(SPEC, state=["closed", "x"], closes="close", threshold=threshold, end=end)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.floats(-1, 1), st.booleans(), st.integers(0, 99))
@example([6, 6, 6], -1.0, False, 0)  # the gripper is mostly closed, also where an episode begins
def test_a_frames_keyframe_is_the_state_when_the_gripper_next_closes_or_the_episode_ends(lengths, threshold, at_end, seed):
    rng, ends = np.random.default_rng(seed), np.cumsum(lengths)
    states, actions = (rng.standard_normal((ends[-1], size)).astype(np.float32) for size in (3, 2))
    data = SimpleNamespace(features=None, states=states, actions=actions, episode_starts=ends - lengths, episode_ends=ends)
    found = keyframe_loss(threshold, end=at_end).targets(data)
    closed = actions[:, 1] > threshold
    for start, end in zip(data.episode_starts, ends, strict=True):
        for frame in range(start, end):
            following = [i for i in range(frame, end) if closed[i] and (i == start or not closed[i - 1])]
            following += [end - 1] if at_end else []
            assert found["has_keyframe"][frame] == bool(following)
            expected = states[following[0], [2, 0]] if following else [0, 0]
            np.testing.assert_array_equal(found["keyframe"][frame], expected)


def test_the_density_is_that_of_gaussians_with_one_covariance():
    spec = AuxiliarySpec((3, 4), 2, 1, 4, ("x", "y", "z"), ("dx", "close"))
    loss, keyframes = KeyframeLoss(spec, state=["x", "y", "z"], closes="close").double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn_like(parameter))
    (a, b, c), scale = loss.shear.tolist(), loss.log_scale.exp().diag()
    whitening = scale @ torch.tensor([[1, 0, 0], [a, 1, 0], [b, c, 1]], dtype=torch.float64)
    x, y = grid_positions((3, 4)).double().T
    features = torch.stack([x, y, x * x, x * y, y * y, torch.ones_like(x)], dim=1)
    weight = torch.cat([loss.calibration.weight, loss.calibration.bias[:, None]], dim=1)
    means = torch.cat([features @ weight[:3].mT, features @ weight[3:].mT])  # the tokens of both cameras
    expected = MultivariateNormal(means, precision_matrix=whitening.mT @ whitening).log_prob(keyframes[:, None])
    torch.testing.assert_close(loss._log_density(keyframes), expected)


def test_a_calibration_is_where_training_starts_from():
    """In the state's units: what the middle of the image, its right and its upper edge mean."""
    state = FeatureStatistics(*np.float32([[0, 0, 0], [9, 9, 9], [1, 2, 3], [4, 5, 2], [0, 0, 0], [9, 9, 9]]))
    spec = AuxiliarySpec((2, 2), 2, 1, 4, ("x", "y", "closed"), ("dx", "close"))
    loss = KeyframeLoss(spec, state=["closed", "x"], closes="close", calibration=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    loss.fit(FitData((), torch.zeros(0, 1, 2), Statistics(state, FeatureStatistics(*np.zeros((6, 2), np.float32)))))
    for position, expected in (([0, 0], [3, 6]), ([1, 0], [4, 10]), ([0, 1], [5, 11])):
        means = loss.calibration(torch.tensor([*position, 0.0, 0, 0])).view(2, 2)  # of either camera
        torch.testing.assert_close(means * loss.keyframe_std + loss.keyframe_mean, torch.tensor([expected] * 2).float())
    with pytest.raises(ValueError, match="a row of three numbers is needed for each of state="):
        KeyframeLoss(spec, state=["x", "closed"], closes="close", calibration=[[1.0, 2.0, 3.0]])


def test_keyframes_are_normalized_by_the_statistics_of_their_own_features():
    state = FeatureStatistics(*np.float32([[0, 0, 0], [9, 9, 9], [1, 2, 3], [4, 5, 0], [0, 0, 0], [9, 9, 9]]))
    action = FeatureStatistics(*np.zeros((6, 2), np.float32))
    loss = keyframe_loss()
    loss.fit(FitData((), torch.zeros(0, 1, 2), Statistics(state, action)))
    assert loss.keyframe_mean.tolist() == [3, 1]
    assert loss.keyframe_std.tolist() == np.float32([4.5e-3, 4]).tolist()
