"""Raw units <-> network units, by feature and mode: by default states to zero mean and unit deviation, actions to [-1, 1].

    "mean_std"   zero mean, unit deviation            "quantiles"  the middle 98 % (q01 to q99) to [-1, 1]
    "min_max"    the range in the data to [-1, 1]     "none"       as it is

Offsets and scales are buffers, so that they are saved with the policy and move with it. A dimension that does not move in the
data has the scale 0: a state is 0 in network units wherever it is later, and an action stays what it was.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.utils.features import MIN_SHARE, Features, FeatureStatistics, Statistics, Units

States, Actions = Float[Tensor, "*b s"], Float[Tensor, "*b t a"]
Mode = Literal["mean_std", "min_max", "quantiles", "none"]


class NormalizationSettings(NamedTuple):
    """How a policy's states and actions are normalised; saved with it."""

    state: Mode = "mean_std"
    action: Mode = "min_max"
    clip: float | None = None  # states are cut off at this many network units
    relative: tuple[str, ...] = ()  # actions that are predicted relative to the state of the same name


class Normalization(nn.Module):
    """States and actions into network units, and actions back. Relative actions are so to the `state` at the chunk's start, in
    raw units; without a state they are relative already.

    - history: how many frames a state holds, the newest first; past ones are normalised like the newest
    - features: names of state and action; `settings.relative` is of both
    """

    def __init__(
        self,
        statistics: Statistics,
        *,
        history: int = 1,
        settings: NormalizationSettings = NormalizationSettings(),  # noqa: B008 (immutable)
        features: Features | None = None,
    ):
        super().__init__()
        self.settings = settings
        mean, std = _offset_and_scale(statistics.state, settings.state)
        offset, scale = _offset_and_scale(statistics.action, settings.action)
        self.register_buffer("state_mean", torch.from_numpy(mean).repeat(history))
        self.register_buffer("state_std", torch.from_numpy(std).repeat(history))
        self.register_buffer("action_offset", torch.from_numpy(offset))
        self.register_buffer("action_scale", torch.from_numpy(scale))
        sources = relative_sources(features, settings.relative) if features is not None and settings.relative else None
        self.register_buffer("sources", None if sources is None else torch.from_numpy(sources), persistent=False)

    def state(self, state: States) -> States:
        normalized = (state - self.state_mean) / self.state_std.masked_fill(self.state_std == 0, torch.inf)
        return normalized if self.settings.clip is None else normalized.clamp(-self.settings.clip, self.settings.clip)

    def action(self, action: Actions, state: States | None = None) -> Actions:
        relative = action if self.sources is None or state is None else action - self._origin(state)
        return (relative - self.action_offset) / self.action_scale.masked_fill(self.action_scale == 0, torch.inf)

    def unnormalize_action(self, action: Actions, state: States | None = None) -> Actions:
        action = action * self.action_scale + self.action_offset
        return action if self.sources is None or state is None else action + self._origin(state)

    def change_units(self, units: Units) -> None:
        """From now on states are in other raw units, and so are the actions that come out. Not for relative actions."""
        assert self.sources is None
        history = len(self.state_mean) // len(units.state_scale)
        scale, shift = (self.state_mean.new_tensor(each).repeat(history) for each in (units.state_scale, units.state_shift))
        self.state_mean, self.state_std = scale * self.state_mean + shift, scale * self.state_std
        scale, shift = (self.action_offset.new_tensor(each) for each in (units.action_scale, units.action_shift))
        self.action_offset, self.action_scale = scale * self.action_offset + shift, scale * self.action_scale

    def _origin(self, state: States) -> Float[Tensor, "*b 1 a"]:
        """What each action is relative to: an element of the newest state, or 0."""
        return nn.functional.pad(state, (0, 1))[..., None, :][..., self.sources]


def relative_sources(features: Features, relative: Sequence[str]) -> np.ndarray:
    """For each action the index of the state that it is relative to, or -1, (a,) int64."""
    return np.array([features.state.index(name) if name in relative else -1 for name in features.action])


def _offset_and_scale(found: FeatureStatistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from a feature, and what it is then divided by; float32."""
    low, high = found.min, found.max
    if mode == "quantiles":  # but the range of a switch that is hardly ever thrown, whose quantiles are equal
        is_switch = found.q99 - found.q01 < MIN_SHARE * (high - low)
        low, high = np.where(is_switch, low, found.q01), np.where(is_switch, high, found.q99)
    offset, scale = (found.mean, found.std) if mode == "mean_std" else ((high + low) / 2, (high - low) / 2)
    if mode == "none":
        return np.zeros_like(offset, np.float32), np.ones_like(scale, np.float32)
    return np.asarray(offset, np.float32), found.bounded(scale)
