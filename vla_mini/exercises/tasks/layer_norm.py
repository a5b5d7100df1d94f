"""The backward of LayerNorm

    var  = x.var(dim=-1, keepdim=True, unbiased=False)
    xhat = (x - x.mean(dim=-1, keepdim=True)) / (var + 1e-5).sqrt()
    y    = xhat * gain + shift

Given the gradient by y, compute the gradients by x, gain and shift.

    x         b m d
    gain      d
    shift     d
    grad_y    b m d
    returns   grad_x, grad_gain, grad_shift, each of the shape of its input

Hint: an element of x changes xhat in three ways: by itself, through the mean, and through the variance; the latter two reach
all d elements of its token. With g for the gradient by xhat, write each way as a sum over d. Since xhat has the mean 0, what
the mean does to the variance cancels.

Read first: docs/autograd.md, sections 6 and 9
"""

from torch import Tensor
from torch.nn import functional as F

from vla_mini.exercises.compare import Case, check_backward


def layer_norm_backward(x: Tensor, gain: Tensor, shift: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # solution:
    std = (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    xhat = (x - x.mean(dim=-1, keepdim=True)) / std
    g = grad_y * gain
    # By itself, d xhat_i / d x_i = 1 / std:                                                 g_i / std
    # Through the mean, d mean / d x_i = 1 / d, and d xhat_j / d mean = -1 / std for all j:  -mean(g) / std
    # Through std, d std / d x_i = (x_i - mean) / (d std) = xhat_i / d, since the mean's own change cancels in the sum, and
    # d xhat_j / d std = -xhat_j / std for all j:                                            -xhat_i mean(g xhat) / std
    grad_x = (g - g.mean(dim=-1, keepdim=True) - xhat * (g * xhat).mean(dim=-1, keepdim=True)) / std
    # gain and shift are shared by all tokens.
    return grad_x, (grad_y * xhat).sum(dim=(0, 1)), grad_y.sum(dim=(0, 1))
    # end


# ---- judge

LOOK = {
    "gain": "y = xhat * gain + shift: multiply by xhat, whose variance is divided by d (not d - 1), and sum over b and m",
    "shift": "every token is shifted by the same vector: sum over b and m",
    "x": "three terms, by itself, through the mean and through the variance; all are divided by (var + eps).sqrt(), and in all "
    "of them grad_y is multiplied by gain",
}


def forward(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, gain.shape, gain, shift)


def inputs(case: Case) -> dict[str, Tensor]:
    return {"x": 2 * case.randn("b m d") + 1, "gain": case.randn("d"), "shift": case.randn("d")}


def check(backward) -> str:
    return check_backward(backward, forward, "b m d", inputs, look=LOOK)
