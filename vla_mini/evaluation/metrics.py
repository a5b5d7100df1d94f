"""Episode results -> the figures of evaluation/metrics.json, and those as text. Rates are fractions in [0, 1].

Which metrics there are beside success is in the environment's `EnvSpec`. The texts are made from metrics.json alone.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vla_mini.envs import EnvSpec
from vla_mini.evaluation.rollout import EpisodeResult


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), which has a width also at 0 and 1, unlike the normal one."""
    assert 0 <= successes <= episodes and episodes > 0, f"{successes} successes in {episodes} episodes are not a proportion"
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    margin = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    # At the ends the bounds are exactly 0 and 1, and rounding must not exclude the rate itself.
    return max(0.0, min(rate, (centre - margin) / scale)), min(1.0, max(rate, (centre + margin) / scale))


def summarize_split(results: Sequence[EpisodeResult], spec: EnvSpec) -> dict[str, Any]:
    """One entry of "splits": success with its interval, the spec's `rates`, and success within its `subsets`."""
    figures = _success(results)
    interval = wilson(sum(result.success for result in results), len(results))
    subsets = {key: _success([result for result in results if result.info[key]]) for key in spec.subsets}
    return figures | {"success_ci95": list(interval)} | _rates(results, spec.rates) | subsets


def summarize(
    splits: dict[str, Sequence[EpisodeResult]],
    checks: dict[str, Sequence[EpisodeResult]],
    spec: EnvSpec,
    *,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """All of metrics.json. The figures at its top, and those of tasks and groups, are of the first split."""
    summaries = {split: summarize_split(results, spec) for split, results in splits.items()}
    first, figures = next(iter(splits.values())), next(iter(summaries.values()))
    metrics = {
        "env": spec.id,
        "episodes": len(first),
        "seed": seed,
        **{key: figure for key, figure in figures.items() if key != "episodes" and key not in spec.subsets},
        "steps_mean": _mean(result.steps for result in first),
        "seconds": round(seconds, 3),
        "splits": summaries,
        "grounding": {check: _success(results) | _rates(results, spec.check_rates) for check, results in checks.items()},
    }
    by_task = {name: [result for result in first if result.task == name] for name in spec.tasks}
    by_group = {name: [result for task in tasks for result in by_task[task]] for name, tasks in spec.groups.items()}
    for key, parts in (("tasks", by_task), ("groups", by_group)):
        summaries = {name: summarize_split(results, spec) for name, results in parts.items() if results}
        metrics |= {key: summaries} if summaries else {}
    if groups := metrics.get("groups"):
        metrics["mean_of_groups_rate"] = _mean(group["success_rate"] for group in groups.values())
    return metrics


def words(name: str) -> str:
    """The name of a split or of a rate as words: "wrong_object_rate" -> "wrong object"."""
    return name.removesuffix("_rate").replace("_", " ")


def headline(metrics: dict[str, Any]) -> str:
    """Success and the environment's rates, in one line."""
    rates = [f"{name} {rate:.1%}" for name, rate in further_rates(metrics).items()]
    return ", ".join([f"success {metrics['success_rate']:.1%} (95 % interval {_interval(metrics)})", *rates])


def table(metrics: dict[str, Any]) -> str:
    """All splits and checks as lines of text for a terminal."""
    first = next(iter(metrics["splits"].values()))
    subsets = [key for key, figure in first.items() if isinstance(figure, dict)]
    columns = ["success", "95 % interval", *further_rates(first), *map(words, subsets)]
    widths = [9, 18, *(max(12, len(name) + 2) for name in columns[2:])]
    rows = {"": columns}
    for name, split in metrics["splits"].items():
        rates = [f"{rate:.1%}" for rate in (split["success_rate"], *further_rates(split).values())]
        within = [f"{split[key]['success_rate']:.1%}" if split[key]["episodes"] else "-" for key in subsets]
        rows[name] = [rates[0], _interval(split), *rates[1:], *within]
    lines = [f"{name:<20}" + "".join(map(str.rjust, row, widths)) for name, row in rows.items()]
    for name, check in metrics["grounding"].items():
        rates = further_rates(check)
        chance = f" (by chance {rates.pop('chance'):.1%})" if "chance" in rates else ""
        text = ", ".join(f"{rate} {value:.1%}" for rate, value in rates.items())
        lines.append(f"{name:<20}{check['success_rate']:>9.1%}   {text}{chance}".rstrip())
    return "\n".join(lines)


def further_rates(figures: dict[str, Any]) -> dict[str, float]:
    """The rates beside success in metrics.json or an entry of it: name in words -> fraction."""
    return {words(key): rate for key, rate in figures.items() if key.endswith("_rate") and key != "success_rate"}


def _interval(figures: dict[str, Any]) -> str:
    low, high = figures["success_ci95"]
    return f"{low:.1%} to {high:.1%}"


def _success(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    return {"episodes": len(results), "success_rate": _mean(result.success for result in results)}


def _rates(results: Sequence[EpisodeResult], keys: Iterable[str]) -> dict[str, float]:
    return {f"{key}_rate": _mean(result.info[key] for result in results) for key in keys}


def _mean(values: Iterable[float | bool]) -> float:
    """The mean; 0 of no values (a subset of a split may be empty, which its `episodes` shows)."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0
