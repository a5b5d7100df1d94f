"""How long `act` takes at batch size 1 with one thread, and what autograd adds: for every vision with every action variant in
configs/, and for every language and trunk variant with the default parts.

python benchmarks/inference.py [repeats=200] [threads=1] [output=benchmarks/results/inference.json]

The policies are untrained, since the time does not depend on the weights. Only that of action=fast depends on the number of
tokens in a chunk: study=heads times a trained one. The modes take turns, so that other load affects all of them equally.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks._machine import print_table, read_arguments, save
from vla_mini import config
from vla_mini.acting import observe
from vla_mini.autograd.inference import MODES, count_saved_bytes
from vla_mini.collection import collect
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.envs import make
from vla_mini.evaluation.latency import take_turns
from vla_mini.policy import Policy
from vla_mini.registry import variants
from vla_mini.setup.policy import untrained_policy
from vla_mini.types import Observation

GROUPS = ("vision", "language", "trunk", "action")
TARGET_MILLISECONDS, OTHERS_TARGET_MILLISECONDS = 3.0, 10.0  # of the default policy, and of any other
COLUMNS = {
    **{group: group for group in GROUPS},
    "act_milliseconds_median": "act, ms",
    "act_milliseconds_p95": "p95, ms",
    **{f"{mode}_milliseconds_median": f"{mode}, ms" for mode in MODES},
    "grad_saved_bytes": "saved by grad, bytes",
    "no_grad_saved_bytes": "saved by no_grad",
}


def main() -> None:
    arguments = read_arguments(repeats=200, threads=1, output="benchmarks/results/inference.json")
    torch.set_num_threads(arguments["threads"])
    measured, settings = [], config.load("train")
    chosen = {"vision": settings.vision, "language": settings.language, "trunk": settings.trunk, "action": settings.action}
    defaults = {group: part.target.split(".")[-2] for group, part in chosen.items()}
    demonstrations = some_demonstrations()
    for parts in choices(defaults):
        try:
            policy, observation = untrained(parts, demonstrations)
        except ValueError as error:  # a variant that needs more than its name, such as a folder with weights
            print(f"{parts}: left out ({error})")
            continue
        measured.append(parts | {"default": parts == defaults} | measure(policy, observation, arguments["repeats"]))
    rows = [tuple(figures[name] for name in COLUMNS) for figures in measured]
    print_table(rows, header=tuple(COLUMNS.values()))
    default = next(figures for figures in measured if figures["default"])["act_milliseconds_median"]
    slowest = max(figures["act_milliseconds_median"] for figures in measured)
    print(
        f"the default policy acts in {default:.2f} ms (target: {TARGET_MILLISECONDS} ms), the slowest in {slowest:.2f} ms "
        f"(target: {OTHERS_TARGET_MILLISECONDS} ms)"
    )
    record = {name: arguments[name] for name in ("repeats", "threads")}
    targets = {"target_milliseconds": TARGET_MILLISECONDS, "others_target_milliseconds": OTHERS_TARGET_MILLISECONDS}
    save(record | targets | {"policies": measured}, arguments["output"])


def choices(defaults: Mapping[str, str]) -> list[dict[str, str]]:
    """The parts of each policy to measure, by their variants' names."""
    crossed = [{"vision": v, "action": a} for v, a in itertools.product(variants("vision"), variants("action"))]
    alone = [{group: name} for group in ("language", "trunk") for name in variants(group) if name != defaults[group]]
    return [{**defaults, **parts} for parts in crossed + alone]


def some_demonstrations() -> Demonstrations:
    """A few demonstrations, from which action tokens can be trained."""
    with TemporaryDirectory() as folder:
        collect(config.load("train").env.address, Path(folder) / "data", episodes=64)
        return read_dataset(Path(folder) / "data")


def untrained(parts: Mapping[str, str], demonstrations: Demonstrations) -> tuple[Policy, Observation]:
    """The policy of these parts, and one observation of its environment."""
    settings = config.load("train", [f"{group}={name}" for group, name in parts.items()])
    policy = untrained_policy(settings, demonstrations).eval()
    first, _ = make(settings.env.address).reset(seed=0)
    return policy, observe(policy, [first])


def measure(policy: Policy, observation: Observation, repeats: int) -> dict[str, Any]:
    """Milliseconds of `act`, and of the same prediction in each mode; bytes that each mode saves for a backward pass."""
    generator = torch.Generator().manual_seed(0)
    predictions = {mode: context()(lambda: policy.predict_chunk(observation, generator)) for mode, context in MODES.items()}
    times = take_turns({"act": lambda: policy.act(observation, generator), **predictions}, repeats=repeats)
    saved = {}
    for mode, predict_so in predictions.items():
        with count_saved_bytes(policy) as counted:
            predict_so()
        saved[f"{mode}_saved_bytes"] = sum(counted)
    return {
        "act_milliseconds_median": median(times["act"]),
        "act_milliseconds_p95": float(np.percentile(times["act"], 95)),
        **{f"{mode}_milliseconds_median": median(times[mode]) for mode in MODES},
        **saved,
    }


if __name__ == "__main__":
    main()
