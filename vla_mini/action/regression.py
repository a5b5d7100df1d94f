"""The plain head: context -> one chunk of actions, "b t a", by an MLP; trained by L1, MSE or Huber."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from vla_mini.parts import ActionHead, HeadSpec
from vla_mini.types import Context
from vla_mini.utils.layers import flatten_tokens, mlp

DISTANCES = {"l1": F.l1_loss, "mse": F.mse_loss, "huber": F.smooth_l1_loss}


class RegressionHead(ActionHead):
    """All context tokens side by side, two hidden layers, the whole chunk at once.

    - hidden: width of the hidden layers
    - distance: l1 (as ACT, Zhao et al. 2023), mse or huber
    """

    def __init__(self, spec: HeadSpec, *, hidden: PositiveInt = 256, distance: Literal["l1", "mse", "huber"] = "l1"):
        super().__init__()
        self.distance = distance
        self.layers = mlp(spec.num_tokens * spec.context_width, hidden, spec.horizon * spec.action_size)

    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The distance between predicted and demonstrated action (normalised units), averaged over the action's size."""
        prediction = self.predict(context).to(actions.dtype)
        return DISTANCES[self.distance](prediction, actions, reduction="none").mean(dim=-1)

    def predict(self, context: Context, noise: Float[Tensor, "b t a"] | None = None) -> Float[Tensor, "b t a"]:
        output = self.layers(flatten_tokens(context.tokens, context.mask))
        return rearrange(output, "b (t a) -> b t a", t=self.spec.horizon)

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float:
        return float(DISTANCES[self.distance](torch.zeros_like(actions), actions))
