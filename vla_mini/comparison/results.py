"""Finished runs -> what comparison.json holds: success, speed and curves of each run, and of all runs of a variant together."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from vla_mini.comparison.runs import TRAIN, Run, code_digest, variant_settings
from vla_mini.config.command_settings import CompareSettings
from vla_mini.evaluation.curves import Curve, read_curves
from vla_mini.evaluation.latency import act_milliseconds
from vla_mini.evaluation.metrics import wilson
from vla_mini.policy import Policy
from vla_mini.setup.policy import trusts_remote_code
from vla_mini.utils.files import read_json
from vla_mini.utils.machine import describe_machine, versions

TARGET = 0.9  # success rate on the selection scenes, the time to which is reported


def comparison_results(comparison: CompareSettings, runs: Sequence[Run], speeds: Mapping[str, float]) -> dict[str, Any]:
    """What comparison.json holds, from what `train_all` returned."""
    return {
        "name": comparison.name,
        "machine": describe_machine(),
        "versions": versions(),
        "code": code_digest(TRAIN),
        "question": comparison.question,
        "seeds": list(comparison.seeds),
        "budget": comparison.budget.model_dump(),
        "variants": variant_results(comparison, runs, speeds),
    }


def variant_results(comparison: CompareSettings, runs: Sequence[Run], speeds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """By variant: its figures over all runs that finished, each of these runs, and the runs that failed."""
    results: dict[str, dict[str, Any]] = {}
    policies: dict[str, Policy] = {}  # of the first finished run of each variant
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        failed = [{"seed": run.seed, "reason": run.failure} for run in own if run.failure]
        finished = [read_run(run) for run in own if not run.failure]
        results[variant] = {"arguments": own[0].arguments[:-1], "steps_per_second": speeds.get(variant)}
        results[variant] |= pool(finished) | {"failed": failed, "runs": finished}
        if finished:
            trust = trusts_remote_code(variant_settings(comparison, variant))
            policies[variant] = Policy.from_pretrained(Path(finished[0]["folder"]) / "policy", trust_remote_code=trust)
    if policies:
        env_id = next(iter(policies.values())).source["env"]
        for variant, times in act_milliseconds(policies, env_id).items():
            results[variant]["act_milliseconds"] = median(times)
            results[variant]["parameters"] = sum(parameter.numel() for parameter in policies[variant].parameters())
    return results


def read_run(run: Run) -> dict[str, Any]:
    """A finished run: its metrics.json unchanged, its speed, and its curves as rows of step, seconds and value."""
    curves = read_curves(run.folder / "metrics.csv")
    loss, seconds, speed, success, success_seconds = (
        curves.get(name, Curve((), ()))  # empty where a run was too short to log it
        for name in ("train/loss", "seconds", "samples_per_second", "selection/success_rate", "selection/seconds")
    )
    selection = list(zip(success.steps, success_seconds.values, success.values, strict=True))
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "evaluation": read_json(run.folder / "evaluation" / "metrics.json"),
        "training_seconds": max((*seconds.values, *success_seconds.values), default=None),
        "samples_per_second": speed.values[-1] if speed.values else None,
        "seconds_to_90": next((time for _, time, rate in selection if rate >= TARGET), None),
        "curves": {"loss": list(zip(loss.steps, seconds.values, loss.values, strict=True)), "success": selection},
    }


def pool(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several runs of one variant: rates over all their episodes, and mean speeds. Empty for no runs."""
    if not runs:
        return {}
    evaluations = [run["evaluation"] for run in runs]
    pooled: dict[str, Any] = {}
    for kind in ("splits", "grounding"):
        pooled[kind] = {name: _pool([each[kind][name] for each in evaluations]) for name in evaluations[0][kind]}
    return pooled | {
        "training_seconds": _mean(run["training_seconds"] for run in runs),
        "samples_per_second": _mean(run["samples_per_second"] for run in runs),
        "seconds_to_90": [run["seconds_to_90"] for run in runs],
    }


def _pool(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each rate, weighted by episodes, and the interval of the success rate where the parts have one."""
    episodes = sum(part["episodes"] for part in parts)
    pooled = {"episodes": episodes}
    for name in parts[0]:
        if name.endswith("_rate"):
            pooled[name] = sum(part[name] * part["episodes"] for part in parts) / episodes
    if "success_ci95" in parts[0]:
        pooled["success_ci95"] = list(wilson(round(pooled["success_rate"] * episodes), episodes))
    return pooled


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
