"""How long a policy takes to act: policies and observations of batch 1 in, milliseconds out."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vla_mini.envs import make
from vla_mini.evaluation.rollout import observe
from vla_mini.policy import Policy

WARM_UP = 20


def act_milliseconds(policies: Mapping[str, Policy], env_id: str, *, repeats: int = 200) -> dict[str, list[float]]:
    """`repeats` times of `act` for each policy, with one thread, at the environment's first observation."""
    env = make(env_id)
    seen, _ = env.reset(seed=0)
    env.close()
    works = {}
    for name, policy in policies.items():
        observation, generator = observe(policy, [seen]), torch.Generator().manual_seed(0)
        works[name] = lambda policy=policy, observation=observation, generator=generator: policy.act(observation, generator)
    with one_thread():
        return take_turns(works, repeats=repeats)


def take_turns(works: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of `repeats` calls of each, after a warm-up. They take turns, so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(WARM_UP + repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: values[WARM_UP:] for name, values in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
