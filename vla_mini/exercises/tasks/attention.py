"""The backward of softmax attention

    scores  = q @ k.mT / sqrt(d), and minus infinity for the tokens n where the mask is False      b h q n
    weights = scores.softmax(dim=-1)                                                               b h q n
    y       = weights @ v                                                                          b h q d

This is the attention of Block (vla_mini/utils/layers.py), with h heads. Given the gradient by y, compute those by q, k and v.

    q         b h q d
    k, v      b h n d
    mask      b n        True = attend
    grad_y    b h q d
    returns   grad_q, grad_k, grad_v, each of the shape of its input

Hint: go backward line by line: by v and weights, by scores, by q and k. For one row w of weights, with the gradient g, the
gradient by the scores is w * (g - s), where s is one number. Which? d w_i / d score_j = w_i * (1 if i == j else 0) - w_i * w_j.

Read first: docs/autograd.md, sections 3, 20 and 32
"""

from math import inf, sqrt

from torch import Tensor

from vla_mini.exercises.compare import Case, check_backward


def attention_backward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # solution:
    scale = 1 / sqrt(q.shape[-1])
    weights = (scale * q @ k.mT).masked_fill(~mask[:, None, None], -inf).softmax(dim=-1)
    # y = weights @ v is a matrix product: its backward is two, each with the other factor transposed.
    grad_v = weights.mT @ grad_y
    grad_weights = grad_y @ v.mT
    # sum over i of g_i d w_i / d score_j = w_j g_j - w_j (sum over i of g_i w_i). Masked tokens have weight 0, so gradient 0.
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(dim=-1, keepdim=True))
    # scores = scale q @ k^T, a matrix product again.
    return scale * grad_scores @ k, scale * grad_scores.mT @ q, grad_v
    # end


# ---- judge

LOOK = {
    "v": "y = weights @ v: the gradient by v is weights, transposed, times grad_y; the mask is part of the weights",
    "q": "grad_v is right, and so are the weights: next are the softmax, w * (g - sum of g * w along n), the scale, and k",
    "k": "grad_q is right, and so is the gradient by the scores: transpose it, and multiply by q and by the scale",
}


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.mT / sqrt(q.shape[-1])).masked_fill(~mask[:, None, None], -inf)
    return scores.softmax(dim=-1) @ v


def inputs(case: Case) -> dict[str, Tensor]:
    return {"q": case.randn("b h q d"), "k": case.randn("b h n d"), "v": case.randn("b h n d"), "mask": case.mask("b n")}


def check(backward) -> str:
    return check_backward(backward, forward, "b h q n d", inputs, look=LOOK)
