"""A small convolutional encoder: images "b c h w" in [0, 1] -> one token for each cell of a stride-4 grid, "b n width"."""

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.parts import ObservationSpec, Vision
from vla_mini.utils.layers import resize, resolve_input_size


class ConvVision(Vision):
    """A strided stem, then `depth` residual 3x3 convolutions at a quarter of the resolution.

    - width: channels, and the size of each token
    - depth: residual convolutions; each widens a token's receptive field by 4 pixels in every direction
    - input_size: [height, width] that images are resized to, multiples of 4. None: the dataset's size
    """

    STRIDE = 4

    def __init__(
        self, spec: ObservationSpec, *, width: PositiveInt = 64, depth: NonNegativeInt = 2, input_size: list[int] | None = None
    ):
        super().__init__()
        self.width, self.input_size = width, resolve_input_size(input_size, spec.image_size)
        if any(side % self.STRIDE for side in self.input_size):
            raise ValueError(f"conv needs multiples of {self.STRIDE}, not {self.input_size} pixels; input_size=[h,w] resizes")
        self.grid = (self.input_size[0] // self.STRIDE, self.input_size[1] // self.STRIDE)
        self.stem = nn.Conv2d(3, width, kernel_size=self.STRIDE, stride=self.STRIDE)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in range(depth))
        self.to(memory_format=torch.channels_last)  # half again as fast on CPUs

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        images = resize(images, self.input_size)
        # Channels last in memory, by a copy of another order: vmap does not support `contiguous(memory_format=...)`.
        x = rearrange(rearrange(images - 0.5, "b c h w -> b h w c").contiguous(), "b h w c -> b c h w")
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = x + torch.relu(block(channel_norm(x)))
        return rearrange(x, "b c h w -> b (h w) c")


def channel_norm(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """LayerNorm over the channels of each pixel, without gain and bias. Needs no copy, since channels lie last in memory."""
    pixels = F.layer_norm(rearrange(x, "b d h w -> b h w d"), (x.shape[1],))
    return rearrange(pixels, "b h w d -> b d h w")
