"""The backward of the flow-matching loss

FlowHead (vla_mini/action/flow.py) draws r noises and times for each chunk of actions, mixes, and learns the direction from the
noise to the actions. Here its velocity field is linear. For sample b and draw r, in the shape t a:

    noisy    = time[b, r] * actions[b] + (1 - time[b, r]) * noise[b, r]
    velocity = noisy @ weight.T + condition[b]
    error    = velocity - (actions[b] - noise[b, r])

The loss is the mean of error ** 2 over r, a and all valid actions. Compute its gradients by condition and weight.

    condition   b a
    weight      a a
    actions     b t a
    noise       b r t a
    time        b r
    is_pad      b t        True = not a valid action: it does not count at all
    returns     grad_condition, grad_weight, each of the shape of its input

Hint: first the gradient by velocity, which has a mask and a denominator; then exercise 1.

Read first: docs/autograd.md, sections 6, 9 and 11
"""

import torch
from torch import Tensor

from vla_mini.exercises.compare import Case, check_backward


def flow_loss_backward(
    condition: Tensor, weight: Tensor, actions: Tensor, noise: Tensor, time: Tensor, is_pad: Tensor
) -> tuple[Tensor, Tensor]:
    # solution:
    time, actions = time[:, :, None, None], actions[:, None]
    noisy = time * actions + (1 - time) * noise
    error = noisy @ weight.T + condition[:, None, None] - (actions - noise)
    # loss = sum of valid * error^2 / (r a number of valid actions), and d error^2 / d velocity = 2 error.
    _, r, _, a = error.shape
    valid = (~is_pad).to(error.dtype)
    grad_velocity = 2 * error * valid[:, None, :, None] / (r * a * valid.sum())
    # Broadcasting repeats condition[b] for all r and t: sum over these.
    grad_condition = grad_velocity.sum(dim=(1, 2))
    # A linear layer without bias, as in exercise 1: sum over b, r and t.
    grad_weight = torch.einsum("brto,brti->oi", grad_velocity, noisy)
    return grad_condition, grad_weight
    # end


# ---- judge

LOOK = {
    "condition": "the 2 of the square, the mask, the denominator (r times a times the number of valid actions); one condition "
    "serves r noises and t steps: sum over these",
    "weight": "grad_condition is right, and so is the gradient by velocity: multiply by noisy (not by noise); sum over b, r, t",
}


def forward(condition: Tensor, weight: Tensor, actions: Tensor, noise: Tensor, time: Tensor, is_pad: Tensor) -> Tensor:
    time, actions = time[..., None, None], actions[:, None]
    noisy = time * actions + (1 - time) * noise
    velocity = noisy @ weight.T + condition[:, None, None]
    losses = (velocity - (actions - noise)).square().mean(dim=(1, 3))  # "b t", as FlowHead.loss
    return losses[~is_pad].mean()


def inputs(case: Case) -> dict[str, Tensor]:
    drawn = {"noise": case.randn("b r t a"), "time": case.randn("b r").sigmoid(), "is_pad": ~case.mask("b t")}
    return {"condition": case.randn("b a"), "weight": case.randn("a a"), "actions": case.randn("b t a")} | drawn


def check(backward) -> str:
    return check_backward(backward, forward, "b r t a", inputs, look=LOOK, by=("condition", "weight"))
