"""Memory: what a forward pass keeps for backward, the bytes that autograd saves in the graph; and what is alive at its peak."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that tensors made within `function` hold at one time. What a kernel needs while it runs is not seen."""
    with _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Sees each operation below autograd and torch.func: memory that appears in its outputs is live until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._sizes: dict[int, int] = {}  # of the memory that is alive, by storage

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))} | self._sizes.keys()
        outputs = operation(*args, **(kwargs or {}))
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._sizes[storage._cdata] = storage.nbytes()
                self._live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self._live)
        return outputs

    def _free(self, storage: int) -> None:
        self._live -= self._sizes.pop(storage)


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
