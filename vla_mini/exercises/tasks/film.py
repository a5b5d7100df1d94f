"""The backward of FiLM: what is shared adds up

FiLM scales and shifts normalised image tokens by a vector made from the instruction (FiLMBlock in vla_mini/utils/layers.py):

    scale, shift = (vector @ weight.T + bias)[:, None].chunk(2, dim=-1)      each b 1 d
    y = x * (1 + scale) + shift

Given the gradient by y, compute the gradients by all four inputs.

    x         b n d
    vector    b c
    weight    (2 d) c
    bias      (2 d)
    grad_y    b n d
    returns   grad_x, grad_vector, grad_weight, grad_bias, each of the shape of its input

Hint: first by scale and shift, which all n tokens of a sample share. Then join these two; the rest is exercise 1.

Read first: docs/autograd.md, sections 5, 6 and 9
"""

import torch
from torch import Tensor

from vla_mini.exercises.compare import Case, check_backward


def film_backward(
    x: Tensor, vector: Tensor, weight: Tensor, bias: Tensor, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # solution:
    scale = (vector @ weight.T + bias).chunk(2, dim=-1)[0]
    # y = x * (1 + scale) + shift is element-wise, so the derivative by x is 1 + scale, of the token's own sample.
    grad_x = grad_y * (1 + scale[:, None])
    # Broadcasting repeats scale and shift for the n tokens, so their gradients are sums over n.
    grad_scale = (grad_y * x).sum(dim=1)
    grad_shift = grad_y.sum(dim=1)
    # chunk splits the 2 d outputs of a linear layer; its backward joins them in the same order.
    grad_both = torch.cat([grad_scale, grad_shift], dim=-1)
    return grad_x, grad_both @ weight, grad_both.T @ vector, grad_both.sum(dim=0)
    # end


# ---- judge

LOOK = {
    "x": "y is x * (1 + scale) + shift: mind the 1, and that each sample has its own scale",
    "bias": "the first d elements shift scale, the last d shift: sum over the tokens and over the samples",
    "weight": "the first d rows make scale and the last d rows shift; the gradients of all samples add up",
    "vector": "through scale and through shift; each is shared by n tokens (sum, not mean), and is a linear layer's output",
}


def forward(x: Tensor, vector: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    scale, shift = (vector @ weight.T + bias)[:, None].chunk(2, dim=-1)
    return x * (1 + scale) + shift


def inputs(case: Case) -> dict[str, Tensor]:
    weight, bias = torch.cat([case.randn("d c"), case.randn("d c")]), torch.cat([case.randn("d"), case.randn("d")])
    return {"x": case.randn("b n d"), "vector": case.randn("b c"), "weight": weight, "bias": bias}


def check(backward) -> str:
    return check_backward(backward, forward, "b n d c", inputs, look=LOOK)
