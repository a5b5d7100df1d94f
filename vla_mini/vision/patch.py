"""A tiny vision transformer (Dosovitskiy et al. 2021): images "b c h w" in [0, 1] -> one token for each patch, "b n width"."""

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from vla_mini.parts import ObservationSpec, Vision
from vla_mini.utils.layers import Block, resize, resolve_input_size


class PatchVision(Vision):
    """Patches, a learned positional embedding, then `depth` pre-norm transformer blocks.

    - width: size of a token
    - patch_size: side of a patch in pixels
    - depth, num_heads: of the blocks
    - input_size: [height, width] that images are resized to, multiples of patch_size. None: the dataset's size
    """

    def __init__(
        self,
        spec: ObservationSpec,
        *,
        width: PositiveInt = 64,
        patch_size: PositiveInt = 8,
        depth: NonNegativeInt = 2,
        num_heads: PositiveInt = 4,
        input_size: list[int] | None = None,
    ):
        super().__init__()
        self.width, self.input_size = width, resolve_input_size(input_size, spec.image_size)
        if any(side % patch_size for side in self.input_size):
            raise ValueError(f"patch_size={patch_size} does not divide {self.input_size} pixels; input_size=[h,w] resizes")
        self.grid = (self.input_size[0] // patch_size, self.input_size[1] // patch_size)
        self.stem = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        tokens = rearrange(self.stem(resize(images, self.input_size) - 0.5), "b c h w -> b (h w) c")
        tokens = tokens + self.positional_embedding
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
