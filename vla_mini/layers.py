"""Small pieces that several parts are made of. Tensor in, tensor of the same shape out."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


def at_least_fp32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """bf16 and fp16 to fp32, for sums, exponentials and losses that need the digits; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def size_to_see(input_size: Sequence[int] | None, made_for: Sequence[int]) -> list[int]:
    """The [height, width] that an encoder resizes images to: `input_size` where it is given, else what it was made for."""
    size = list(input_size or made_for)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"input_size={size} is no height and width in pixels, as [64,64] is")
    return size


def resize(images: Float[Tensor, "b c h w"], size: list[int]) -> Float[Tensor, "b c height width"]:
    """Images of `size` = [height, width], whatever their shape: what every encoder does with sizes that it was not made for."""
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


class Block(nn.Module):
    """One pre-norm transformer block: self-attention by hand, then a two-layer perceptron.

    By hand, since in bf16 on CPUs the fused attention's backward is several times slower up to a few hundred tokens.
    """

    def __init__(self, *, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {width}")
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b #n n"] | None = None) -> Float[Tensor, "b n d"]:
        """`mask`: the tokens that may be looked at, by all or by each; by default all."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        scores = at_least_fp32(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = scores.softmax(dim=-1).to(v.dtype)
        x = x + self.merge(rearrange(weights @ v, "b h n d -> b n (h d)"))
        return x + self.perceptron(self.norm2(x))
