"""What everything here computes on: a blank batch, a batch's mean loss, some of its samples, and noise that is drawn for each
sample; and hooks on all modules of a policy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation

Tensors = TypeVar("Tensors")  # an Observation, a Batch or anything else that is made of tensors
SAME_SHAPE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


def mean_loss(policy: Policy, batch: Batch) -> Float[Tensor, ""]:
    """The loss that training minimises: the mean over all valid actions of the batch."""
    loss, _ = policy.loss(batch)
    return loss.sum() / (~batch.is_pad).sum()


def blank_batch(policy: Policy, size: int = 1) -> Batch:
    """`size` samples of zeros with empty instructions, of the policy's sizes and dtype, on the CPU; no action is padded."""
    features, history, dtype = policy.features, policy.history, policy.normalization.state_mean.dtype
    data = SimpleNamespace(  # one episode, as EpisodeData (parts.py) describes it
        features=features,
        states=np.zeros((size, features.state_size), np.float32),
        actions=np.zeros((size, features.action_size), np.float32),
        episode_starts=np.array([0]),
        episode_ends=np.array([size]),
    )
    images = torch.zeros(size, history * len(features.cameras), 3, *features.image_size, dtype=torch.uint8)
    state = torch.zeros(size, history * features.state_size, dtype=dtype)
    return Batch(
        Observation(images, *policy.tokenize([""] * size), state),
        torch.zeros(size, policy.horizon, features.action_size, dtype=dtype),
        torch.zeros(size, policy.horizon, dtype=torch.bool),
        {name: torch.from_numpy(rows) for name, rows in policy.auxiliary_targets(data).items()},
    )


def select(tensors: Tensors, index: int | slice | list[int]) -> Tensors:
    """The samples at `index` of each tensor; an integer removes the batch dimension."""
    return tree_map(lambda tensor: tensor[index], tensors)


@contextmanager
def forward_hooks(policy: nn.Module, hook: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Inside, `hook(name, (args, kwargs), output)` follows each forward pass of each submodule, not of the policy itself.

    It may return another output.
    """

    def named(name: str) -> Callable[..., Any]:
        return lambda _module, args, kwargs, output: hook(name, (args, kwargs), output)

    with ExitStack() as stack:
        for name, module in policy.named_modules():
            if name:
                stack.enter_context(module.register_forward_hook(named(name), with_kwargs=True))
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers inside follow `seed`; those drawn afterwards, on the host and on a GPU, are as if nothing was drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class NoiseSlice(TorchFunctionMode):
    """torch.rand, torch.randn and their `_like` return a part, from row `first` on, of what they draw for `total` samples, so
    that the losses of a batch's parts add up to the loss of the whole.

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
