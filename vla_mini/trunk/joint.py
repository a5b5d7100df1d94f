"""A plain transformer over all tokens at once, to compare with: image, word and state tokens in, with a few learned readout
tokens; `num_readouts` context tokens out.

Words and pixels meet only in its layers, which takes more training than trunk=query. At the end each readout attends to the
image tokens once more, so that its context holds a position; without that, 400 steps on toy_pick taught it next to nothing.
Attention costs the square of the number of tokens: choose a vision part that makes few of them.
"""

import math

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from vla_mini.parts import Trunk, TrunkSpec
from vla_mini.types import Context
from vla_mini.utils.layers import Block, at_least_fp32, grid_positions, sinusoidal_embedding


class JointTrunk(Trunk):
    """Pre-norm self-attention among readout, image, word and state tokens; then an attention map of each readout.

    - width: of image, word, state and context tokens, a multiple of 4 and of num_heads
    - depth, num_heads: of the blocks
    - num_readouts: learned tokens, which become the context
    """

    def __init__(
        self,
        spec: TrunkSpec,
        *,
        width: PositiveInt = 64,
        depth: NonNegativeInt = 2,
        num_heads: PositiveInt = 4,
        num_readouts: PositiveInt = 4,
    ):
        super().__init__()
        if width % 4:
            raise ValueError(f"width={width}: a multiple of 4 is needed")
        self.width, self.num_tokens, self.num_queries = width, num_readouts, num_readouts
        rows, columns = torch.meshgrid(torch.arange(spec.grid[0]), torch.arange(spec.grid[1]), indexing="ij")
        halves = [sinusoidal_embedding(index.flatten(), width // 2) for index in (rows, columns)]
        grid_embedding = torch.cat(halves, dim=-1).repeat(spec.num_cameras, 1)
        self.register_buffer("grid_embedding", grid_embedding, persistent=False)
        self.register_buffer("token_positions", grid_positions(spec.grid).repeat(spec.num_cameras, 1), persistent=False)
        self.readouts = nn.Parameter(0.5 * torch.randn(num_readouts, width))
        self.type_embedding = nn.Parameter(0.5 * torch.randn(3, width))  # of image, word and state tokens
        self.blocks = nn.ModuleList(Block(width=width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.positional_embedding = nn.Linear(2, width)

    def forward(
        self,
        image: Float[Tensor, "b n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b d"],
    ) -> Context:
        size, num_readouts = image.shape[0], self.num_tokens
        word_order = sinusoidal_embedding(torch.arange(words.shape[1], device=words.device), self.width).to(words.dtype)
        inputs = (image + self.grid_embedding.to(image.dtype), words + word_order, state[:, None])
        inputs = [tokens + embedding for tokens, embedding in zip(inputs, self.type_embedding, strict=True)]
        x = torch.cat([self.readouts.expand(size, -1, -1), *inputs], dim=1)
        always = torch.ones(size, num_readouts + image.shape[1] + 1, dtype=torch.bool, device=x.device)
        mask = torch.cat([always[:, :-1], word_mask, always[:, -1:]], dim=1)
        for block in self.blocks:
            x = block(x, mask[:, None])
        readouts, image, _ = self.norm(x).split([num_readouts, image.shape[1], words.shape[1] + 1], dim=1)
        scores = self.queries(readouts) @ self.keys(image).transpose(1, 2) / math.sqrt(self.width)
        attention = at_least_fp32(scores).log_softmax(dim=-1)
        weights = attention.exp()
        positions = weights @ self.token_positions.to(weights.dtype)  # "b q 2"
        tokens = readouts + self.positional_embedding(positions.to(readouts.dtype))
        return Context(tokens, always[:, :num_readouts], attention)
