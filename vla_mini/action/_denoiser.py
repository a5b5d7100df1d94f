"""What the heads that sample share: a noisy chunk of actions, its noise level and the context -> another chunk, "n t a".

The context is encoded once; each step of a sampler costs a few small layers. There may be several samples `n` to a context `b`.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.parts import HeadSpec
from vla_mini.types import Context, Prefix
from vla_mini.utils.layers import at_least_fp32, flatten_tokens

# The variance of an untrained denoiser's output: its last layer is a plain nn.Linear over normalised values.
INITIAL_VARIANCE = 1 / 3
MAX_GUIDANCE = 5.0  # of the velocity toward a prefix: where little noise was removed, the guidance would be too large


class Denoiser(nn.Module):
    """All context tokens side by side, two layers; then residual layers, modulated by the context and the noise level.

    - hidden: width of the layers
    - depth: number of residual layers
    """

    def __init__(self, spec: HeadSpec, *, hidden: int, depth: int):
        super().__init__()
        if hidden % 2 or hidden < 4:
            raise ValueError(f"hidden={hidden}: an even number of at least 4 is needed")
        self.hidden, self.horizon, chunk_size = hidden, spec.horizon, spec.horizon * spec.action_size
        context_size = spec.num_tokens * spec.context_width
        self.context_mlp = nn.Sequential(nn.Linear(context_size, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.time_mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.input_projection = nn.Linear(chunk_size, hidden)
        self.adaptive_norm = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden)) for _ in range(depth)
        )
        self.output_projection = nn.Linear(hidden, chunk_size)

    def condition(self, context: Context) -> Float[Tensor, "b d"]:
        return self.context_mlp(flatten_tokens(context.tokens, context.mask))

    def forward(
        self, noisy: Float[Tensor, "n t a"], time: Float[Tensor, " n"], condition: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n t a"]:
        """`time` in [0, 1] is the noise level."""
        dtype = condition.dtype  # of the layers; noise and time may have more digits
        condition = F.silu(condition + self.time_mlp(time_embedding(time, self.hidden).to(dtype)))
        x = self.input_projection(rearrange(noisy, "n t a -> n (t a)").to(dtype)) + condition
        for adaptive_norm, block in zip(self.adaptive_norm, self.blocks, strict=True):
            scale, shift = adaptive_norm(condition).chunk(2, dim=-1)
            x = x + block(F.layer_norm(x, (self.hidden,)) * (1 + scale) + shift)
        output = self.output_projection(F.layer_norm(x, (self.hidden,)))
        return at_least_fp32(rearrange(output, "n (t a) -> n t a", t=self.horizon))


def guided(
    estimate: Callable[[Tensor], Tensor], x: Float[Tensor, "b t a"], prefix: Prefix | None, *, weight: float
) -> Float[Tensor, "b t a"]:
    """The denoised chunk that is expected at `x`; with a prefix, moved toward one that begins with it (real-time chunking, RTC:
    Black et al. 2025, arXiv 2506.07339).

    - estimate: noisy chunk -> the denoised chunk that is expected of it
    - weight: how far it is moved

    The move is along minus the gradient, by the noisy chunk, of half the squared distance to the prefix: a vector-Jacobian
    product of `estimate`.
    """
    if prefix is None:
        return estimate(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = estimate(x)
        error = (prefix.actions - denoised.detach()) * prefix.weights[..., None]
        (gradient,) = torch.autograd.grad(denoised, x, error)
    return denoised.detach() + weight * gradient


def time_embedding(time: Float[Tensor, " n"], size: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of half a period to a few hundred over [0, 1] (Vaswani et al. 2017, as in pi0)."""
    frequencies = torch.exp(torch.linspace(0, math.log(250), size // 2, dtype=time.dtype, device=time.device))
    angles = math.pi * time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
