"""A tiny vision transformer (Dosovitskiy et al. 2021): images `b c h w` in [0, 1] -> one token for each patch, `b n width`."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.layers import Block, resize, size_to_see


class PatchVision(nn.Module):
    """Patches, learned position vectors, then `depth` pre-norm blocks of self-attention and a two-layer perceptron.

    - image_size: (height, width) in pixels
    - width: the size of a token; patch_size in pixels; depth and num_heads of the blocks
    - input_size: [height, width] that images are resized to, multiples of patch_size. None: as they come
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        width: int = 64,
        patch_size: int = 8,
        depth: int = 2,
        num_heads: int = 4,
        input_size: list[int] | None = None,
    ):
        super().__init__()
        self.width, self.patch_size, self.depth, self.num_heads = width, patch_size, depth, num_heads
        self.input_size = size_to_see(input_size, image_size)
        if any(side % patch_size for side in self.input_size):
            raise ValueError(f"patch_size={patch_size} does not divide {self.input_size} pixels; input_size=[h,w] resizes")
        self.grid = (self.input_size[0] // patch_size, self.input_size[1] // patch_size)
        self.stem = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.place = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens = rearrange(self.stem(resize(images, self.input_size) - 0.5), "b c h w -> b (h w) c") + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
