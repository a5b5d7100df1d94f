"""Small pieces that several parts are made of: tensor in, tensor out."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F


def at_least_fp32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """bf16 and fp16 to fp32, for sums, exponentials and losses, which are too inexact in them; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resolve_input_size(input_size: Sequence[int] | None, default: Sequence[int]) -> list[int]:
    """The [height, width] that an encoder resizes images to: `input_size` where it is given, else `default`."""
    size = list(input_size or default)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"input_size={size} is not a height and a width in pixels, such as [64,64]")
    return size


def resize(images: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c height width"]:
    """Images of `size` = (height, width), whatever their aspect ratio."""
    if list(images.shape[-2:]) == list(size):
        return images
    return F.interpolate(images, size=list(size), mode="bilinear", antialias=True, align_corners=False)


def grid_positions(grid: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Centres of the cells of a (rows, columns) grid in row-major order, in [-1, 1]: x to the right, y upwards.

    An image's rows go down; a robot's y axis, seen from above, most often goes up. Hence y = -row.
    """
    rows, columns = grid
    y = 1 - (2 * torch.arange(rows) + 1) / rows
    x = (2 * torch.arange(columns) + 1) / columns - 1
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1).reshape(-1, 2)


def sinusoidal_embedding(positions: Int64[Tensor, " n"], width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines with wavelengths of 2 pi to a thousand times as many steps (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(1000) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def flatten_tokens(tokens: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b md"]:
    """All tokens side by side, zero where masked."""
    return rearrange(tokens * mask[..., None], "b m d -> b (m d)")


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Block(nn.Module):
    """One pre-norm transformer block: self-attention written out, then a two-layer MLP.

    Written out, since in bf16 on CPUs the fused attention's backward is several times slower up to a few hundred tokens.
    """

    def __init__(self, *, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {width}")
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output_projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b #n n"] | None = None) -> Float[Tensor, "b n d"]:
        """`mask`: the tokens that each token (or all of them) may attend to; None: all."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        scores = at_least_fp32(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = scores.softmax(dim=-1).to(v.dtype)
        x = x + self.output_projection(rearrange(weights @ v, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class FiLMBlock(nn.Module):
    """A residual 3x3 convolution of the tokens on a (rows, columns) grid, of each camera by itself, whose normalised input is
    scaled and shifted by a vector (FiLM, Perez et al. 2018)."""

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.grid = grid
        self.film = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.film.weight)  # at first the vector changes nothing
        nn.init.zeros_(self.film.bias)
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        scale, shift = self.film(vector)[:, None].chunk(2, dim=-1)
        modulated = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        rows, columns = self.grid
        maps = self.conv(rearrange(modulated, "b (k h w) d -> (b k) d h w", h=rows, w=columns))
        return x + torch.relu(rearrange(maps, "(b k) d h w -> b (k h w) d", b=x.shape[0]))
