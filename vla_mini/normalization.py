"""Raw units <-> network units: states to zero mean and unit deviation, actions to [-1, 1].

The statistics are buffers, so that they are saved with the policy and move with it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.utils.features import Statistics

MIN_STD = 1e-3  # a dimension that hardly varies is divided by this, not by almost nothing


class Normalization(nn.Module):
    """States "... s" are standardised, past ones (`history`) like the present one; actions "... a" are mapped from their range
    in the data to [-1, 1]."""

    def __init__(self, statistics: Statistics, *, history: int = 1):
        super().__init__()
        state, action = statistics
        self.register_buffer("state_mean", torch.tensor(state.mean, dtype=torch.float32).repeat(history))
        self.register_buffer("state_std", torch.tensor(state.std, dtype=torch.float32).clamp(min=MIN_STD).repeat(history))
        self.register_buffer("action_offset", torch.tensor((action.max + action.min) / 2, dtype=torch.float32))
        scale = torch.tensor((action.max - action.min) / 2, dtype=torch.float32).clamp(min=MIN_STD)
        self.register_buffer("action_scale", scale)

    def state(self, state: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
        return (state - self.state_mean) / self.state_std

    def action(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        return (action - self.action_offset) / self.action_scale

    def unnormalize_action(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        return action * self.action_scale + self.action_offset
