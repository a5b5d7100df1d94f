"""A target that says *where*: the attention that the words call up, as a probability of the keyframe, the place where the
gripper will next close. Context -> negative log-likelihood, one value a sample, `b`.

The keyframe is hindsight, read from the demonstration's own later states; no privileged knowledge is used. The attention
maps are read as a mixture density: each image token is a Gaussian whose mean is an affine map of where the token lies (the
camera's calibration, learned along), weighted by how much the trunk's queries look at it (mixture density networks, Bishop
1994). Its gradient says at once which tokens should have been looked at, where a regression from the mean position, which
every token pulls at a little, learns the same several times more slowly.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla_mini.geometry import grid_positions
from vla_mini.types import Context


class KeyframeLoss(nn.Module):
    """Negative log-likelihood of the keyframe in normalised units, in nats; samples without one count 0.

    - grid, num_cameras: where the image tokens lie
    - keyframe_size: number of chosen state features
    - num_positions: the trunk's attention maps
    - weight: of this loss beside the action loss
    """

    LEAST_LOG_DEVIATION = -3.0  # keeps the density, and with it the loss, bounded

    def __init__(self, *, grid: tuple[int, int], num_cameras: int, keyframe_size: int, num_positions: int, weight: float = 0.5):
        super().__init__()
        if num_positions == 0:
            raise ValueError("auxiliary=keyframe needs a trunk with attended positions, as query has: say auxiliary=none")
        if keyframe_size == 0:
            raise ValueError("auxiliary=keyframe needs data.keyframe, which says what to learn: say auxiliary=none")
        self.weight, self.num_cameras = weight, num_cameras
        self.register_buffer("positions", grid_positions(grid), persistent=False)
        self.calibration = nn.Linear(2, num_cameras * keyframe_size)
        nn.init.zeros_(self.calibration.bias)
        with torch.no_grad():  # a guess that is right up to scale where the camera looks straight down; learned from there
            self.calibration.weight.copy_(1.5 * torch.eye(keyframe_size, 2).repeat(num_cameras, 1))
        self.log_deviation = nn.Parameter(torch.zeros(()))
        self.query_logits = nn.Parameter(torch.zeros(num_positions))

    def forward(
        self, context: Context, keyframe: Float[Tensor, "b g"], has_keyframe: Bool[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        log_weights = context.attention.to(keyframe.dtype) + torch.log_softmax(self.query_logits, dim=0)[:, None]
        log_density = self._log_density(keyframe)[:, None]  # the same Gaussians for every query
        loss = -torch.logsumexp((log_weights + log_density).flatten(1), dim=1)
        return loss * has_keyframe

    def _log_density(self, keyframe: Float[Tensor, "b g"]) -> Float[Tensor, "b n"]:
        """The keyframe's log-density under each image token's Gaussian."""
        with torch.autocast(keyframe.device.type, enabled=False):  # positions need more than bf16's three digits
            means = self.calibration(self.positions).unflatten(1, (self.num_cameras, -1)).transpose(0, 1).flatten(0, 1)
            log_deviation = self.log_deviation.clamp(min=self.LEAST_LOG_DEVIATION)
            squares = ((keyframe[:, None] - means) / log_deviation.exp()).square()
            return -0.5 * squares.sum(-1) - keyframe.shape[-1] * (log_deviation + 0.5 * math.log(2 * math.pi))
