"""A plain transformer over all tokens at once, to compare with: image, word and state tokens in, with a few learned ones that
read them out; `num_readouts` context tokens out.

Words and pixels meet only in its layers: what that costs in training is what trunk=query saves. At the end each readout looks
at the image tokens once more, so that it can say where; without that, 400 steps on toy_pick taught it next to nothing.
Attention costs the square of the number of tokens: let vision make few of them.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vla_mini.geometry import grid_positions
from vla_mini.layers import Block, at_least_fp32
from vla_mini.types import Context


class JointTrunk(nn.Module):
    """Pre-norm blocks of self-attention among readout, image, word and state tokens; then, where each readout looks.

    - grid, num_cameras: where the image tokens lie
    - width: of image, word, state and context tokens, a multiple of 4 and of num_heads
    - depth, num_heads: of the blocks
    - num_readouts: learned tokens, which are the context
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        num_cameras: int,
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        num_readouts: int = 4,
    ):
        super().__init__()
        if width % 4:
            raise ValueError(f"width={width}: a multiple of 4 is needed")
        self.width, self.depth, self.num_heads, self.num_readouts = width, depth, num_heads, num_readouts
        self.num_tokens, self.num_positions = num_readouts, num_readouts
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        places = torch.cat([waves(rows.flatten(), width // 2), waves(columns.flatten(), width // 2)], dim=-1)
        self.register_buffer("places", places.repeat(num_cameras, 1), persistent=False)
        self.register_buffer("token_positions", grid_positions(grid).repeat(num_cameras, 1), persistent=False)
        self.readouts = nn.Parameter(0.5 * torch.randn(num_readouts, width))
        self.kinds = nn.Parameter(0.5 * torch.randn(3, width))  # tells image, word and state tokens apart
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.place = nn.Linear(2, width)

    def forward(
        self,
        image: Float[Tensor, "b n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b d"],
    ) -> Context:
        size, num_readouts = len(image), self.num_readouts
        order = waves(torch.arange(words.shape[1], device=words.device), self.width).to(words.dtype)
        parts = (image + self.places.to(image.dtype), words + order, state[:, None])
        parts = [part + kind for part, kind in zip(parts, self.kinds, strict=True)]
        x = torch.cat([self.readouts.expand(size, -1, -1), *parts], dim=1)
        always = torch.ones(size, num_readouts + image.shape[1] + 1, dtype=torch.bool, device=x.device)
        seen = torch.cat([always[:, :-1], word_mask, always[:, -1:]], dim=1)
        for block in self.blocks:
            x = block(x, seen[:, None])
        readouts, seen, _ = self.norm(x).split([num_readouts, image.shape[1], words.shape[1] + 1], dim=1)
        scores = self.queries(readouts) @ self.keys(seen).transpose(1, 2) / math.sqrt(self.width)
        attention = at_least_fp32(scores).log_softmax(dim=-1)
        weights = attention.exp()
        positions = weights @ self.token_positions.to(weights.dtype)
        return Context(readouts + self.place(positions.to(readouts.dtype)), always[:, :num_readouts], positions, attention)


def waves(positions: Int64[Tensor, " n"], width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of 2 pi to a thousand times as many steps: places that know their neighbours (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(1000) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
