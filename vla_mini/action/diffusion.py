"""Denoising diffusion: context -> noise, denoised step by step to a chunk of actions, `b t a`.

    training   x = sqrt(kept[k]) * action + sqrt(1 - kept[k]) * noise    the network learns the action, or the noise
    acting     from noise at the last k down to the action, in a few deterministic steps

DDPM: Ho et al. 2020 (arXiv 2006.11239), with the squared-cosine schedule of Nichol and Dhariwal 2021 (2102.09672). DDIM, the
steps: Song et al. 2021 (2010.02502). As a head for robots: Diffusion Policy, Chi et al. 2023 (2303.04137). To predict the
action itself rather than the noise converges sooner: Ze et al. 2024 (DP3, 2403.03954).
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn

from vla_mini.action._denoiser import Denoiser, several
from vla_mini.layers import at_least_fp32
from vla_mini.types import Context


class DiffusionHead(nn.Module):
    """A denoiser of chunks of actions, conditioned on the context.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden, depth: of the denoiser's layers
    - levels: of noise in training
    - num_steps: of those that acting passes through, evenly spaced
    - target: what the network predicts: the action, or the noise
    - draws: noises and levels to learn from for each sample
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
        levels: int = 100,
        num_steps: int = 10,
        target: Literal["action", "noise"] = "action",
        draws: int = 4,
    ):
        super().__init__()
        if not 1 <= num_steps <= levels:
            raise ValueError(f"num_steps={num_steps}: there are 1 to levels={levels} steps")
        if draws < 1:
            raise ValueError(f"draws={draws}: at least 1 is needed")
        self.horizon, self.action_size, self.hidden, self.depth = horizon, action_size, hidden, depth
        self.levels, self.num_steps, self.target, self.draws = levels, num_steps, target, draws
        self.denoiser = Denoiser(
            context_width=context_width,
            num_tokens=num_tokens,
            horizon=horizon,
            action_size=action_size,
            hidden=hidden,
            depth=depth,
        )
        self.kept = kept_signal(levels)  # no buffer: those are rounded where weights are bf16

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The squared error of what is predicted, averaged over the action's size and the draws."""
        actions = at_least_fp32(actions)  # noise needs the digits
        noise = torch.randn(len(actions), self.draws, *actions.shape[1:], dtype=actions.dtype, device=actions.device)
        uniform = torch.rand(len(actions), self.draws, device=actions.device)
        level = (uniform * self.levels).long().clamp(max=self.levels - 1)
        noisy = self.add_noise(actions[:, None], noise, level)
        condition = several(self.denoiser.condition(context), self.draws)
        output = self._output(noisy.flatten(0, 1), level.flatten(), condition).unflatten(0, noise.shape[:2])
        target = actions[:, None] if self.target == "action" else noise
        return (output - target).square().mean(dim=(1, 3))

    def predict(self, context: Context, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        """A sample; the same for the same generator. Differentiable, through all of its steps."""
        condition = self.denoiser.condition(context)
        x = self.denoiser.noise(condition, generator)
        # From pure noise on, evenly spaced (Lin et al. 2024, arXiv 2305.08891).
        levels = [round((step + 1) * self.levels / self.num_steps) - 1 for step in reversed(range(self.num_steps))]
        for level, next_level in pairwise([*levels, -1]):
            output = self._output(x, torch.full((len(x),), level, device=x.device), condition)
            x = self.step(output, x, level, next_level)
        return x

    def add_noise(
        self, actions: Float[Tensor, "b #n t a"], noise: Float[Tensor, "b n t a"], level: Int64[Tensor, "b n"]
    ) -> Float[Tensor, "b n t a"]:
        kept = torch.tensor(self.kept, dtype=actions.dtype, device=actions.device)[level][..., None, None]
        return kept.sqrt() * actions + (1 - kept).sqrt() * noise

    def step(
        self, output: Float[Tensor, "b t a"], x: Float[Tensor, "b t a"], level: int, next_level: int
    ) -> Float[Tensor, "b t a"]:
        """One DDIM step, to the action below level 0. Actions beyond [-1, 1] do not exist, and are cut off before the noise
        is told from them."""
        kept, kept_next = self.kept[level], self.kept[next_level] if next_level >= 0 else 1.0
        action = output if self.target == "action" else (x - math.sqrt(1 - kept) * output) / math.sqrt(kept)
        action = action.clamp(-1, 1)
        noise = (x - math.sqrt(kept) * action) / math.sqrt(1 - kept)
        return math.sqrt(kept_next) * action + math.sqrt(1 - kept_next) * noise

    def _output(
        self, noisy: Float[Tensor, "n t a"], level: Int64[Tensor, " n"], condition: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n t a"]:
        return self.denoiser(noisy, level.to(noisy.dtype) / self.levels, condition)


def kept_signal(levels: int) -> list[float]:
    """How much of the action's power is left at each level, from nearly all to nearly none (alpha bar; squared cosine)."""

    def cosine(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    lost = [min(1 - cosine((k + 1) / levels) / cosine(k / levels), 0.999) for k in range(levels)]
    return torch.cumprod(1 - torch.tensor(lost, dtype=torch.float64), dim=0).tolist()
