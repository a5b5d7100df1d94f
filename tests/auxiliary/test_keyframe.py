"""The keyframes of episodes, against a reading of every frame, and their normalisation."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from vla_mini.auxiliary.keyframe import KeyframeLoss
from vla_mini.parts import AuxiliarySpec, FitData
from vla_mini.utils.features import FeatureStatistics, Statistics

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


def test_keyframes_are_normalized_by_the_statistics_of_their_own_features():
    state = FeatureStatistics(*np.float32([[0, 0, 0], [9, 9, 9], [1, 2, 3], [4, 5, 0], [0, 0, 0], [9, 9, 9]]))
    action = FeatureStatistics(*np.zeros((6, 2), np.float32))
    loss = keyframe_loss()
    loss.fit(FitData((), torch.zeros(0, 1, 2), Statistics(state, action)))
    assert loss.keyframe_mean.tolist() == [3, 1]
    assert loss.keyframe_std.tolist() == np.float32([4.5e-3, 4]).tolist()
