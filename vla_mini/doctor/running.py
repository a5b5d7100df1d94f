"""Checks of how fast training is, beside what the machine can do; and whether its end, the closed loop, can be reached."""

import copy
import os
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from vla_mini.data.windows import ActionWindows
from vla_mini.doctor.finding import Finding
from vla_mini.doctor.learning import Stepper
from vla_mini.evaluation.rollout import rollout
from vla_mini.machine import matrix_product_rate
from vla_mini.policy import Policy
from vla_mini.training.selection import evaluating

# Of the machine's rate of matrix products; and of a step, what getting a batch may take.
LEAST_SHARE, MOST_LOADING = 0.02, 0.25
OPTIONS = {"purpose": "selection", "seed": 0, "split": "seen"}  # as training asks for


def closed_loop(policy: Policy, env_id: str, *, episodes: int = 2) -> Finding:
    """Can the policy act in the environment that it will be evaluated in?"""
    expected = "episodes are played to their end"
    try:
        with evaluating(policy):
            results = rollout(policy, env_id, episodes=range(episodes), options=OPTIONS)
    except Exception as error:  # whatever an environment may raise
        advice = "training would go on to its first evaluation, and stop there: give the environment of these data by env.id"
        return Finding("closed loop", "fail", f"{env_id}: {' '.join(str(error).split())}", expected, advice)
    steps = sum(result.steps for result in results)
    return Finding("closed loop", "pass", f"{len(results)} episodes, {steps} steps in {env_id}", expected)


def speed(policy: Policy, windows: ActionWindows, settings: Mapping[str, Any], *, seconds: float = 2.0) -> Finding:
    """Samples a second, the share of the machine's rate of matrix products that they make up, and what loading takes."""
    device, batch_size = policy.device, min(settings["data"]["batch_size"], len(windows))
    stepper = Stepper(copy.deepcopy(policy), settings)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0)).numpy()
    loading, stepping = [], []
    end = time.perf_counter() + seconds
    while len(stepping) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        batch = tree_map(lambda tensor: tensor.to(device), windows.__getitems__(order[:batch_size]))
        loaded = time.perf_counter()
        float(stepper.step(batch))  # a number: the device has been waited for
        loading.append(loaded - start)
        stepping.append(time.perf_counter() - loaded)
        order = order[batch_size:] if len(order) >= 2 * batch_size else order
    with FlopCounterMode(display=False) as counter:
        stepper.step(batch)
    step, load = median(stepping[1:]), median(loading[1:])
    rate = matrix_product_rate("bfloat16" if stepper.bf16 else "float32", seconds=0.3, device=device.type)
    share = counter.get_total_flops() / (step + load) / 1e9 / rate
    trainer = settings["trainer"]
    whole = trainer["max_steps"] * trainer.get("accumulate_grad_batches", 1) * (step + load)
    measured = f"{batch_size / (step + load):,.0f} samples/s, {share:.0%} of {rate:,.0f} GFLOP/s; {_duration(whole)} to train"
    expected = f"above {LEAST_SHARE:.0%} of the machine's rate, loading below {MOST_LOADING:.0%} of a step"
    if load > MOST_LOADING * step:
        slow = f"{measured}; loading takes {load / (load + step):.0%} of it"
        return Finding("speed", "warn", slow, expected, "is the disk slow, or memory short for the frames' cache?", share)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    advice = f"larger batches fill the machine better; is other work going on (load {busy:.1f})?"
    return Finding("speed", "warn" if share < LEAST_SHARE else "pass", measured, expected, advice, share)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
