"""Conditional flow matching: context -> a velocity field that carries noise to a chunk of actions, `b t a`.

    training   x = time * action + (1 - time) * noise      the field learns  action - noise   (mean squared error)
    acting     from noise at time 0 to an action at time 1, in Euler steps along the field

Flow matching: Lipman et al. 2023 (arXiv 2210.02747), here along straight lines: Liu et al. 2023 (2209.03003). As a head for
robots: pi0, Black et al. 2024 (2410.24164), from which come the ten Euler steps and the times of training, drawn from a
Beta(1.5, 1) that favours noisy ones: there the context, not the noisy action, has to say where to go.
"""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from vla_mini.action._denoiser import Denoiser, several
from vla_mini.layers import at_least_fp32
from vla_mini.types import Context

LAST_TIME = 0.999  # of training: the field is not asked where noise has gone


class FlowHead(nn.Module):
    """A velocity field over chunks of actions, conditioned on the context.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden, depth: of the field's layers
    - num_steps: Euler steps in acting
    - draws: noises and times to learn from for each sample
    """

    def __init__(
        self,
        *,
        context_width: int,
        num_tokens: int,
        horizon: int,
        action_size: int,
        hidden: int = 256,
        depth: int = 2,
        num_steps: int = 10,
        draws: int = 4,
    ):
        super().__init__()
        if min(num_steps, draws) < 1:
            raise ValueError(f"num_steps={num_steps}, draws={draws}: at least 1 of each is needed")
        self.horizon, self.action_size, self.hidden, self.depth = horizon, action_size, hidden, depth
        self.num_steps, self.draws = num_steps, draws
        self.field = Denoiser(
            context_width=context_width,
            num_tokens=num_tokens,
            horizon=horizon,
            action_size=action_size,
            hidden=hidden,
            depth=depth,
        )

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The squared error of the velocity, averaged over the action's size and the draws."""
        actions = at_least_fp32(actions)  # times and noise need the digits
        noise = torch.randn(len(actions), self.draws, *actions.shape[1:], dtype=actions.dtype, device=actions.device)
        uniform = torch.rand(len(actions), self.draws, dtype=actions.dtype, device=actions.device)
        time = LAST_TIME * (1 - uniform ** (1 / 1.5))[..., None, None]  # u^(1/1.5) is distributed as Beta(1.5, 1)
        noisy = time * actions[:, None] + (1 - time) * noise
        condition = several(self.field.condition(context), self.draws)
        velocity = self.field(noisy.flatten(0, 1), time.flatten(), condition).unflatten(0, noise.shape[:2])
        return (velocity - (actions[:, None] - noise)).square().mean(dim=(1, 3))

    def predict(self, context: Context, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        """A sample; the same for the same generator. Differentiable, through all of its steps."""
        condition = self.field.condition(context)
        x = self.field.noise(condition, generator)
        for step in range(self.num_steps):
            time = torch.full((len(x),), step / self.num_steps, dtype=x.dtype, device=x.device)
            x = x + self.field(x, time, condition) / self.num_steps
        return x
