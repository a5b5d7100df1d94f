"""Gradient flow: a policy and a batch -> how much of the loss's gradient is left in each component, and at each depth.

A gradient is large or small only beside the weights that it is to move, so what is flagged is the ratio of their norms:

    vanishing   a plain gradient step at learning rate LEARNING_RATE would change the weights by less than float32 can
                hold, 2**-24 of them: it is rounded away;
    exploding   that step would change them by as much as they are, or their gradient is not finite.

Optimizers that rescale gradients (Adam, Muon) hide a small ratio, and train on its rounding errors; they do not cure it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.autograd.norms import by_component, norms
from vla_mini.policy import Policy
from vla_mini.types import Batch

LEARNING_RATE = 1e-3
VANISHING = 2**-24 / LEARNING_RATE  # ratios of gradient norm to weight norm
EXPLODING = 1 / LEARNING_RATE
# A weight counts as at least this much, so that an initialisation at zero is no explosion.
LEAST_WEIGHT = 1e-2


class Flow(NamedTuple):
    """Of some parameters taken as one long vector."""

    grad_norm: float
    weight_norm: float
    ratio: float  # of the two, with each weight counted as at least LEAST_WEIGHT
    vanishing: bool
    exploding: bool


class Layer(NamedTuple):
    """A module that holds parameters of its own, at its place on the way from pixels and words to the loss."""

    name: str
    flow: Flow
    arriving: float | None  # norm of the gradient that arrives at its output; None where that is no tensor


def mean_loss(policy: Policy, batch: Batch) -> Float[Tensor, ""]:
    """The loss that training minimises: the mean over all valid actions of the batch."""
    loss, _ = policy.loss(batch)
    return loss.sum() / (~batch.is_pad).sum()


def gradient_flow(policy: Policy, batch: Batch) -> tuple[dict[str, Flow], list[Layer]]:
    """The flow by component, and by layer in the order of the forward pass. Leaves `.grad` as it is."""
    with recorded_outputs(policy) as outputs:
        loss = mean_loss(policy, batch)
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    arrivals = {name: output for name, output in outputs.items() if output is not None and output.requires_grad}
    wanted = [*parameters.values(), *arrivals.values()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    gradients = dict(zip(parameters, norms(found[: len(parameters)]), strict=True))
    arriving = dict(zip(arrivals, norms(found[len(parameters) :]), strict=True))
    weights = dict(zip(parameters, norms(parameter.detach() for parameter in parameters.values()), strict=True))
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}

    def flow(names: list[str]) -> Flow:
        grad_norm = math.hypot(*(gradients[name] for name in names))
        weight_norm = math.hypot(*(weights[name] for name in names))
        return judge(grad_norm, weight_norm, size=sum(sizes[name] for name in names))

    names = by_component({name: name for name in parameters})
    layers = [(name, own) for name in outputs if (own := _own(name, parameters))]
    return (
        {component: flow(own) for component, own in names.items()},
        [Layer(name, flow(own), arriving.get(name)) for name, own in layers],
    )


def judge(grad_norm: float, weight_norm: float, *, size: int) -> Flow:
    """The flow of `size` parameters; the module's docstring says what is flagged."""
    ratio = grad_norm / max(weight_norm, LEAST_WEIGHT * size**0.5)
    return Flow(grad_norm, weight_norm, ratio, ratio < VANISHING, not ratio <= EXPLODING)


@contextmanager
def recorded_outputs(policy: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """Fills, while the policy computes, with the output of each module that holds parameters of its own, in the order in
    which they finish; None for an output that is no single tensor, and, in the end, for modules that were never called.

    What a module called several times put out first is kept.
    """
    holders = {name: module for name, module in policy.named_modules() if any(True for _ in module.parameters(recurse=False))}
    outputs: dict[str, Tensor | None] = {}

    def record(name: str, output: object) -> None:
        outputs.setdefault(name, output if isinstance(output, Tensor) else None)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in holders.items()
    ]
    try:
        yield outputs
        outputs.update({name: None for name in holders if name not in outputs})
    finally:
        for handle in handles:
            handle.remove()


def _own(module: str, parameters: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters that a module holds itself."""
    return [name for name in parameters if name.rpartition(".")[0] == module]
