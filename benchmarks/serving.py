"""A policy behind a websocket against the same policy in this process: latency, throughput and success.

python benchmarks/serving.py policy=DIR [episodes=100] [repeats=500] [clients=8] [output=benchmarks/results/serving.json]

- added latency: the median time of a request minus that of `Controller.step`, in rounds by turns, at batch 1, on the loopback
- throughput: requests a second of one client, and of several at once, each a process's thread that asks without a pause
- success: the same episodes of the policy's environment here, with the policy in the server's process and in this one
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import gymnasium
import numpy as np

from benchmarks._machine import print_table, read_arguments, save, timed
from vla_mini import Controller, Policy
from vla_mini.envs import make
from vla_mini.serving import Client

ROUND = 50  # requests
Step = Callable[[Mapping[str, Any]], np.ndarray]


def main() -> None:
    defaults = {"policy": "runs/toy_pick/latest/policy", "episodes": 100, "repeats": 500, "clients": 8}
    arguments = read_arguments(**defaults, output="benchmarks/results/serving.json")
    policy = Policy.from_pretrained(arguments["policy"])
    env = make(policy.source["env"])
    observation, _ = env.reset(seed=0)
    with server(arguments["policy"], execute=1) as address:
        figures = latency(policy, address, observation, arguments["repeats"])
        for number in (1, arguments["clients"]):
            figures[f"requests_per_second_{number}"] = throughput(address, observation, number, arguments["repeats"])
    with server(arguments["policy"], execute=policy.acting.execute) as address, Client(address) as client:
        controller = Controller(policy)

        def ask(seen: Mapping[str, Any]) -> np.ndarray:
            return client.step(seen)[0]

        figures["success_served"] = success(env, ask, client.reset, arguments["episodes"])
        figures["success_here"] = success(env, controller.step, controller.reset, arguments["episodes"])
    print_table(list(figures.items()), header=("", "value"))
    save({name: arguments[name] for name in defaults} | figures, arguments["output"])


@contextmanager
def server(policy: str, *, execute: int) -> Iterator[str]:
    """The address of scripts/serve.py in a process of its own."""
    command = [sys.executable, "scripts/serve.py", f"policy={policy}", "port=0", f"execute={execute}", "ensemble=none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[-1]
        process.terminate()


def latency(policy: Policy, address: str, observation: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Medians in milliseconds, of rounds in turn. The first requests of a round do not count: torch's threads of the other
    process are still waiting for work, on the cores that this one needs."""
    controller, found = Controller(policy, execute=1, ensemble="none"), {"here": [], "served": []}
    with Client(address) as client:
        for _ in range(max(1, repeats // ROUND)):
            for name, step in (("here", controller.step), ("served", client.step)):
                times = [1000 * timed(lambda step=step: step(observation))[0] for _ in range(ROUND)]
                found[name] += times[ROUND // 5 :]
    here, served = (median(found[name]) for name in ("here", "served"))
    return {"here_milliseconds": here, "served_milliseconds": served, "added_milliseconds": served - here}


def throughput(address: str, observation: Mapping[str, Any], number: int, repeats: int) -> float:
    """Requests a second of so many clients together."""

    def ask(client: Client) -> None:
        for _ in range(repeats // number + 1):
            client.step(observation)

    with ThreadPoolExecutor(number) as pool:
        clients = [Client(address) for _ in range(number)]
        start = time.perf_counter()
        list(pool.map(ask, clients))
        seconds = time.perf_counter() - start
        for client in clients:
            client.close()
    return number * (repeats // number + 1) / seconds


def success(env: gymnasium.Env, step: Step, reset: Callable[[], None], episodes: int) -> float:
    """The share of episodes of the final evaluation that succeed."""
    successes = 0
    for episode in range(episodes):
        observation, info = env.reset(seed=episode, options={"purpose": "evaluation", "seed": 0})
        reset()
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(step(observation))
            over = terminated or truncated
        successes += bool(info["success"])
    return successes / episodes


if __name__ == "__main__":
    main()
