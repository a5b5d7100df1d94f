"""Adam in ten lines

Write one step of Adam, equal to that of torch.optim.Adam. Adam keeps two running averages for each element of a parameter: of
its gradient (with the rate betas[0]) and of the gradient's square (with betas[1]). Both start at zero, and are therefore too
small at first: in step n = 1, 2, ... they are divided by 1 - beta ** n before use, but kept undivided. With these,

    new parameter = parameter - lr * average gradient / (root of the average square + eps)

    parameter, gradient   of the same shape
    state                 a dict, empty before the first step: put into it what the next step needs
    lr, betas, eps        as in torch.optim.Adam; betas are two numbers
    returns               the new parameter

Hint: a running average with the rate beta is beta * old + (1 - beta) * new.

Read first: docs/autograd.md, sections 17 and 29
"""

import torch
from torch import Tensor

from vla_mini.exercises.compare import compare


def adam_step(parameter: Tensor, gradient: Tensor, state: dict, lr: float, betas: tuple[float, float], eps: float) -> Tensor:
    # solution:
    beta1, beta2 = betas
    step = state.get("step", 0) + 1
    mean = beta1 * state.get("mean", 0.0) + (1 - beta1) * gradient
    square = beta2 * state.get("square", 0.0) + (1 - beta2) * gradient**2
    state.update(step=step, mean=mean, square=square)
    # In the first step mean is (1 - beta1) gradient. The division makes it the gradient again, and the square likewise, so that
    # every element moves by lr, however large its gradient is. Later the divisors approach 1.
    mean, square = mean / (1 - beta1**step), square / (1 - beta2**step)
    return parameter - lr * mean / (square.sqrt() + eps)
    # end


# ---- judge

FIRST = (
    "in the first step both averages, once divided, are those of this gradient alone: the parameter moves by "
    "lr * gradient / (|gradient| + eps); eps is added to the root, not under it"
)
LATER = "the first step is right: state has to keep both averages, undivided, and the number of steps, for this parameter"


def check(function) -> str:
    for seed, betas in enumerate([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]):
        generator = torch.Generator().manual_seed(seed)
        lr, eps = 10.0**-seed, 1e-8
        rights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((), (5,), (2, 3))]
        found, states = [parameter.clone() for parameter in rights], [{}, {}, {}]
        optimizer = torch.optim.Adam(rights, lr=lr, betas=betas, eps=eps)
        for step in range(1, 7):
            for index, right in enumerate(rights):
                right.grad = torch.randn(right.shape, generator=generator, dtype=torch.float64) * 10.0 ** (index - 1)
                if right.ndim:
                    right.grad.view(-1)[2:4] = torch.tensor([0.0, 1e-8])
                with torch.no_grad():
                    found[index] = function(found[index].clone(), right.grad.clone(), states[index], lr, betas, eps)
            optimizer.step()
            for index, right in enumerate(rights):
                name = f"after step {step} of lr={lr:g}, betas={betas}, parameter {index} of shape {tuple(right.shape)}"
                tiny = ("where the gradient is tiny", right.grad.abs() < 1e-6)
                compare(name, found[index], right, look=FIRST if step == 1 else LATER, where=tiny)
    return "6 steps of 3 parameters, with 3 settings: all as torch.optim.Adam"
