"""The trunk that grounds words quickly: the instruction calls up queries, the queries look at the image, and what they see
and *where* they see it is the context. Image, word and state tokens in, `q` + 1 context tokens out.

Language conditions the very first look at the image, so that nothing has to be carried through layers that do not know
yet what matters; and an attention map's mean position is a coordinate, which a gripper can be sent to.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.geometry import grid_positions
from vla_mini.layers import at_least_fp32
from vla_mini.types import Context


class QueryTrunk(nn.Module):
    """Two attentions by hand: learned slots read the words, what they read looks at the image tokens.

    - grid, num_cameras: where the image tokens lie
    - width: of image, word, state and context tokens
    - num_queries: slots, and so attention maps over the image
    """

    def __init__(self, *, grid: tuple[int, int], num_cameras: int, width: int = 64, num_queries: int = 4):
        super().__init__()
        self.width, self.num_queries = width, num_queries
        self.num_tokens, self.num_positions = num_queries + 1, num_queries
        self.register_buffer("token_positions", grid_positions(grid).repeat(num_cameras, 1), persistent=False)
        self.place = nn.Linear(2, width)
        self.slots = nn.Parameter(0.5 * torch.randn(num_queries, width))
        self.word_keys, self.word_values = nn.Linear(width, width), nn.Linear(width, width)
        self.queries, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.log_sharpness = nn.Parameter(torch.ones(()))

    def forward(
        self,
        image: Float[Tensor, "b n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b d"],
    ) -> Context:
        word_scores = self._scores(self.slots, self.word_keys(words)).masked_fill(~word_mask[:, None], -math.inf)
        read = word_scores.softmax(dim=-1).to(words.dtype) @ self.word_values(words)
        queries = F.layer_norm(self.queries(read + self.slots), (self.width,)) * self.log_sharpness.exp()
        placed = F.layer_norm(image + self.place(self.token_positions), (self.width,))
        attention = self._scores(queries, placed).log_softmax(dim=-1)
        weights = attention.exp()
        positions = weights @ self.token_positions.to(weights.dtype)
        seen = self.values(weights.to(placed.dtype) @ placed)
        tokens = torch.cat([seen + self.place(positions.to(image.dtype)), state[:, None]], dim=1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Context(tokens, mask, positions, attention)

    def _scores(self, queries: Float[Tensor, "*b q d"], keys: Float[Tensor, "b n d"]) -> Float[Tensor, "b q n"]:
        """Scaled dot products in at least fp32: a softmax over hundreds of tokens needs the digits."""
        return at_least_fp32(queries @ keys.transpose(1, 2) / math.sqrt(self.width))
