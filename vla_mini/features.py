"""Facts about a dataset or an environment, as the whole package speaks of them. NumPy only: no torch, no files.

`Features` names and sizes what a robot sees, feels and does; `Statistics` says how its numbers are distributed.
"""

from typing import NamedTuple

import numpy as np


class Features(NamedTuple):
    """What one frame holds: images of `image_size` (height, width) pixels from each of `cameras`, the state, the action."""

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


class Moments(NamedTuple):
    """Per-dimension statistics of one vector feature, each float32 of shape (dimensions,), in raw units."""

    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    quantiles: np.ndarray | None = None  # (101, dimensions): of 0 %, 1 %, ... 100 %


class Statistics(NamedTuple):
    """The distribution of the states and the actions of a dataset's training split."""

    state: Moments
    action: Moments
