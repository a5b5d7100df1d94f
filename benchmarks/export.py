"""An exported policy beside the policy itself: size, latency at batch size 1 with one thread, and success in closed loop.

python benchmarks/export.py policy=DIR [episodes=200] [repeats=300] [seed=1] [output=benchmarks/results/export.json]

`milliseconds` is the median of `act`, in turn with the others; `error` the largest difference from the policy's actions over
100 observations, in normalised units. Success is that of the environment's first split.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks._machine import print_table, read_arguments, save
from vla_mini import Policy
from vla_mini.envs import get_spec
from vla_mini.evaluation.latency import act_milliseconds
from vla_mini.evaluation.metrics import wilson
from vla_mini.evaluation.rollout import rollout
from vla_mini.export import ExportedPolicy
from vla_mini.export.onnx import Dtype, export

COLUMNS = ("megabytes", "error", "milliseconds", "success")


def main() -> None:
    defaults = {"policy": "runs/toy_pick/latest/policy", "episodes": 200, "repeats": 300, "seed": 1}
    arguments = read_arguments(**defaults, output="benchmarks/results/export.json")
    torch.set_num_threads(1)
    policy = Policy.from_pretrained(arguments["policy"])
    with tempfile.TemporaryDirectory() as folder:
        found = measure(policy, Path(folder), **{name: arguments[name] for name in ("episodes", "repeats", "seed")})
    size = (Path(arguments["policy"]) / "model.safetensors").stat().st_size / 1e6
    found["torch"] |= {"megabytes": size, "error": 0.0}
    ratio = found["torch"]["milliseconds"] / found["fp32"]["milliseconds"]
    print_table([(name, *(each[column] for column in COLUMNS)) for name, each in found.items()], header=("", *COLUMNS))
    print(f"fp32 takes 1 / {ratio:.2f} of torch's time")
    save({name: arguments[name] for name in defaults} | {"torch_to_fp32": ratio, "policies": found}, arguments["output"])


def measure(policy: Policy, folder: Path, *, episodes: int, repeats: int, seed: int) -> dict[str, dict[str, Any]]:
    """The figures of the policy, "torch", and of each export of it."""
    found: dict[str, dict[str, Any]] = {"torch": {}}
    policies: dict[str, Any] = {"torch": policy}
    for dtype in get_args(Dtype):
        written = export(policy, folder / dtype, dtype=dtype)
        found[dtype] = written._asdict()
        policies[dtype] = ExportedPolicy(folder / dtype, threads=1)
    env_id = policy.source["env"]
    for name, milliseconds in act_milliseconds(policies, env_id, repeats=repeats).items():
        found[name]["milliseconds"] = median(milliseconds)
    options = {"purpose": "evaluation", "seed": seed, "split": next(iter(get_spec(env_id).splits))}
    for name, each in policies.items():
        successes = sum(result.success for result in rollout(each, env_id, episodes=range(episodes), options=options))
        low, high = wilson(successes, episodes)
        found[name] |= {"success": successes / episodes, "success_interval": [low, high]}
    return found


if __name__ == "__main__":
    main()
