"""What the heads that sample share: a noisy chunk of actions, how noisy it is, and the context -> another chunk, `n t a`.

The context is read once; each step of a sampler costs a few small layers. Samples `n` may be several to a context `b`.
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vla_mini.layers import at_least_fp32
from vla_mini.types import Context


class Denoiser(nn.Module):
    """All context tokens side by side, two layers; then residual layers whose input they and the time shift and scale.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden: width of the layers
    - depth: of the residual layers
    """

    def __init__(self, *, context_width: int, num_tokens: int, horizon: int, action_size: int, hidden: int, depth: int):
        super().__init__()
        if hidden % 2 or hidden < 4:
            raise ValueError(f"hidden={hidden}: an even number of at least 4 is needed")
        self.horizon, self.action_size, self.hidden = horizon, action_size, hidden
        self.read = nn.Sequential(nn.Linear(num_tokens * context_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.enter = nn.Linear(horizon * action_size, hidden)
        self.modulate = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden)) for _ in range(depth)
        )
        self.leave = nn.Linear(hidden, horizon * action_size)

    def condition(self, context: Context) -> Float[Tensor, "b d"]:
        return self.read(rearrange(context.tokens * context.mask[..., None], "b m d -> b (m d)"))

    def forward(
        self, noisy: Float[Tensor, "n t a"], time: Float[Tensor, " n"], condition: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n t a"]:
        """`time` in [0, 1] says how noisy."""
        dtype = condition.dtype  # of the layers; noise and time may be finer
        condition = F.silu(condition + self.time(time_features(time, self.hidden).to(dtype)))
        x = self.enter(rearrange(noisy, "n t a -> n (t a)").to(dtype)) + condition
        for modulate, block in zip(self.modulate, self.blocks, strict=True):
            scale, shift = modulate(condition).chunk(2, dim=-1)
            x = x + block(F.layer_norm(x, (self.hidden,)) * (1 + scale) + shift)
        return at_least_fp32(rearrange(self.leave(F.layer_norm(x, (self.hidden,))), "n (t a) -> n t a", t=self.horizon))

    def noise(self, condition: Float[Tensor, "b d"], generator: Generator | None) -> Float[Tensor, "b t a"]:
        """Where sampling starts: the same for the same generator, whatever the precision of the layers."""
        like = at_least_fp32(condition)
        shape = (len(condition), self.horizon, self.action_size)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def time_features(time: Float[Tensor, " n"], size: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of half a period to a few hundred over [0, 1] (Vaswani et al. 2017, as in pi0)."""
    frequencies = torch.exp(torch.linspace(0, math.log(250), size // 2, dtype=time.dtype, device=time.device))
    angles = math.pi * time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def several(x: Float[Tensor, "b ..."], draws: int) -> Float[Tensor, "n ..."]:
    """Each sample `draws` times, one after the other: a context is dear, another look at its head is cheap."""
    return repeat(x, "b ... -> (b draws) ...", draws=draws)
