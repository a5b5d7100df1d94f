"""Grad mode, no_grad and inference_mode: one observation, three times the same actions, and what each costs."""

import statistics
import time
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_mini.autograd.saved import count_saved_bytes, peak_memory
from vla_mini.policy import Policy
from vla_mini.types import Observation

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Cost(NamedTuple):
    milliseconds: float  # the median of `repeats` runs
    saved_bytes: int  # kept for a backward pass
    peak_bytes: int  # of tensors alive at once, beside the policy's own


def compare_modes(
    policy: Policy, observation: Observation, *, repeats: int = 30, seed: int = 0
) -> tuple[dict[str, Cost], bool]:
    """The cost of predicting in each mode, and whether their actions are the same to the last bit."""
    generator = torch.Generator(policy.device)

    def predict() -> Float[Tensor, "b t a"]:
        images, words, mask, state = policy.prepare(observation)
        return policy.predict(images, words, state, generator.manual_seed(seed), word_mask=mask)

    actions, seconds = {}, {name: [] for name in MODES}
    for _ in range(repeats + 1):  # in turns, so that a slow moment strikes all; the first pays for setting up
        for name, mode in MODES.items():
            with mode():
                start = time.perf_counter()
                actions[name] = predict()
                seconds[name].append(time.perf_counter() - start)
    costs = {}
    for name, mode in MODES.items():  # runs of their own: counting takes time
        with mode():
            with count_saved_bytes(policy) as saved:
                predict()
            costs[name] = Cost(1000 * statistics.median(seconds[name][1:]), saved.bytes, peak_memory(predict))
    return costs, all(torch.equal(actions["grad"], other) for other in actions.values())
