"""Fix: a gradient that vanishes

encode applies 24 layers, each with a nonlinearity, and the gradient that arrives at the first ones is almost nothing: they do
not learn. Find out why, and fix it: the gradient that arrives at the output of any layer should have at least a hundredth, and
at most a hundred times, the norm of the one at the last layer's output.

    layers    24 times nn.Linear(d, d), with torch's initial weights: call each once, in order, and change none
    x         b d
    returns   b d, which is not a linear function of x

Hint: `check` prints the norms. By what is the gradient multiplied from one layer to the one before it? Then look at the last
lines of Block and FiLMBlock in vla_mini/utils/layers.py.

Read first: docs/autograd.md, sections 9, 22 and 31
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_mini.exercises.compare import WrongAnswerError


def encode(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        # solution:
        # Backward through sigmoid(W x + b) multiplies by s' and by W^T. The sigmoid's derivative s' is at most 1/4, and torch's
        # weights, uniform up to 1 / sqrt(d), shrink a vector to about 1 / sqrt(3): after 24 factors of 1/7 nothing is left.
        # ReLU makes the factor 1 / sqrt(6), tanh at most 1 / sqrt(3): not enough.
        # With a residual connection the Jacobian is I + (the layer's Jacobian), and the gradient arrives through the I.
        # The normalisation bounds what each layer adds, whatever the norm of x.
        x = x + torch.relu(layer(F.layer_norm(x, x.shape[-1:])))
        # task:
        # x = torch.sigmoid(layer(x))
        # end
    return x


# ---- judge


def check(function) -> str:
    for seed, (size, width) in enumerate([(4, 16), (1, 32), (8, 16)]):
        torch.manual_seed(seed)
        layers = nn.ModuleList(nn.Linear(width, width) for _ in range(24)).double()
        before = [parameter.clone() for parameter in layers.parameters()]
        x = torch.randn(size, width, dtype=torch.float64)
        outputs: list[tuple[nn.Module, Tensor]] = []
        for layer in layers:
            layer.register_forward_hook(lambda layer, _, output, outputs=outputs: outputs.append((layer, output)))
        y = function(layers, x.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = f"of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"of type {type(y).__name__}"
            raise WrongAnswerError(f"the output is {found}, and should be a tensor of shape {tuple(x.shape)}", "the return")
        if [layer for layer, _ in outputs] != list(layers):
            raise WrongAnswerError(f"{len(outputs)} calls of layers", "each of the 24 is to be called once, in order")
        if not all(torch.equal(*both) for both in zip(layers.parameters(), before, strict=True)):
            raise WrongAnswerError("the layers' weights have changed", "what is done with the layers' outputs, not in them")
        tensors, vector = [output for _, output in outputs], torch.randn(x.shape, dtype=torch.float64)
        if not y.requires_grad:
            raise WrongAnswerError("the output has no graph: no gradient arrives anywhere", "detach, no_grad and .data")
        gradients = torch.autograd.grad(y, tensors, vector, allow_unused=True)
        norms = [0.0 if gradient is None else gradient.norm().item() for gradient in gradients]
        _check_norms(norms)
        direction = torch.randn_like(x)
        with torch.no_grad():
            bend = function(layers, x + direction) + function(layers, x - direction) - 2 * function(layers, x)
        if bend.abs().max() < 1e-9:
            look = "without nonlinearities 24 layers can do no more than one"
            raise WrongAnswerError("the output is a linear function of x", look)
    return "3 encoders of 24 layers: the gradient arrives at each of them"


def _check_norms(norms: list[float]) -> None:
    if all(norms[-1] / 100 <= norm <= 100 * norms[-1] for norm in norms) and norms[-1] > 0:
        return
    shown = ", ".join(f"layer {index} {norms[index]:.1e}" for index in (23, 22, 20, 16, 8, 0))
    factor = (norms[0] / norms[-1]) ** (1 / 23) if norms[-1] else 0.0
    verb = "vanishes" if norms[0] < norms[-1] else "explodes"
    look = "what does backward multiply by between two layers, and which connection lets the gradient past it?"
    text = f"the gradient {verb}: a factor of {factor:.2g} in each layer, {factor**23:.1e} in all"
    raise WrongAnswerError(f"{text}\nnorm at the output of {shown}", look)
