"""Facts about a dataset or an environment, as NumPy arrays and names: no torch, no files.

`Features` names and sizes the cameras, the state and the actions; `Statistics` describes the distribution of their numbers.
"""

from typing import Literal, NamedTuple

import numpy as np

# How an image of other proportions gets the size that a policy takes (data/images.py).
Resize = Literal["letterbox", "stretch", "crop"]


class Features(NamedTuple):
    """What one frame holds: an image of `image_size` (height, width) pixels from each of `cameras`, the state, the action."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    state: tuple[str, ...]
    action: tuple[str, ...]
    fps: int | float

    @property
    def state_size(self) -> int:
        return len(self.state)

    @property
    def action_size(self) -> int:
        return len(self.action)


# Rare values must not become so large in network units that they hide all others.
MIN_SHARE = 1e-3


class FeatureStatistics(NamedTuple):
    """Statistics of each dimension of one vector feature, each float32 of shape (dimensions,), in raw units."""

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @property
    def still(self) -> np.ndarray:
        """Which dimensions do not move in the data, bool: their range is no more than float32's rounding of their values."""
        low, high = (np.asarray(bound, np.float64) for bound in (self.min, self.max))
        rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
        return high - low <= np.maximum(rounding, np.finfo(np.float32).tiny)

    def bounded(self, scale: np.ndarray) -> np.ndarray:
        """A `scale` to divide by, float32: 0 where a dimension does not move, and else at least MIN_SHARE of half its range."""
        half_range = (np.asarray(self.max, np.float64) - self.min) / 2
        return np.where(self.still, 0, np.maximum(scale, MIN_SHARE * half_range)).astype(np.float32)


class Statistics(NamedTuple):
    """The distribution of the states and the actions of a dataset's training split."""

    state: FeatureStatistics
    action: FeatureStatistics


class Units(NamedTuple):
    """From a policy's raw units of states and actions to those of a dataset: scale * own + shift, a number a dimension."""

    state_scale: tuple[float, ...]
    state_shift: tuple[float, ...]
    action_scale: tuple[float, ...]
    action_shift: tuple[float, ...]
