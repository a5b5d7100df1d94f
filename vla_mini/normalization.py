"""Raw units <-> the numbers that networks like: states to zero mean and unit deviation, actions to [-1, 1].

The statistics are buffers, so that they are saved inside the policy and move with it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.features import Statistics

# A dimension that hardly varies is divided by this, not by almost nothing.
LEAST_SPREAD = 1e-3


class Normalization(nn.Module):
    """States `... s` are standardised, past ones (`history`) as the present; actions `... a` are mapped from their range in the
    data to [-1, 1]."""

    def __init__(self, statistics: Statistics, *, history: int = 1):
        super().__init__()
        state, action = statistics
        centre, reach = (action.max + action.min) / 2, (action.max - action.min) / 2
        self.register_buffer("state_mean", torch.tensor(state.mean, dtype=torch.float32).repeat(history))
        spread = torch.tensor(state.std, dtype=torch.float32).clamp(min=LEAST_SPREAD)
        self.register_buffer("state_std", spread.repeat(history))
        self.register_buffer("action_centre", torch.tensor(centre, dtype=torch.float32))
        self.register_buffer("action_reach", torch.tensor(reach, dtype=torch.float32).clamp(min=LEAST_SPREAD))

    def state(self, state: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
        return (state - self.state_mean) / self.state_std

    def keyframe(self, keyframe: Float[Tensor, "*b g"], indices: list[int]) -> Float[Tensor, "*b g"]:
        """Keyframes are chosen state features; `indices` says which."""
        # One by one: a list is an index that would be copied to the GPU at every step, and that no CUDA graph can hold.
        mean, std = (torch.stack([values[index] for index in indices]) for values in (self.state_mean, self.state_std))
        return (keyframe - mean) / std

    def action(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        return (action - self.action_centre) / self.action_reach

    def raw_action(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        return action * self.action_reach + self.action_centre
