"""Where the first NaN or infinity comes from: the offending batch is computed once more, this time with hooks.

    policy, batch -> "batch.observation.state", "the output of vision.stem", "the loss term action", "the gradient of ..."

Nothing is paid for this while all is well.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vla_mini.policy import Policy
from vla_mini.types import Batch


def first_nonfinite(policy: Policy, batch: Batch, *, gradients: bool = True) -> str | None:
    """The first place, in the order of the computation, that holds a NaN or an infinity; None where there is none.

    Parameters are looked at in the order in which their gradients arrive in backward, which is the reverse of forward. The
    policy's gradients, buffers and hooks are as before afterwards. A compiled policy runs in eager mode.
    """
    for name, tensor in named_tensors(batch, "batch"):
        if not tensor.isfinite().all():
            return name
    with torch.compiler.set_stance("force_eager"), _buffers_kept(policy):
        with _watching_outputs(policy) as found:
            loss, terms = policy.loss(batch)
        if found:
            return f"the output of {found[0]}"
        for name, term in [*terms.items(), ("total", loss)]:
            if not term.isfinite().all():
                return f"the loss term {name}"
        return _first_gradient(policy, loss.sum()) if gradients else None


def is_nonfinite(tensor: Tensor) -> bool:
    """Whether it holds a NaN or +infinity. -infinity alone is how masks and log-probabilities say never."""
    return tensor.is_floating_point() and bool((tensor.isnan() | tensor.isposinf()).any())


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors within tuples, lists, mappings and NamedTuples, each with the path that leads there."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", range(len(value)))  # a NamedTuple has names
        for field, item in zip(fields, value, strict=True):
            yield from named_tensors(item, f"{name}.{field}")


@contextmanager
def _watching_outputs(policy: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose output was not finite, in the order in which they returned: inner ones first."""
    found: list[str] = []

    def hook(name: str) -> Any:
        return lambda module, inputs, output: (
            found.append(name) if any(is_nonfinite(tensor) for _, tensor in named_tensors(output, name)) else None
        )

    with ExitStack() as stack:
        for name, module in policy.named_modules():
            if name:
                stack.callback(module.register_forward_hook(hook(name)).remove)
        yield found


def _first_gradient(policy: nn.Module, loss: Tensor) -> str | None:
    """The parameter whose gradient is the first to arrive non-finite. `torch.autograd.grad` leaves `.grad` as it is."""
    found: list[str] = []

    def hook(name: str) -> Any:
        return lambda gradient: None if gradient.isfinite().all() else found.append(name)

    learning = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with ExitStack() as stack:
        for name, parameter in learning.items():
            stack.callback(parameter.register_hook(hook(name)).remove)
        torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return f"the gradient of {found[0]}" if found else None


@contextmanager
def _buffers_kept(policy: nn.Module) -> Iterator[None]:
    """Running statistics, such as BatchNorm's, take no part in what is computed inside."""
    before = [(buffer, buffer.clone()) for buffer in policy.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
