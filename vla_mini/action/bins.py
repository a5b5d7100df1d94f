"""Discretised actions: context -> a distribution over bins for each action value; trained by cross-entropy.

As in RT-1 (arXiv 2212.06817) and OpenVLA (2406.09246), each dimension of each action falls into one of `bins` intervals:
equally wide ones over [-1, 1] (normalised), or, finer where the data's actions are dense, between their quantiles.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from vla_mini.parts import ActionHead, FitData, HeadSpec
from vla_mini.types import Context
from vla_mini.utils.layers import at_least_fp32, flatten_tokens, mlp


class BinsHead(ActionHead):
    """All context tokens side by side, two hidden layers, logits over the bins of every action value.

    - hidden: width of the hidden layers
    - bins: intervals for one action value
    - spacing: uniform or quantile
    """

    def __init__(
        self,
        spec: HeadSpec,
        *,
        hidden: PositiveInt = 256,
        bins: Annotated[int, Ge(2)] = 21,
        spacing: Literal["uniform", "quantile"] = "uniform",
    ):
        super().__init__()
        self.bins, self.spacing, self.bounded = bins, spacing, spacing == "uniform"
        self.layers = mlp(spec.num_tokens * spec.context_width, hidden, spec.horizon * spec.action_size * bins)
        # Centres that reach -1 and 1 exactly: the ends of the range are the most frequent actions.
        centres = torch.linspace(-1, 1, bins).expand(spec.action_size, bins).contiguous()
        self.register_buffer("centres", centres, persistent=spacing == "quantile")

    def fit(self, data: FitData) -> None:
        if self.spacing == "quantile":
            shares = torch.linspace(0, 1, self.bins, dtype=data.action_chunks.dtype)
            quantiles = data.action_chunks.flatten(0, 1).quantile(shares, dim=0)
            self.centres.copy_(rearrange(quantiles, "bins a -> a bins"))

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Cross-entropy of the bin whose centre is nearest to the demonstrated action, in nats, averaged over its size."""
        logits = rearrange(self._logits(context).to(actions.dtype), "b t a bins -> b bins t a")
        nearest = (actions[..., None] - self.centres).abs().argmin(dim=-1)
        return F.cross_entropy(logits, nearest, reduction="none").mean(dim=-1)

    def predict(self, context: Context, noise: Float[Tensor, "b t a"] | None = None) -> Float[Tensor, "b t a"]:
        """The expected action under the distribution over bins, which is differentiable."""
        return (at_least_fp32(self._logits(context)).softmax(dim=-1) * self.centres).sum(dim=-1)

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float:
        return math.log(self.bins)

    def _logits(self, context: Context) -> Float[Tensor, "b t a bins"]:
        output = self.layers(flatten_tokens(context.tokens, context.mask))
        return rearrange(output, "b (t a bins) -> b t a bins", t=self.spec.horizon, a=self.spec.action_size)
