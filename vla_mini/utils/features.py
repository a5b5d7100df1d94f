"""Facts about a dataset or an environment, as NumPy arrays and names: no torch, no files.

`Features` names and sizes the cameras, the state and the actions; `Statistics` describes the distribution of their numbers.
"""

from typing import NamedTuple

import numpy as np


class Features(NamedTuple):
    """What one frame holds: an image of `image_size` (height, width) pixels from each of `cameras`, the state, the action."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    state: tuple[str, ...]
    action: tuple[str, ...]
    fps: int

    @property
    def state_size(self) -> int:
        return len(self.state)

    @property
    def action_size(self) -> int:
        return len(self.action)


class FeatureStatistics(NamedTuple):
    """Statistics of each dimension of one vector feature, each float32 of shape (dimensions,), in raw units."""

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray


class Statistics(NamedTuple):
    """The distribution of the states and the actions of a dataset's training split."""

    state: FeatureStatistics
    action: FeatureStatistics
