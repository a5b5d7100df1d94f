"""Accumulation with masks: micro-batches that equal one large batch

Leave in `.grad` of the policy's parameters the gradient of the mean loss over all valid actions of all micro-batches, as if
they were one batch: exactly, although they differ in size and in their number of valid actions. Only one micro-batch's graph
may be in memory at a time. What an earlier step left in `.grad` must not count.

    micro_batches           each holds is_pad, b t: True where an action is not valid (past the episode's end)
    policy.loss(batch)[0]   b t, the loss of each action: zero where is_pad is True
    returns                 nothing

Hint: what is the denominator of the large batch's mean? And backward adds to `.grad`.

Read first: docs/autograd.md, section 11
"""

import torch

from vla_mini.exercises.compare import WrongAnswerError, compare, saved_tensors
from vla_mini.policy import Policy
from vla_mini.testing import FEATURES, make_batch, make_policy, mean_loss, split
from vla_mini.types import Batch


def accumulate(policy: Policy, micro_batches: list[Batch]) -> None:
    # solution:
    policy.zero_grad()
    # The mean over all valid actions is (sum of all losses) / (number of all valid actions). The gradient of a sum is the sum
    # of the gradients, so each micro-batch can add its part by itself, if all are divided by the same, common number.
    # In a mean of the micro-batches' means, an action counts more the fewer valid ones there are in its micro-batch.
    num_valid = sum((~batch.is_pad).sum() for batch in micro_batches)
    for batch in micro_batches:
        loss, _ = policy.loss(batch)
        (loss.sum() / num_valid).backward()  # frees this micro-batch's graph
    # end


# ---- judge

LOOK = (
    "sum the losses and divide by one number, that of the valid actions (~is_pad) of all micro-batches; zero_grad once, before "
    "the first backward"
)


def check(function) -> str:
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), dtype=torch.float64)
    whole = make_batch(policy, 6)
    for sizes in ((1, 3, 2), (2, 2, 2), (6,)):
        policy.zero_grad()
        mean_loss(policy, whole).backward()
        right = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
        before: list[int] = []
        with saved_tensors() as (kept, _):
            hook = policy.language.register_forward_pre_hook(lambda *_, kept=kept, before=before: before.append(len(kept)))
            try:  # with the gradients of the last step still there
                function(policy, split(whole, sizes))
            finally:
                hook.remove()
        text = f"with micro-batches of {', '.join(map(str, sizes))} samples, the gradient of "
        for name, parameter in policy.named_parameters():
            if parameter.grad is not None:
                compare(text + name, parameter.grad, right[name], look=LOOK)
            elif right[name].any():
                raise WrongAnswerError(f"{text}{name} is None", "call backward for each micro-batch")
        if any(before):
            number = next(index for index, count in enumerate(before) if count)
            text = f"when the loss of micro-batch {number} is computed, {before[number]} tensors saved before are in memory"
            look = "call backward for each micro-batch, which frees its graph, before the next loss is computed"
            raise WrongAnswerError(text, look)
    return "3 ways to split a batch: the gradient of each parameter is that of the whole batch"
