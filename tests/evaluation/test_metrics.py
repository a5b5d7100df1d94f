import math

import pytest

from vla_mini.evaluation.metrics import (
    headline,
    steps_mean,
    summarise_grounding,
    summarise_split,
    table,
    wilson,
)
from vla_mini.evaluation.rollout import EpisodeResult


def result(episode: int, **changes) -> EpisodeResult:
    right = EpisodeResult(
        episode=episode,
        instruction="pick up the red cube",
        steps=10,
        success=True,
        wrong_object=False,
        lifted=1,
        original_target=1,
        two_words=False,
        num_objects=4,
    )
    return right._replace(**changes)


@pytest.mark.parametrize(("successes", "episodes"), [(1, 2), (95, 100), (190, 200), (3, 1000)])
def test_wilson_inverts_the_score_test(successes, episodes):
    rate = successes / episodes
    for bound in wilson(successes, episodes):
        assert abs(rate - bound) / math.sqrt(bound * (1 - bound) / episodes) == pytest.approx(1.959963984540054)


def test_wilson_at_the_ends():
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(1 - 0.27753, abs=1e-5), 1.0)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_rate(successes, episodes):
    with pytest.raises(ValueError, match=f"{successes} successes in {episodes}"):
        wilson(successes, episodes)


def test_split():
    wrong = {"success": False, "wrong_object": True, "lifted": 0}
    late = {"success": False, "lifted": -1, "steps": 48}
    results = [result(0), result(1, two_words=True), result(2, two_words=True, **wrong), result(3, **late)]
    assert summarise_split(results) == {
        "episodes": 4,
        "success_rate": 0.5,
        "success_ci95": list(wilson(2, 4)),
        "wrong_object_rate": 0.25,
        "two_words": {"episodes": 2, "success_rate": 0.5},
    }
    assert steps_mean(results) == (10 + 10 + 10 + 48) / 4


def test_split_without_scenes_that_need_both_words():
    assert summarise_split([result(0)])["two_words"] == {"episodes": 0, "success_rate": 0.0}


def test_grounding_counts_the_original_object_and_chance():
    results = [
        result(0, num_objects=2),  # the newly named object is the original one: only where nothing is said
        result(1, success=False, lifted=0, num_objects=4),
        result(2, success=False, lifted=-1, original_target=0, num_objects=4),
        result(3, success=True, lifted=2, num_objects=4),
    ]
    summary = {"episodes": 4, "success_rate": 0.5, "original_object_rate": 0.25, "chance_rate": 1.25 / 4}
    assert summarise_grounding(results) == summary


def test_words_for_a_terminal():
    split = summarise_split([result(0), result(1, success=False, wrong_object=True)])
    metrics = split | {"splits": {"seen": split}, "grounding": {"blank": summarise_grounding([result(0)])}}
    assert headline(metrics) == "success 50.0% (95 % interval 9.5% to 90.5%), wrong object 50.0%"
    _, seen, blank = table(metrics).splitlines()
    assert seen.split() == ["seen", "50.0%", "9.5%", "to", "90.5%", "50.0%", "-"]
    assert blank.split()[:2] == ["blank", "100.0%"]
    assert blank.endswith("(by chance 25.0%)")
