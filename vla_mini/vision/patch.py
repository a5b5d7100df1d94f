"""A tiny vision transformer (Dosovitskiy et al. 2021): images `b c h w` in [0, 1] -> one token for each patch, `b n width`."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class PatchVision(nn.Module):
    """Patches, learned position vectors, then `depth` pre-norm blocks of self-attention and a two-layer perceptron.

    - image_size: (height, width) in pixels, multiples of patch_size
    - width: the size of a token; patch_size in pixels; depth and num_heads of the blocks
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        width: int = 64,
        patch_size: int = 8,
        depth: int = 2,
        num_heads: int = 4,
    ):
        super().__init__()
        if any(side % patch_size for side in image_size):
            raise ValueError(f"patch_size={patch_size} does not divide the image size {tuple(image_size)}")
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide the width {width}")
        self.width, self.patch_size, self.depth, self.num_heads = width, patch_size, depth, num_heads
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.stem = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.place = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens = rearrange(self.stem(2 * images - 1), "b c h w -> b (h w) c") + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class Block(nn.Module):
    """Self-attention by hand (faster on CPUs in bf16 than the fused one up to a few hundred tokens), then a perceptron."""

    def __init__(self, *, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        x = x + self.merge(rearrange(weights @ v, "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))
