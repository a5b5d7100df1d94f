"""Gradient flow: a policy and a batch -> how large the loss's gradient is in each component and in each layer.

A gradient is large or small only in comparison with the weights that it changes, so the ratio of their norms is flagged:

    vanishing   a plain gradient step at learning rate LEARNING_RATE would change the weights by less than 2**-24 of their
                norm, the precision of float32: rounding removes the step
    exploding   that step would change the weights by as much as their own norm, or the gradient is not finite

Optimizers that rescale gradients (Adam, Muon) hide a small ratio and then train on rounding errors; they do not cure it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_mini.autograd.batches import forward_hooks, mean_loss
from vla_mini.policy import Policy
from vla_mini.types import Batch

LEARNING_RATE = 1e-3
VANISHING = 2**-24 / LEARNING_RATE  # ratios of gradient norm to weight norm
EXPLODING = 1 / LEARNING_RATE
# The root mean square of weights counts as at least this much, so that weights that start at zero are not "exploding".
MIN_WEIGHT = 1e-2


class GradientFlow(NamedTuple):
    """The gradient of some parameters, taken as one long vector."""

    grad_norm: float
    weight_norm: float
    ratio: float  # grad_norm / weight_norm, where each weight counts as at least MIN_WEIGHT
    vanishing: bool
    exploding: bool


class Layer(NamedTuple):
    """A module with parameters of its own."""

    name: str
    flow: GradientFlow
    output_grad_norm: float | None  # of the loss's gradient by the module's output; None where the output is no tensor


def gradient_flow(policy: Policy, batch: Batch) -> tuple[dict[str, GradientFlow], list[Layer]]:
    """The flow by component, and by layer in the order of the forward pass. Leaves `.grad` unchanged."""
    with recorded_outputs(policy) as outputs:
        loss = mean_loss(policy, batch)
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    tensors = {name: output for name, output in outputs.items() if output is not None and output.requires_grad}
    inputs = [*parameters.values(), *tensors.values()]
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    gradients = [gradient.norm().item() for gradient in found]
    grad_norms = dict(zip(parameters, gradients[: len(parameters)], strict=True))
    output_grad_norms = dict(zip(tensors, gradients[len(parameters) :], strict=True))
    weight_norms = {name: parameter.norm().item() for name, parameter in parameters.items()}

    def flow(names: list[str]) -> GradientFlow:
        grad_norm = math.hypot(*(grad_norms[name] for name in names))
        weight_norm = math.hypot(*(weight_norms[name] for name in names))
        return classify(grad_norm, weight_norm, size=sum(parameters[name].numel() for name in names))

    components: dict[str, list[str]] = {}  # component -> all parameters within it
    own: dict[str, list[str]] = {}  # module -> the parameters that belong to it itself, not to a module within it
    for name in parameters:
        components.setdefault(name.partition(".")[0], []).append(name)
        own.setdefault(name.rpartition(".")[0], []).append(name)
    order = [name for name in dict.fromkeys([*outputs, *own]) if name in own]  # modules that were not called are the last
    layers = [Layer(name, flow(own[name]), output_grad_norms.get(name)) for name in order]
    return {component: flow(names) for component, names in components.items()}, layers


def classify(grad_norm: float, weight_norm: float, *, size: int) -> GradientFlow:
    """The flow of `size` parameters with these norms; the module's docstring explains the flags."""
    ratio = grad_norm / max(weight_norm, MIN_WEIGHT * size**0.5)
    return GradientFlow(grad_norm, weight_norm, ratio, vanishing=ratio < VANISHING, exploding=not ratio <= EXPLODING)


@contextmanager
def recorded_outputs(policy: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """Yields a dict that is filled with the first output of each module with parameters of its own that is called, in the order
    of execution; None for an output that is no single tensor."""
    modules = {name for name, module in policy.named_modules() if any(True for _ in module.parameters(recurse=False))}
    outputs: dict[str, Tensor | None] = {}

    def record(name: str, _inputs: object, output: object) -> None:
        if name in modules:
            outputs.setdefault(name, output if isinstance(output, Tensor) else None)

    with forward_hooks(policy, record):
        yield outputs
