"""Conditional flow matching: context -> a velocity field that carries noise to a chunk of actions, "b t a".

    training   x = time * action + (1 - time) * noise      the field learns  action - noise   (mean squared error)
    acting     from noise at time 0 to an action at time 1, in Euler steps along the field

Flow matching: Lipman et al. 2023 (arXiv 2210.02747), here along straight lines: Liu et al. 2023 (2209.03003). As a head for
robots: pi0, Black et al. 2024 (2410.24164), the source of the ten Euler steps and of the times of training, drawn from a
Beta(1.5, 1) that favours noisy ones: there the direction has to come from the context, not from the noisy action.
"""

import torch
from einops import repeat
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from vla_mini.action._denoiser import INITIAL_VARIANCE, MAX_GUIDANCE, Denoiser, guided
from vla_mini.parts import ActionHead, HeadSpec
from vla_mini.types import Context, Prefix
from vla_mini.utils.layers import at_least_fp32

LAST_TIME = 0.999  # of training: at time 1 no noise is left to remove


class FlowHead(ActionHead):
    """A velocity field over chunks of actions, conditioned on the context.

    - hidden, depth: of the field's layers
    - num_steps: Euler steps in acting
    - noise_samples: noises and times drawn for each training sample
    """

    needs_noise = takes_prefix = True
    changeable = ("num_steps",)

    def __init__(
        self,
        spec: HeadSpec,
        *,
        hidden: PositiveInt = 256,
        depth: NonNegativeInt = 2,
        num_steps: PositiveInt = 10,
        noise_samples: PositiveInt = 4,
    ):
        super().__init__()
        self.num_steps, self.noise_samples = num_steps, noise_samples
        self.field = Denoiser(spec, hidden=hidden, depth=depth)

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The squared error of the velocity, averaged over the action's size and the noise samples."""
        actions, repeats = at_least_fp32(actions), self.noise_samples  # times and noise are too inexact in bf16
        noise = torch.randn(len(actions), repeats, *actions.shape[1:], dtype=actions.dtype, device=actions.device)
        uniform = torch.rand(len(actions), repeats, dtype=actions.dtype, device=actions.device)
        time = LAST_TIME * (1 - uniform ** (1 / 1.5))[..., None, None]  # u^(1/1.5) is distributed as Beta(1.5, 1)
        noisy = time * actions[:, None] + (1 - time) * noise
        condition = repeat(self.field.condition(context), "b d -> (b repeats) d", repeats=repeats)
        velocity = self.field(noisy.flatten(0, 1), time.flatten(), condition).unflatten(0, noise.shape[:2])
        return (velocity - (actions[:, None] - noise)).square().mean(dim=(1, 3))

    def predict(
        self, context: Context, noise: Float[Tensor, "b t a"] | None = None, prefix: Prefix | None = None
    ) -> Float[Tensor, "b t a"]:
        """A sample, the same for the same noise; differentiable through all steps, except with a prefix."""
        condition, x = self.field.condition(context), noise
        for step in range(self.num_steps):
            time = step / self.num_steps
            if prefix is None:
                velocity = self.velocity(x, time, condition)
            else:
                denoised = guided(
                    lambda x, time=time: x + (1 - time) * self.velocity(x, time, condition), x, prefix, weight=guidance(time)
                )
                velocity = (denoised - x) / (1 - time)
            x = x + velocity / self.num_steps
        return x

    def velocity(self, x: Float[Tensor, "b t a"], time: float, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b t a"]:
        return self.field(x, torch.full((x.shape[0],), time, dtype=x.dtype, device=x.device), condition)

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float:
        return float(actions.square().mean()) + 1 + INITIAL_VARIANCE  # of the velocity, action - noise


def guidance(time: float) -> float:
    """How far the denoised chunk is moved along the gradient toward a prefix (RTC, equation 2; actions of unit variance)."""
    remaining = 1 - time
    return min(MAX_GUIDANCE * remaining, (remaining**2 + time**2) / time) if time else MAX_GUIDANCE
