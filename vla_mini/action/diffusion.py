"""Denoising diffusion: context -> noise, denoised step by step to a chunk of actions, "b t a".

    training   x = sqrt(alpha[k]) * action + sqrt(1 - alpha[k]) * noise    the network learns the action, or the noise
    acting     from noise at the last timestep down to the action, in a few deterministic steps

DDPM: Ho et al. 2020 (arXiv 2006.11239), with the squared-cosine schedule of Nichol and Dhariwal 2021 (2102.09672). DDIM, the
steps: Song et al. 2021 (2010.02502). As a head for robots: Diffusion Policy, Chi et al. 2023 (2303.04137). To predict the
action itself rather than the noise converges sooner: Ze et al. 2024 (DP3, 2403.03954).
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int64
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from vla_mini.action._denoiser import INITIAL_VARIANCE, MAX_GUIDANCE, Denoiser, guided
from vla_mini.parts import ActionHead, HeadSpec
from vla_mini.types import Context, Prefix
from vla_mini.utils.layers import at_least_fp32


class DiffusionHead(ActionHead):
    """A denoiser of chunks of actions, conditioned on the context.

    - hidden, depth: of the denoiser's layers
    - num_train_timesteps: noise levels in training
    - num_steps: of those that acting passes through, evenly spaced
    - target: what the network predicts: the action, or the noise
    - noise_samples: noises and timesteps drawn for each training sample
    """

    needs_noise = bounded = takes_prefix = True
    changeable = ("num_steps",)

    def __init__(
        self,
        spec: HeadSpec,
        *,
        hidden: PositiveInt = 256,
        depth: NonNegativeInt = 2,
        num_train_timesteps: PositiveInt = 100,
        num_steps: PositiveInt = 10,
        target: Literal["action", "noise"] = "action",
        noise_samples: PositiveInt = 4,
    ):
        super().__init__()
        if num_steps > num_train_timesteps:
            raise ValueError(f"num_steps={num_steps} is more than num_train_timesteps={num_train_timesteps}")
        self.num_train_timesteps, self.num_steps = num_train_timesteps, num_steps
        self.target, self.noise_samples = target, noise_samples
        self.denoiser = Denoiser(spec, hidden=hidden, depth=depth)
        self.alphas_cumprod = squared_cosine_schedule(num_train_timesteps)  # not a buffer, which bf16 weights would round

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The squared error of the prediction, averaged over the action's size and the noise samples."""
        actions, repeats = at_least_fp32(actions), self.noise_samples  # noise is too inexact in bf16
        noise = torch.randn(len(actions), repeats, *actions.shape[1:], dtype=actions.dtype, device=actions.device)
        uniform = torch.rand(len(actions), repeats, device=actions.device)
        timestep = (uniform * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)
        noisy = self.add_noise(actions[:, None], noise, timestep)
        condition = repeat(self.denoiser.condition(context), "b d -> (b repeats) d", repeats=repeats)
        time = timestep.flatten().to(noisy.dtype) / self.num_train_timesteps
        output = self.denoiser(noisy.flatten(0, 1), time, condition).unflatten(0, noise.shape[:2])
        target = actions[:, None] if self.target == "action" else noise
        return (output - target).square().mean(dim=(1, 3))

    def predict(
        self, context: Context, noise: Float[Tensor, "b t a"] | None = None, prefix: Prefix | None = None
    ) -> Float[Tensor, "b t a"]:
        """A sample, the same for the same noise; differentiable through all steps, except with a prefix."""
        condition, x = self.denoiser.condition(context), noise
        # Evenly spaced, from pure noise on (Lin et al. 2024, arXiv 2305.08891).
        spacing = self.num_train_timesteps / self.num_steps
        timesteps = [round((step + 1) * spacing) - 1 for step in reversed(range(self.num_steps))]
        for timestep, next_timestep in pairwise([*timesteps, -1]):
            time = torch.full((x.shape[0],), timestep, dtype=x.dtype, device=x.device) / self.num_train_timesteps
            alpha = self.alphas_cumprod[timestep]
            action = guided(
                lambda x, time=time, alpha=alpha: self.denoised(self.denoiser(x, time, condition), x, alpha),
                x,
                prefix,
                weight=min(MAX_GUIDANCE, 1 / math.sqrt(alpha)),
            )
            x = self.step(action, x, timestep, next_timestep)
        return x

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float:
        return (float(actions.square().mean()) if self.target == "action" else 1) + INITIAL_VARIANCE

    def add_noise(
        self, actions: Float[Tensor, "b #n t a"], noise: Float[Tensor, "b n t a"], timestep: Int64[Tensor, "b n"]
    ) -> Float[Tensor, "b n t a"]:
        alphas = torch.tensor(self.alphas_cumprod, dtype=actions.dtype, device=actions.device)
        alpha = alphas[timestep][..., None, None]
        return alpha.sqrt() * actions + (1 - alpha).sqrt() * noise

    def denoised(self, output: Float[Tensor, "b t a"], x: Float[Tensor, "b t a"], alpha: float) -> Float[Tensor, "b t a"]:
        """The action that the network's output means."""
        return output if self.target == "action" else (x - math.sqrt(1 - alpha) * output) / math.sqrt(alpha)

    def step(
        self, action: Float[Tensor, "b t a"], x: Float[Tensor, "b t a"], timestep: int, next_timestep: int
    ) -> Float[Tensor, "b t a"]:
        """One DDIM step; `next_timestep` = -1 leads to the action itself. Predicted actions are clamped to [-1, 1], the range
        of the data, before the noise is computed from them."""
        alpha, next_alpha = self.alphas_cumprod[timestep], self.alphas_cumprod[next_timestep] if next_timestep >= 0 else 1.0
        action = action.clamp(-1, 1)
        noise = (x - math.sqrt(alpha) * action) / math.sqrt(1 - alpha)
        return math.sqrt(next_alpha) * action + math.sqrt(1 - next_alpha) * noise


def squared_cosine_schedule(num_train_timesteps: int) -> list[float]:
    """The share of the action's power that is left at each timestep (alpha bar), from nearly all to nearly none."""

    def cosine(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(num_train_timesteps)
    betas = [min(1 - cosine((k + 1) / num_train_timesteps) / cosine(k / num_train_timesteps), 0.999) for k in steps]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0).tolist()
