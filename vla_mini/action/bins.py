"""Actions as words: context -> a distribution over bins for each action value; trained by cross-entropy.

As RT-1 (arXiv 2212.06817) and OpenVLA (2406.09246) do, each dimension of each action falls into one of `bins` intervals:
equally wide ones over [-1, 1] (normalised), or, finer where the data's actions are dense, between their quantiles.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vla_mini.layers import at_least_fp32
from vla_mini.types import Context


class BinsHead(nn.Module):
    """All context tokens side by side, two hidden layers, logits over the bins of every action value.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden: width of the hidden layers
    - bins: intervals for one action value
    - spacing: uniform or quantile
    - action_quantiles: of the training data, 0 % to 100 %, normalised; None: they come with saved weights
    """

    def __init__(
        self,
        *,
        context_width: int,
        num_tokens: int,
        horizon: int,
        action_size: int,
        hidden: int = 256,
        bins: int = 21,
        spacing: Literal["uniform", "quantile"] = "uniform",
        action_quantiles: Float[Tensor, "r a"] | None = None,
    ):
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins={bins}: at least 2 are needed")
        self.horizon, self.action_size, self.hidden, self.bins, self.spacing = horizon, action_size, hidden, bins, spacing
        self.layers = nn.Sequential(
            nn.Linear(num_tokens * context_width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, horizon * action_size * bins),
        )
        # Centres that reach -1 and 1 exactly: the ends of the range are the commonest actions of all.
        if spacing == "uniform" or action_quantiles is None:
            centres = torch.linspace(-1, 1, bins).expand(action_size, bins).contiguous()
        else:
            centres = _evenly_picked(action_quantiles, bins)
        self.register_buffer("centres", centres, persistent=spacing == "quantile")

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Cross-entropy of the bin whose centre is nearest to the expert's action, in nats, averaged over the action's size."""
        logits = rearrange(self._logits(context).to(actions.dtype), "b t a bins -> b bins t a")
        nearest = (actions[..., None] - self.centres).abs().argmin(dim=-1)
        return F.cross_entropy(logits, nearest, reduction="none").mean(dim=-1)

    def predict(self, context: Context, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        """The expected action under the distribution over bins, which is differentiable."""
        return (at_least_fp32(self._logits(context)).softmax(dim=-1) * self.centres).sum(dim=-1)

    def _logits(self, context: Context) -> Float[Tensor, "b t a bins"]:
        tokens = rearrange(context.tokens * context.mask[..., None], "b m d -> b (m d)")
        return rearrange(self.layers(tokens), "b (t a bins) -> b t a bins", t=self.horizon, a=self.action_size)


def _evenly_picked(quantiles: Float[Tensor, "r a"], bins: int) -> Float[Tensor, "a bins"]:
    """As many quantiles as there are bins, from the lowest to the highest, between given ones by interpolation."""
    place = torch.linspace(0, len(quantiles) - 1, bins)
    low = place.floor().long().clamp(max=len(quantiles) - 2)
    return torch.lerp(quantiles[low], quantiles[low + 1], (place - low)[:, None]).T.contiguous()
