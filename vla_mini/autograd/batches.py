"""What everything here computes on: a batch -> its mean loss, some of its samples, and noise that is drawn for each sample.

A head that draws noise in its `loss` draws tensors whose first dimension is the batch's. Within `NoiseSlice`, a part of the
batch gets the rows that the whole batch would get, so that the losses of parts add up to the loss of the whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vla_mini.policy import Policy
from vla_mini.types import Batch

Tensors = TypeVar("Tensors")  # an Observation, a Batch or anything else that is made of tensors
SAME_SHAPE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


def mean_loss(policy: Policy, batch: Batch) -> Float[Tensor, ""]:
    """The loss that training minimises: the mean over all valid actions of the batch."""
    loss, _ = policy.loss(batch)
    return loss.sum() / (~batch.is_pad).sum()


def select(tensors: Tensors, index: int | slice | list[int]) -> Tensors:
    """The samples at `index` of each tensor; an integer removes the batch dimension."""
    return tree_map(lambda tensor: tensor[index], tensors)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers inside follow `seed`; those drawn afterwards, on the host and on a GPU, are as if nothing was drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class NoiseSlice(TorchFunctionMode):
    """torch.rand, torch.randn and their `_like` return a part, from row `first` on, of what they draw for `total` samples.

    Their first dimension has to be the batch's. Each part of a batch has to begin with the same seed.
    """

    def __init__(self, first: int, total: int):
        super().__init__()
        self.first, self.total = first, total

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in SAME_SHAPE:
            (like,), function = args, SAME_SHAPE[function]
            args, kwargs = tuple(like.shape), {"dtype": like.dtype, "device": like.device} | kwargs
        if function not in SAME_SHAPE.values():
            return function(*args, **kwargs)
        size, *rest = args[0] if isinstance(args[0], Sequence) else args
        return function(self.total, *rest, **kwargs)[self.first : self.first + size]
