"""What a forward pass keeps for backward: the bytes that autograd saves in the graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedBytes:
    """A count that grows while tensors are saved."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[SavedBytes]:
    """Counts the memory that the graph of what is computed inside keeps alive; the module's own parameters and buffers,
    which live anyway, are not counted, and memory that several nodes share is counted once."""
    counted = SavedBytes()
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counted.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted
