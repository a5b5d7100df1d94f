"""The backward of a linear layer

The layer computes y = x W^T + b, as torch.nn.Linear does; the same W and b serve all tokens of all samples. Given the gradient
of a loss by y, compute its gradients by x, W and b: by hand, without autograd.

    x         b m d    the tokens of a context
    weight    o d      W, a row for each output
    bias      o        b
    grad_y    b m o    the gradient of the loss by y
    returns   grad_x, grad_weight, grad_bias, each of the shape of its input

Hint: y[b, m, o] = bias[o] + the sum over d of x[b, m, d] * weight[o, d]. The gradient by an element is a sum over all outputs
in which it appears: the gradient by that output, times what the element is multiplied by there.

Read first: docs/autograd.md, sections 3 and 9
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mini.exercises.compare import Case, check_backward


def linear_backward(x: Tensor, weight: Tensor, bias: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # solution:
    # x[b, m, d] appears in all outputs o of its token, multiplied by weight[o, d]: the sum is over o.
    grad_x = grad_y @ weight
    # weight[o, d] appears in output o of every token, multiplied by x[b, m, d]: the sum is over b and m.
    grad_weight = torch.einsum("bmo,bmd->od", grad_y, x)
    # bias[o] appears in output o of every token, multiplied by 1.
    grad_bias = grad_y.sum(dim=(0, 1))
    return grad_x, grad_weight, grad_bias
    # end


# ---- judge

LOOK = {
    "x": "an element of x appears in all outputs of its own token, and in no other: sum over o, keep b and m",
    "weight": "an element of weight appears in one output of every token of every sample: sum over b and m (if the loss is a "
    "mean, its division is in grad_y)",
    "bias": "an element of bias appears in one output of every token of every sample: sum over b and m",
}


def inputs(case: Case) -> dict[str, Tensor]:
    return {"x": case.randn("b m d"), "weight": case.randn("o d"), "bias": case.randn("o")}


def check(backward) -> str:
    return check_backward(backward, F.linear, "b m d o", inputs, look=LOOK)
