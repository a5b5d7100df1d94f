"""Episode results in, the rates of evaluation/metrics.json out. Rates are fractions in [0, 1] throughout."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vla_mini.evaluation.rollout import EpisodeResult


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): honest at 0 and 1, where the normal one has no width.

    Raises ValueError for no episodes, or for more successes than episodes.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes in {episodes} episodes make no rate")
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    rate = successes / episodes
    centre = rate + z * z / (2 * episodes)
    margin = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    # At the ends the bounds are 0 and 1 exactly; rounding must not leave the interval short of its own rate.
    return max(0.0, min(rate, (centre - margin) / scale)), min(1.0, max(rate, (centre + margin) / scale))


def summarise_split(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """One entry of "splits": success with its interval, wrong objects, and the scenes that need both words."""
    successes = [result.success for result in results]
    return {
        "episodes": len(results),
        "success_rate": _mean(successes),
        "success_ci95": list(wilson(sum(successes), len(successes))),
        "wrong_object_rate": _mean(result.wrong_object for result in results),
        "two_words": {
            "episodes": sum(result.two_words for result in results),
            "success_rate": _mean(result.success for result in results if result.two_words),
        },
    }


def summarise_grounding(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """One entry of "grounding". `original_object_rate`: how often the object was lifted that the scene was made for.

    `chance_rate`, beside the promised names: how often a policy that lifts any object, without words, lifts that one.
    """
    return {
        "episodes": len(results),
        "success_rate": _mean(result.success for result in results),
        "original_object_rate": _mean(result.lifted == result.original_target for result in results),
        "chance_rate": _mean(1 / result.num_objects for result in results),
    }


def steps_mean(results: Sequence[EpisodeResult]) -> float:
    """Steps an episode took on average, failures included."""
    return _mean(result.steps for result in results)


def headline(metrics: dict[str, Any]) -> str:
    """The figures that matter of metrics.json, in one line."""
    low, high = metrics["success_ci95"]
    return (
        f"success {metrics['success_rate']:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"wrong object {metrics['wrong_object_rate']:.1%}"
    )


def table(metrics: dict[str, Any]) -> str:
    """All splits and grounding checks of metrics.json as lines of text for a terminal."""
    lines = [f"{'':<20}{'success':>9}{'95 % interval':>18}{'wrong object':>14}{'two words':>12}"]
    for name, split in metrics["splits"].items():
        low, high = split["success_ci95"]
        both = f"{split['two_words']['success_rate']:.1%}" if split["two_words"]["episodes"] else "-"
        lines.append(
            f"{name:<20}{split['success_rate']:>9.1%}{f'{low:.1%} to {high:.1%}':>18}"
            f"{split['wrong_object_rate']:>14.1%}{both:>12}"
        )
    for name, check in metrics["grounding"].items():
        lines.append(
            f"{name:<20}{check['success_rate']:>9.1%}   the original object {check['original_object_rate']:.1%}"
            f" (by chance {check['chance_rate']:.1%})"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float | bool]) -> float:
    """The mean; 0 of nothing (a split may happen to hold no scene that needs both words: its `episodes` says so)."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0
