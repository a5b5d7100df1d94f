"""Fix: in-place operations

gated_tokens returns tokens * sigmoid(tokens) * gain, and zero where the mask is False. Its values are right, but it overwrites
its argument, and backward fails. Fix it: the same values, the right gradients by tokens and gain, unchanged arguments.

    tokens    b m d
    mask      b m      True = a real token
    gain      d
    returns   b m d

Hint: an in-place operation is harmless where no backward needs the old value and nobody else uses the tensor. Three lines work
in place. What does the derivative of sigmoid need, and what that of a product?

Read first: docs/autograd.md, section 15
"""

import torch
from torch import Tensor

from vla_mini.exercises.compare import WrongAnswerError, cases, compare


def gated_tokens(tokens: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
    # solution:
    gate = torch.sigmoid(tokens)
    # The derivative of sigmoid is computed from its output, gate (1 - gate), which `gate *= gain` would overwrite.
    # The derivatives of a product are its factors: `tokens *= gate` would overwrite one, which moreover is the caller's.
    gated = tokens * (gate * gain)
    # The product's own backward needs its factors only, so that its result may be overwritten.
    gated[~mask] = 0
    return gated
    # task:
    # gate = torch.sigmoid(tokens)
    # gate *= gain
    # tokens *= gate
    # tokens[~mask] = 0
    # return tokens
    # end


# ---- judge


def check(function) -> str:
    for case in cases("b m d"):
        leaves, mask = [case.randn("b m d").requires_grad_(), case.randn("d").requires_grad_()], case.mask("b m")
        right = leaves[0] * leaves[0].sigmoid() * leaves[1] * mask[..., None]
        tokens, gain = (leaf.clone() for leaf in leaves)  # no leaves, as within a policy
        arguments = {"tokens": tokens, "mask": mask.clone(), "gain": gain}
        before = {name: tensor.detach().clone() for name, tensor in arguments.items()}
        found = function(**arguments)
        masked = ("where the mask is False", ~mask[..., None])
        compare(
            "the output", found, right.detach(), case=case, where=masked, look="the file as it was computed the right values"
        )
        for name, tensor in arguments.items():
            if not torch.equal(tensor, before[name]):
                look = f"operations in place on {name}, or on a view of it: the caller's tensor changes, too"
                raise WrongAnswerError(f"the argument {name} was overwritten", look)
        vector = case.randn("b m d")
        rights = torch.autograd.grad(right, leaves, vector)
        try:
            gradients = torch.autograd.grad(found, leaves, vector, allow_unused=True)
        except RuntimeError as error:
            look = "the operation named here saved a tensor for backward, which a later line overwrites"
            raise WrongAnswerError(f"backward fails: {str(error).partition(';')[0]}", look) from error
        for name, gradient, expected in zip(("tokens", "gain"), gradients, rights, strict=True):
            look = f"the output depends on {name} in more than one way, or by a tensor that was detached"
            compare(f"the gradient by {name}", gradient, expected, case=case, where=masked, look=look)
    return "6 cases: values and gradients are right, and the arguments are unchanged"
