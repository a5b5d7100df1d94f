"""Where the first NaN or infinity appears: the batch is computed once more, this time with hooks.

    policy, batch -> "batch.observation.state", "the output of vision.stem", "the loss term action", "the gradient of ..."

Training calls this only after a loss or a gradient was not finite, so it costs nothing otherwise.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path

from vla_mini.autograd.batches import forward_hooks
from vla_mini.policy import Policy
from vla_mini.types import Batch


def first_nonfinite(policy: Policy, batch: Batch) -> str | None:
    """The first place, in the order of the computation, that holds a NaN or an infinity; None where there is none.

    Parameters are checked in the order in which backward computes their gradients, the reverse of forward. Afterwards the
    policy's gradients, buffers and hooks are as before. A compiled policy runs in eager mode.
    """
    for name, tensor in named_tensors(batch, "batch"):
        if not tensor.isfinite().all():
            return name
    found: list[str] = []  # modules, in the order in which they return

    def check(name: str, _inputs: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        # -infinity alone is allowed: masks and log-probabilities use it for "never".
        if any((tensor.isnan() | tensor.isposinf()).any() for tensor in tensors):
            found.append(name)

    buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}  # a BatchNorm changes its running statistics
    with torch.compiler.set_stance("force_eager"), forward_hooks(policy, check):
        loss, terms = functional_call(policy, buffers, (batch,))
    if found:
        return f"the output of {found[0]}"
    for name, term in [*terms.items(), ("total", loss)]:
        if not term.isfinite().all():
            return f"the loss term {name}"
    return _first_gradient(policy, loss.sum())


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors within tuples, lists, dicts and NamedTuples, each with its path: `batch.targets['keyframe']`."""
    for path, leaf in tree_leaves_with_path(value):
        if isinstance(leaf, Tensor):
            yield name + keystr(path), leaf


def _first_gradient(policy: nn.Module, loss: Tensor) -> str | None:
    """The parameter whose gradient is the first that is not finite. `torch.autograd.grad` leaves `.grad` unchanged."""
    found: list[str] = []

    def check(name: str, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            found.append(name)

    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with ExitStack() as stack:
        for name, parameter in parameters.items():
            stack.enter_context(parameter.register_hook(lambda gradient, name=name: check(name, gradient)))
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return f"the gradient of {found[0]}" if found else None
