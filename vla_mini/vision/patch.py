"""A tiny vision transformer (Dosovitskiy et al. 2021): images `b c h w` in [0, 1] -> one token for each patch, `b n width`."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.layers import Block


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
        self.width, self.patch_size, self.depth, self.num_heads = width, patch_size, depth, num_heads
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.stem = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.place = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens = rearrange(self.stem(images - 0.5), "b c h w -> b (h w) c") + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
