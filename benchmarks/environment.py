"""toy_pick itself: frames per second on one core, rendering included, and how often the scripted expert succeeds.

python benchmarks/environment.py [episodes=1000] [output=benchmarks/results/environment.json]
"""

import time
from typing import Any

import numpy as np

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.collection import demonstrate
from vla_mini.envs import make

ENV = "vla_mini/ToyPick-v0"


def main() -> None:
    arguments = read_arguments(episodes=1000, output="benchmarks/results/environment.json")
    frames_per_second, clean = play(make(ENV), episodes=arguments["episodes"])
    kept = [
        demonstrate(ENV, attempt, purpose="evaluation", seed=0, action_noise=1.0) is not None
        for attempt in range(arguments["episodes"])
    ]
    figures = {
        "episodes": arguments["episodes"],
        "frames_per_second": frames_per_second,
        "expert_success_rate": clean,
        "expert_success_rate_with_action_noise": float(np.mean(kept)),
    }
    targets = {"frames_per_second": 4000, "expert_success_rate": 0.995, "expert_success_rate_with_action_noise": 0.99}
    print_table([(name, value, targets.get(name)) for name, value in figures.items()], header=("", "measured", "target"))
    save(figures, arguments["output"])


def play(env: Any, *, episodes: int) -> tuple[float, float]:
    """The expert without action noise in `episodes` scenes: frames per second in this one process, and its success rate."""
    frames = successes = 0
    start = time.perf_counter()
    for episode in range(episodes):
        env.reset(seed=episode)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(env.unwrapped.expert_action())
            frames += 1
            over = terminated or truncated
        frames += 1  # the one that reset rendered
        successes += info["success"]
    return frames / (time.perf_counter() - start), successes / episodes


if __name__ == "__main__":
    main()
