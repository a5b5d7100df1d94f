"""How long `act` takes at batch 1 with one thread, and what autograd adds: for every vision and action variant in configs/.

python benchmarks/inference.py [repeats=200] [threads=1] [output=benchmarks/results/inference.json]

The policies are untrained, as time does not depend on weights. Modes take turns, so that all meet the same machine.
"""

import itertools
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._machine import print_table, read_arguments, save
from vla_mini import config
from vla_mini.autograd.saved import count_saved_bytes
from vla_mini.build import build_policy, variants
from vla_mini.envs import make
from vla_mini.evaluation.latency import take_turns
from vla_mini.evaluation.rollout import observe
from vla_mini.features import Moments, Statistics
from vla_mini.policy import Policy
from vla_mini.types import Observation

TARGET_MILLISECONDS = 3.0
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
COLUMNS = {
    "vision": "vision",
    "action": "action",
    "act_milliseconds_median": "act, ms",
    "act_milliseconds_p95": "p95, ms",
    **{f"{mode}_milliseconds_median": f"{mode}, ms" for mode in MODES},
    "grad_saved_bytes": "grad keeps, bytes",
    "no_grad_saved_bytes": "no_grad keeps",
}


def main() -> None:
    arguments = read_arguments(repeats=200, threads=1, output="benchmarks/results/inference.json")
    torch.set_num_threads(arguments["threads"])
    measured, cfg = [], config.load("train")
    defaults = [cfg[group]["_target_"].split(".")[-2] for group in ("vision", "action")]
    for vision, action in itertools.product(variants("vision"), variants("action")):
        try:
            policy, observation = untrained(vision, action)
        except ValueError as error:  # a variant that needs more than its name, such as a folder with weights
            print(f"vision={vision} action={action}: left out ({error})")
            continue
        names = {"vision": vision, "action": action, "default": [vision, action] == defaults}
        measured.append(names | measure(policy, observation, arguments["repeats"]))
    rows = [tuple(figures[name] for name in COLUMNS) for figures in measured]
    print_table(rows, header=tuple(COLUMNS.values()))
    default = next(figures for figures in measured if figures["default"])["act_milliseconds_median"]
    slowest = max(figures["act_milliseconds_median"] for figures in measured)
    print(f"the default policy acts in {default:.2f} ms (target: {TARGET_MILLISECONDS} ms), the slowest in {slowest:.2f} ms")
    settings = {name: arguments[name] for name in ("repeats", "threads")}
    save(settings | {"target_milliseconds": TARGET_MILLISECONDS, "policies": measured}, arguments["output"])


def untrained(vision: str, action: str) -> tuple[Policy, Observation]:
    """The default policy with these parts, and one observation of its environment."""
    cfg = config.load("train", [f"vision={vision}", f"action={action}"])
    env = make(cfg.env.id)
    seen, _ = env.reset(seed=0)
    features = env.unwrapped.features
    policy = build_policy(
        {group: cfg[group] for group in ("vision", "language", "trunk", "action", "auxiliary")},
        features=features,
        statistics=Statistics(unit_moments(features.state_size), unit_moments(features.action_size)),
        tasks=[seen["instruction"]],
        horizon=cfg.data.horizon,
        keyframe=cfg.data.keyframe.state if cfg.data.keyframe else (),
    ).eval()
    return policy, observe(policy, [seen])


def unit_moments(size: int) -> Moments:
    return Moments(*(np.full(size, value, np.float32) for value in (-1, 1, 0, 1, -1, 1)))


def measure(policy: Policy, observation: Observation, repeats: int) -> dict[str, Any]:
    """Milliseconds of `act`, and of the same prediction in each mode; bytes that grad mode keeps for backward."""
    generator = torch.Generator().manual_seed(0)

    def predict() -> torch.Tensor:
        images, words, mask, state = policy.prepare(observation)
        return policy.predict(images, words, state, generator, word_mask=mask)

    predictions = {mode: context()(predict) for mode, context in MODES.items()}
    times = take_turns({"act": lambda: policy.act(observation, generator), **predictions}, repeats=repeats)
    saved = {}
    for mode, predict_so in predictions.items():
        with count_saved_bytes(policy) as counted:
            predict_so()
        saved[f"{mode}_saved_bytes"] = counted.bytes
    return {
        "act_milliseconds_median": median(times["act"]),
        "act_milliseconds_p95": float(np.percentile(times["act"], 95)),
        **{f"{mode}_milliseconds_median": median(times[mode]) for mode in MODES},
        **saved,
    }


if __name__ == "__main__":
    main()
