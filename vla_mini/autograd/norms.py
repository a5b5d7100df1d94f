"""Gradients in numbers: a policy after backward -> the norm of each component's gradient."""

import torch
from torch import nn


def components(policy: nn.Module) -> dict[str, nn.Module]:
    """The parts of a policy that hold parameters, by name: vision, language, trunk, action, state, projection ..."""
    return {name: part for name, part in policy.named_children() if any(True for _ in part.parameters())}


def gradient_norms(policy: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of each component; a component without any gradient is left out.

    One fused pass over all parameters and one transfer to the host.
    """
    named = [
        (name, parameter.grad)
        for name, part in components(policy).items()
        for parameter in part.parameters()
        if parameter.grad is not None
    ]
    if not named:
        return {}
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named])).tolist()
    squares: dict[str, float] = {}
    for (name, _), norm in zip(named, norms, strict=True):
        squares[name] = squares.get(name, 0.0) + norm**2
    return {name: square**0.5 for name, square in squares.items()}
