"""Finished runs -> what comparison.json holds, and the page, the table and the picture beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from vla_mini import config, files
from vla_mini.comparison.runs import Run, Trained, code_digest
from vla_mini.evaluation.latency import act_milliseconds
from vla_mini.evaluation.metrics import wilson
from vla_mini.evaluation.report import SPLITS, read_curves
from vla_mini.machine import describe_machine
from vla_mini.pages.comparison import comparison_markdown, comparison_page, comparison_picture
from vla_mini.pages.plots import Curve
from vla_mini.pages.versions import versions
from vla_mini.policy import Policy
from vla_mini.training.setup import trusts_remote_code

TARGET = 0.9  # success on the selection scenes, to which the time is given


def figures(trained: Trained) -> dict[str, dict[str, Any]]:
    """For each variant its figures, pooled over the runs that did not fail, and those of each run."""
    runs, failures, speeds = trained
    found: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        own = [run for run in runs if run.variant == variant]
        finished = [read_run(run) for run in own if run.folder not in failures]
        failed = [{"seed": run.seed, "reason": failures[run.folder]} for run in own if run.folder in failures]
        found[variant] = {"arguments": own[0].arguments[:-1], "steps_per_second": speeds.get(variant)} | pooled(finished)
        found[variant] |= {"failed": failed, "runs": finished}
    policies = {run.variant: _policy(run) for run in reversed(runs) if run.folder not in failures}  # of the first seed
    if policies:
        env_id = next(iter(policies.values())).source["env"]
        for variant, times in act_milliseconds(policies, env_id).items():
            found[variant]["act_milliseconds"] = median(times)
            found[variant]["parameters"] = sum(parameter.numel() for parameter in policies[variant].parameters())
    return found


def write_comparison(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """comparison.json, .md, .svg and .html of a comparison's settings, with the figures of `variants`; what the first holds."""
    names = ("question", "seeds", "budget", "variants")
    about = {"name": settings["name"], "machine": describe_machine(), "versions": versions(), "code": code_digest()}
    results = about | {name: settings[name] for name in names}
    files.write_text(folder / "comparison.json", json.dumps(results, indent=2) + "\n")
    files.write_text(folder / "comparison.md", comparison_markdown(results))
    if picture := comparison_picture(results):
        files.write_text(folder / "comparison.svg", picture)
    files.write_text(folder / "comparison.html", comparison_page(results, explanations=SPLITS))
    return results


def read_run(run: Run) -> dict[str, Any]:
    """What a finished run's folder says: its metrics.json as it is, its speed, and its curves over steps and seconds."""
    logged = read_curves(run.folder / "metrics.csv")
    loss, clock, rate, success, played_at = (
        logged.get(name, Curve((), ()))  # nothing, where a run was too short for it
        for name in ("train/loss", "seconds", "samples_per_second", "selection/success_rate", "selection/seconds")
    )
    selection = list(zip(success.steps, played_at.values, success.values, strict=True))
    reached = [seconds for _, seconds, value in selection if value >= TARGET]
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "evaluation": json.loads((run.folder / "evaluation" / "metrics.json").read_text(encoding="utf-8")),
        "training_seconds": max((*clock.values, *played_at.values), default=None),
        "samples_per_second": rate.values[-1] if rate.values else None,
        "seconds_to_90": reached[0] if reached else None,
        # Rows of step, seconds, value.
        "curves": {"loss": list(zip(loss.steps, clock.values, loss.values, strict=True)), "success": selection},
    }


def pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a variant's runs together: episodes are added up, speeds averaged. Nothing of no runs."""
    if not runs:
        return {}
    evaluations = [run["evaluation"] for run in runs]
    splits, grounding = (
        {name: [evaluation[kind][name] for evaluation in evaluations] for name in evaluations[0][kind]}
        for kind in ("splits", "grounding")
    )
    return {
        "splits": {name: _pooled_split(parts) for name, parts in splits.items()},
        "grounding": {name: _pooled_rates(parts) for name, parts in grounding.items()},
        **{name: _mean(run[name] for run in runs) for name in ("training_seconds", "samples_per_second")},
        "seconds_to_90": [run["seconds_to_90"] for run in runs],
    }


def _pooled_split(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    successes = sum(round(part["success_rate"] * part["episodes"]) for part in parts)
    rates = _pooled_rates(parts)
    return rates | {"success_ci95": list(wilson(successes, rates["episodes"]))}


def _pooled_rates(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each rate of these parts, weighted by episodes."""
    episodes = sum(part["episodes"] for part in parts)
    names = [name for name in parts[0] if name.endswith("_rate")]
    rates = {name: sum(part[name] * part["episodes"] for part in parts) / episodes for name in names}
    return {"episodes": episodes} | rates


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _policy(run: Run) -> Policy:
    settings = config.load("train", run.arguments)
    return Policy.from_pretrained(run.folder / "policy", trust_remote_code=trusts_remote_code(settings))
