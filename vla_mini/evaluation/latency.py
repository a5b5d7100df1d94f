"""How long a policy takes to act: policies in, milliseconds of each call with one observation out."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch

from vla_mini.acting import ActingPolicy, observe
from vla_mini.envs import make

WARM_UP = 20  # calls that are not counted


def act_milliseconds(policies: Mapping[str, ActingPolicy], env_id: str, *, repeats: int = 200) -> dict[str, list[float]]:
    """The times of `repeats` calls of each policy's `act`, in one thread, for the environment's first observation."""
    with closing(make(env_id)) as env:
        first, _ = env.reset(seed=0)
    calls = {name: partial(policy.act, observe(policy, [first])) for name, policy in policies.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return take_turns(calls, repeats=repeats)
    finally:
        torch.set_num_threads(threads)


def take_turns(calls: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of `repeats` calls of each, after a warm-up. They alternate, so that all are timed under the same load."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARM_UP + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: values[WARM_UP:] for name, values in times.items()}
