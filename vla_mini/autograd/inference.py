"""What predicting costs in grad mode, in no_grad and in inference_mode: time, bytes saved for backward, peak bytes."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla_mini.policy import Policy
from vla_mini.types import Observation

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Cost(NamedTuple):
    milliseconds: float  # the median of `repeats` runs
    saved_bytes: int  # kept for a backward pass
    peak_bytes: int  # of tensors alive at once, without the policy's parameters


def compare_modes(
    policy: Policy, observation: Observation, *, repeats: int = 30, seed: int = 0
) -> tuple[dict[str, Cost], bool]:
    """The cost of predicting in each mode, and whether the actions of all modes are bit-identical."""
    generator = torch.Generator(policy.device)

    def predict() -> Float[Tensor, "b t a"]:
        return policy.predict_chunk(observation, generator.manual_seed(seed))

    actions, seconds = {}, {name: [] for name in MODES}
    for _ in range(repeats + 1):  # the modes take turns, so that other load slows all of them equally; the first run warms up
        for name, mode in MODES.items():
            with mode():
                start = time.perf_counter()
                actions[name] = predict()
                seconds[name].append(time.perf_counter() - start)
    costs = {}
    for name, mode in MODES.items():  # measured in separate runs, since counting takes time
        with mode():
            with count_saved_bytes(policy) as saved:
                predict()
            costs[name] = Cost(1000 * statistics.median(seconds[name][1:]), sum(saved), peak_memory(predict))
    return costs, all(torch.equal(actions["grad"], other) for other in actions.values())


@contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[list[int]]:
    """Yields a list that gets the bytes of each block of memory that autograd saves for a backward pass.

    The module's own parameters and buffers are not counted; memory that several nodes share is counted once.
    """
    saved: list[int] = []
    counted_storages = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted_storages:
            counted_storages.add(storage.data_ptr())
            saved.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that tensors made within `function` hold at one time, without the temporary memory of kernels."""
    with _LiveBytes() as live:
        function()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Intercepts each operation below autograd and torch.func: new memory in its outputs is alive until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._sizes: dict[int, int] = {}  # storage -> bytes, of the memory that is alive

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
