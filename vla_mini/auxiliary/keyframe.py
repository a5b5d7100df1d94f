"""The keyframe loss: the attention maps as a probability density of the keyframe, the position where the gripper will next
close, or where the episode will end. Context -> negative log-likelihood of each sample, "b".

The keyframe is read from the demonstration's own later states (hindsight); no privileged information is used. The attention
maps are a mixture density (mixture density networks, Bishop 1994): each image token is a Gaussian whose mean is a quadratic map
of the token's position (a camera calibration, learned along), weighted by the attention that it gets. All have one covariance,
learned along, too: across the camera's rays a position is certain, along them it is not. The gradient favours the right tokens
at once, where a regression from the mean position, to which every token contributes a little, learns the same several times
more slowly.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from vla_mini.parts import AuxiliaryLoss, AuxiliarySpec, EpisodeData, FitData
from vla_mini.types import Batch, Context
from vla_mini.utils.errors import did_you_mean, show
from vla_mini.utils.layers import grid_positions

MAX_LOG_SCALE = 3.0  # keeps the density, and with it the loss, bounded


class KeyframeLoss(AuxiliaryLoss):
    """Negative log-likelihood of the keyframe in normalised units, in nats; samples without one cost 0.

    - weight: of this loss beside the action loss
    - state: names of the state features that make up the keyframe
    - closes, threshold: the gripper closes where this action rises above the threshold
    - end: whether the last frame of an episode is a keyframe, too: the goal of what was done
    - calibration: for each of `state`, where training starts from: how much it grows from the middle of the image to its right
      edge, and to its upper edge, and its value in the middle. None: right, up to a factor, for a camera that looks straight
      down. Where it is far off, the attention does not learn to look at the keyframe
    """

    def __init__(
        self,
        spec: AuxiliarySpec,
        *,
        weight: NonNegativeFloat = 0.5,
        state: list[str],
        closes: str,
        threshold: float = 0.0,
        end: bool = False,
        calibration: list[list[float]] | None = None,
    ):
        super().__init__()
        if not spec.num_queries:
            raise ValueError("it needs a trunk with attention maps, such as query; or say auxiliary=none")
        if not state:
            raise ValueError("state=[] names no state feature; or say auxiliary=none")
        if calibration is not None and [len(row) for row in calibration] != [3] * len(state):
            raise ValueError(
                f"calibration={show(calibration)}: a row of three numbers is needed for each of state={show(state)}"
            )
        self.weight, self.threshold, self.end, self.start, size = weight, threshold, end, calibration, len(state)
        self.state_indices = [_index(name, spec.state_names, f"state={show(state)}") for name in state]
        self.action_index = _index(closes, spec.action_names, f"closes={closes}")
        self.register_buffer("keyframe_mean", torch.zeros(size))
        self.register_buffer("keyframe_std", torch.ones(size))
        x, y = grid_positions(spec.grid).T
        self.register_buffer("positions", torch.stack([x, y, x * x, x * y, y * y], dim=1), persistent=False)
        self.calibration = nn.Linear(5, spec.num_cameras * size)
        nn.init.zeros_(self.calibration.bias)
        # Image positions -> state. For a camera that looks straight down it is right up to a factor; training does the rest.
        with torch.no_grad():
            self.calibration.weight.copy_(1.5 * torch.eye(size, 5).repeat(spec.num_cameras, 1) * (torch.arange(5) < 2))
        # The covariance's inverse is W^T W, with W = diag(exp(log_scale)) (I + shear below the diagonal).
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shear = nn.Parameter(torch.zeros(size * (size - 1) // 2))
        self.query_logits = nn.Parameter(torch.zeros(spec.num_queries))

    def fit(self, data: FitData) -> None:
        state = data.statistics.state
        self.keyframe_mean.copy_(torch.tensor(state.mean[self.state_indices]))
        std = state.bounded(state.std)[self.state_indices]
        self.keyframe_std.copy_(torch.from_numpy(np.where(std == 0, 1, std)))
        if self.start is not None:
            start, middle = torch.tensor(self.start) / self.keyframe_std[:, None], self.keyframe_mean / self.keyframe_std
            with torch.no_grad():
                self.calibration.weight[:, :2] = start[:, :2].repeat(self.spec.num_cameras, 1)
                self.calibration.bias.copy_((start[:, 2] - middle).repeat(self.spec.num_cameras))

    def targets(self, data: EpisodeData) -> dict[str, np.ndarray]:
        """`keyframe` (n, g) float32: the chosen state at the next keyframe; `has_keyframe` (n,): whether there is one."""
        num_frames = len(data.states)
        closed = data.actions[:, self.action_index] > self.threshold
        closes = closed & ~np.roll(closed, 1)
        closes[data.episode_starts] = closed[data.episode_starts]
        is_keyframe = closes | (self.end & np.isin(np.arange(num_frames), data.episode_ends - 1))
        # Backwards through time, the smallest index so far is the next keyframe.
        following = np.minimum.accumulate(np.where(is_keyframe, np.arange(num_frames), num_frames)[::-1])[::-1]
        has_keyframe = following < np.repeat(data.episode_ends, data.episode_ends - data.episode_starts)
        keyframe = data.states[np.where(has_keyframe, following, 0)][:, self.state_indices] * has_keyframe[:, None]
        return {"keyframe": keyframe, "has_keyframe": has_keyframe}

    def loss(self, context: Context, batch: Batch) -> Float[Tensor, " b"]:
        keyframe = (batch.targets["keyframe"].to(self.keyframe_mean.dtype) - self.keyframe_mean) / self.keyframe_std
        log_weights = context.attention.to(keyframe.dtype) + torch.log_softmax(self.query_logits, dim=0)[:, None]
        log_density = self._log_density(keyframe)[:, None]  # the same Gaussians for every query
        loss = -torch.logsumexp((log_weights + log_density).flatten(1), dim=1)
        return loss * batch.targets["has_keyframe"]

    def _log_density(self, keyframe: Float[Tensor, "b g"]) -> Float[Tensor, "b n"]:
        """The keyframe's log-density under each image token's Gaussian."""
        with torch.autocast(keyframe.device.type, enabled=False):  # positions need more than bf16's three digits
            means = self.calibration(self.positions).unflatten(1, (self.spec.num_cameras, -1)).transpose(0, 1).flatten(0, 1)
            size, log_scale = keyframe.shape[-1], self.log_scale.clamp(max=MAX_LOG_SCALE)
            below = tuple(torch.tril_indices(size, size, offset=-1, device=keyframe.device))
            shear = torch.eye(size, dtype=keyframe.dtype, device=keyframe.device).index_put(below, self.shear)
            whitened = (keyframe[:, None] - means) @ shear.mT * log_scale.exp()
            return -0.5 * whitened.square().sum(-1) + log_scale.sum() - 0.5 * size * math.log(2 * math.pi)


def _index(name: str, names: tuple[str, ...], setting: str) -> int:
    if name not in names:
        raise ValueError(f"{setting}: the dataset has no feature {name!r}; {did_you_mean(name, names)}")
    return names.index(name)
