"""Random numbers for heads that draw noise: a sample gets the same, whether it comes alone or within its batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of their own inside; outside none were drawn, of the host's or of a GPU's."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Draws(TorchFunctionMode):
    """What torch.rand and torch.randn (and their `_like`) draw for a part of a batch is a part of what they draw for all of its
    `total` samples, from `first` on. Their first dimension has to be the batch's; begin each part with the same seed."""

    def __init__(self, first: int, total: int):
        super().__init__()
        self.first, self.total = first, total

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in LIKE:
            (like,), function = args, LIKE[function]
            args, kwargs = tuple(like.shape), {"dtype": like.dtype, "device": like.device} | kwargs
        if function not in LIKE.values():
            return function(*args, **kwargs)
        size, *rest = args[0] if isinstance(args[0], Sequence) else args
        return function(self.total, *rest, **kwargs)[self.first : self.first + size]
