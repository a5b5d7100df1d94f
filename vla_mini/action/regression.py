"""The plain head: context -> one chunk of actions, `b t a`, by a multi-layer perceptron; trained by L1, MSE or Huber."""

from typing import Literal

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vla_mini.types import Context

DISTANCES = {"l1": F.l1_loss, "mse": F.mse_loss, "huber": F.smooth_l1_loss}


class RegressionHead(nn.Module):
    """All context tokens side by side, two hidden layers, the whole chunk at once.

    - context_width, num_tokens: the trunk's width and number of context tokens
    - horizon, action_size: the chunk's shape
    - hidden: width of the hidden layers
    - distance: l1 (as ACT, Zhao et al. 2023), mse or huber
    """

    def __init__(
        self,
        *,
        context_width: int,
        num_tokens: int,
        horizon: int,
        action_size: int,
        hidden: int = 256,
        distance: Literal["l1", "mse", "huber"] = "l1",
    ):
        super().__init__()
        self.horizon, self.action_size, self.hidden, self.distance = horizon, action_size, hidden, distance
        self.layers = nn.Sequential(
            nn.Linear(num_tokens * context_width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, horizon * action_size),
        )

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The distance of each predicted action to the expert's (normalised units), averaged over the action's size."""
        prediction = self.predict(context).to(actions.dtype)
        return DISTANCES[self.distance](prediction, actions, reduction="none").mean(dim=-1)

    def predict(self, context: Context, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        tokens = rearrange(context.tokens * context.mask[..., None], "b m d -> b (m d)")
        return rearrange(self.layers(tokens), "b (t a) -> b t a", t=self.horizon)
