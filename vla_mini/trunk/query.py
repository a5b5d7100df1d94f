"""Queries made from the instruction attend to the image tokens. Image, word and state tokens in; `num_queries` + 1 context
tokens out: for each query what it attends to and the mean position of its attention map, and the state token, unchanged.

All image features are selected by the instruction in the first attention, and a mean position is a coordinate that an action
head can use directly: toy_pick is learned in few steps. What it cannot do: word order counts only if the word vectors hold it
(those of language=table do not), the state does not influence where the queries attend, and positions are averaged over all
cameras and frames of history.
"""

import math

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.parts import Trunk, TrunkSpec
from vla_mini.types import Context
from vla_mini.utils.layers import FiLMBlock, at_least_fp32, grid_positions


class QueryTrunk(Trunk):
    """Two attentions with one head each: learned slots attend to the words, and queries made from the result to the image.

    - width: of image, word, state and context tokens
    - num_queries: number of slots, of queries and of attention maps over the image
    - words: whether what the slots read of the words becomes context, too: `num_queries` tokens more. Without it an action
      head knows of the instruction only where the queries look
    - film: residual convolutions of the image tokens, scaled and shifted by the instruction, before the attention
    """

    def __init__(
        self,
        spec: TrunkSpec,
        *,
        width: PositiveInt = 64,
        num_queries: PositiveInt = 4,
        words: bool = False,
        film: NonNegativeInt = 0,
    ):
        super().__init__()
        self.width, self.num_queries, self.words = width, num_queries, words
        self.num_tokens = (2 if words else 1) * num_queries + 1
        positions = grid_positions(spec.grid).repeat(spec.num_cameras, 1)
        self.register_buffer("token_positions", positions, persistent=False)
        self.positional_embedding = nn.Linear(2, width)
        self.slots = nn.Parameter(0.5 * torch.randn(num_queries, width))
        self.word_keys, self.word_values = nn.Linear(width, width), nn.Linear(width, width)
        self.queries, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.log_sharpness = nn.Parameter(torch.ones(()))
        self.film = nn.ModuleList(FiLMBlock(spec.grid, width) for _ in range(film))

    def forward(
        self,
        image: Float[Tensor, "b n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b d"],
    ) -> Context:
        # The slots attend to the words: "q d" and "b l d" -> "b q d".
        word_scores = self._scores(self.slots, self.word_keys(words)).masked_fill(~word_mask[:, None], -math.inf)
        instruction = word_scores.softmax(dim=-1).to(words.dtype) @ self.word_values(words)
        for block in self.film:
            image = block(image, instruction.mean(dim=1))
        queries = F.layer_norm(self.queries(instruction + self.slots), (self.width,)) * self.log_sharpness.exp()
        keys = F.layer_norm(image + self.positional_embedding(self.token_positions), (self.width,))
        # The queries attend to the image tokens: "b q d" and "b n d" -> log-probabilities "b q n".
        attention = self._scores(queries, keys).log_softmax(dim=-1)
        weights = attention.exp()
        positions = weights @ self.token_positions.to(weights.dtype)  # "b q 2"
        values = self.values(weights.to(keys.dtype) @ keys)
        seen = values + self.positional_embedding(positions.to(image.dtype))
        tokens = torch.cat([seen, instruction, state[:, None]] if self.words else [seen, state[:, None]], dim=1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Context(tokens, mask, attention)

    def _scores(self, queries: Float[Tensor, "*b q d"], keys: Float[Tensor, "b n d"]) -> Float[Tensor, "b q n"]:
        """Scaled dot products in at least fp32: a softmax over hundreds of tokens is too inexact in bf16."""
        return at_least_fp32(queries @ keys.transpose(1, 2) / math.sqrt(self.width))
