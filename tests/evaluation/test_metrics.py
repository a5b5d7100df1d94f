"""Figures of metrics.json from episode results, for any EnvSpec, and their text for a terminal."""

import math
from dataclasses import replace

import pytest

from vla_mini.envs import EnvSpec, get_spec
from vla_mini.evaluation.metrics import headline, summarize, summarize_split, table, wilson
from vla_mini.evaluation.rollout import EpisodeResult
from vla_mini.utils.features import Features

TOY_PICK = get_spec("vla_mini/ToyPick-v0")
PLAIN = EnvSpec("tests/Plain-v0", Features(("top",), (8, 8), ("x",), ("dx",), 10), robot_type="arm", max_episode_steps=9)


def result(episode: int, *, success: bool = True, steps: int = 10, task: str | None = None, **info) -> EpisodeResult:
    info = {"wrong_object": False, "two_words": False, "original_object": success, "chance": 0.25} | info
    return EpisodeResult(episode, "", steps, success, info, task=task)


@pytest.mark.parametrize(("successes", "episodes"), [(1, 2), (95, 100), (190, 200), (3, 1000)])
def test_wilson_inverts_the_score_test(successes, episodes):
    rate = successes / episodes
    for bound in wilson(successes, episodes):
        assert abs(rate - bound) / math.sqrt(bound * (1 - bound) / episodes) == pytest.approx(1.959963984540054)


def test_wilson_at_the_ends():
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(1 - 0.27753, abs=1e-5), 1.0)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_not_a_proportion(successes, episodes):
    with pytest.raises(AssertionError, match=f"{successes} successes in {episodes}"):
        wilson(successes, episodes)


def test_a_split_of_toy_pick():
    results = [result(0), result(1, two_words=True), result(2, success=False, two_words=True, wrong_object=True)]
    results.append(result(3, success=False, steps=48))
    assert summarize_split(results, TOY_PICK) == {
        "episodes": 4,
        "success_rate": 0.5,
        "success_ci95": list(wilson(2, 4)),
        "wrong_object_rate": 0.25,
        "two_words": {"episodes": 2, "success_rate": 0.5},
    }
    assert summarize_split(results[:1], TOY_PICK)["two_words"] == {"episodes": 0, "success_rate": 0.0}


def test_a_check_of_toy_pick():
    results = [result(0, chance=0.5), *(result(i, success=i == 3, original_object=False) for i in (1, 2, 3))]
    rates = {"success_rate": 0.5, "original_object_rate": 0.25, "chance_rate": 1.25 / 4}
    metrics = summarize({"seen": results}, {"swapped": results}, TOY_PICK, seed=0, seconds=1.0)
    assert metrics["grounding"] == {"swapped": {"episodes": 4, **rates}}


def test_all_of_metrics_json():
    splits = {"seen": [result(0), result(1, success=False, wrong_object=True, steps=20)], "held_out_pairs": [result(0)]}
    metrics = summarize(splits, {"blank": [result(0)]}, TOY_PICK, seed=3, seconds=1.23456)
    assert metrics == {
        "env": "vla_mini/ToyPick-v0",
        "episodes": 2,
        "seed": 3,
        "success_rate": 0.5,
        "success_ci95": list(wilson(1, 2)),
        "wrong_object_rate": 0.5,
        "steps_mean": 15.0,
        "seconds": 1.235,
        "splits": {split: summarize_split(results, TOY_PICK) for split, results in splits.items()},
        "grounding": {"blank": {"episodes": 1, "success_rate": 1.0, "original_object_rate": 1.0, "chance_rate": 0.25}},
    }


def test_an_environment_has_the_metrics_of_its_spec_alone():
    metrics = summarize({"seen": [result(0)]}, {}, PLAIN, seed=0, seconds=1.0)
    top = ["env", "episodes", "seed", "success_rate", "success_ci95", "steps_mean", "seconds", "splits", "grounding"]
    assert list(metrics) == top and list(metrics["splits"]["seen"]) == ["episodes", "success_rate", "success_ci95"]
    assert headline(metrics) == "success 100.0% (95 % interval 20.7% to 100.0%)"
    _, seen = table(metrics).splitlines()
    assert seen.split() == ["seen", "100.0%", "20.7%", "to", "100.0%"]


def test_groups_of_tasks_pool_the_episodes_of_their_tasks():
    spec = replace(PLAIN, tasks={"a": "do a", "b": "do b", "c": "do c"}, groups={"ab": ("a", "b"), "rest": ("c",)})
    results = [result(0, task="a"), result(1, task="b", success=False), result(3, task="a")]
    metrics = summarize({"seen": results}, {}, spec, seed=0, seconds=1.0)
    assert metrics["groups"] == {"ab": summarize_split(results, spec)}  # of "rest" there is no episode
    assert metrics["groups"]["ab"]["success_rate"] == pytest.approx(2 / 3) and list(metrics["tasks"]) == ["a", "b"]
    metrics = summarize({"seen": [*results, result(2, task="c")]}, {}, spec, seed=0, seconds=1.0)
    assert metrics["mean_of_groups_rate"] == pytest.approx((2 / 3 + 1) / 2) and metrics["success_rate"] == 3 / 4
    assert headline(metrics).endswith(", mean of groups 83.3%")
    with pytest.raises(ValueError, match="groups: 'z' is not one of the tasks; choose from: a, b, c"):
        replace(spec, groups={"ab": ("a", "z")})


def test_text_for_a_terminal():
    split = [result(0), result(1, success=False, wrong_object=True)]
    metrics = summarize({"seen": split}, {"blank": [result(0)]}, TOY_PICK, seed=0, seconds=1.0)
    assert headline(metrics) == "success 50.0% (95 % interval 9.5% to 90.5%), wrong object 50.0%"
    assert table(metrics).splitlines() == [
        "                      success     95 % interval  wrong object   two words",
        "seen                    50.0%     9.5% to 90.5%         50.0%           -",
        "blank                  100.0%   original object 100.0% (by chance 25.0%)",
    ]
