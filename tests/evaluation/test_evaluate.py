"""The final evaluation: which episodes are played, and what of them is in metrics.json."""

import json

import pytest

from tests.evaluation.conftest import TOY_PICK
from tests.factory import make_policy
from tests.reach import REACH
from tests.reach_policy import ReachPolicy
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.evaluation.evaluate import evaluate, evaluation_splits

SPLIT = {"episodes", "success_rate", "success_ci95", "wrong_object_rate", "two_words"}


def test_all_splits_and_checks_are_played(expert):
    metrics, episodes = evaluate(expert(obey=False), TOY_PICK, episodes=12, seed=3, num_recordings=2)
    assert json.loads(json.dumps(metrics)) == metrics
    assert list(metrics["splits"]) == list(episodes) == ["seen", "held_out_pairs", "held_out_phrasings"]
    assert all(split.keys() == SPLIT and split["episodes"] == 12 for split in metrics["splits"].values())
    assert (metrics["env"], metrics["episodes"], metrics["seed"]) == (TOY_PICK, 12, 3)
    for key in ("success_rate", "success_ci95", "wrong_object_rate"):
        assert metrics[key] == metrics["splits"]["seen"][key]
    assert metrics["success_rate"] >= 11 / 12 and 5 < metrics["steps_mean"] < 30 and metrics["seconds"] > 0
    # It picks the original target whatever the instruction is, so it fails where another object is named, and only there.
    swapped, blank = metrics["grounding"]["swapped"], metrics["grounding"]["blank"]
    assert swapped["success_rate"] == 0
    assert swapped["original_object_rate"] == blank["original_object_rate"] == blank["success_rate"] >= 11 / 12
    assert 1 / 4 <= blank["chance_rate"] <= 1 / 2
    assert {split: sum(result.frames is not None for result in of if result.success) for split, of in episodes.items()} == {
        split: 2 for split in episodes
    }


def test_all_are_final_scenes_of_their_own(monkeypatch):
    played, reset = set(), ToyPick.reset

    def noting(self, *, seed=None, options=None):
        played.add((seed, *sorted(options.items())))
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ToyPick, "reset", noting)
    evaluate(make_policy(), TOY_PICK, episodes=2, seed=5)
    evaluations = [
        {"split": "seen"},
        {"split": "held_out_pairs"},
        {"split": "held_out_phrasings"},
        {"split": "seen", "instruction": "swapped"},
        {"split": "seen", "instruction": "blank"},
    ]
    expected = [{"purpose": "evaluation", "seed": 5, "render_every": 2} | options for options in evaluations]
    assert played == {(episode, *sorted(options.items())) for options in expected for episode in range(2)}


def test_fewer_or_no_checks_may_be_played():
    for number in (1, 0):
        metrics, _ = evaluate(make_policy(), TOY_PICK, episodes=2, check_episodes=number)
        assert {check["episodes"] for check in metrics["grounding"].values()} == ({number} if number else set())
        assert metrics["episodes"] == 2


def test_another_seed_gives_other_scenes(expert):
    first, again, other = (evaluate(expert(), TOY_PICK, episodes=6, seed=seed)[0] for seed in (0, 0, 1))
    assert first["steps_mean"] == again["steps_mean"] != other["steps_mean"]


def test_an_environment_of_several_tasks():
    metrics, episodes = evaluate(ReachPolicy(), REACH, episodes=9)
    assert list(metrics["splits"]) == ["seen"] and metrics["grounding"] == {} and metrics["success_rate"] == 1
    tasks = metrics["tasks"]
    assert {name: task["episodes"] for name, task in tasks.items()} == {"left": 9, "right": 9} and metrics["episodes"] == 18
    assert all(result.instruction == f"go to the {result.task}" for result in episodes["seen"])
    assert all(task.keys() == metrics["splits"]["seen"].keys() >= {"overshot_rate", "far"} for task in tasks.values())


def test_further_splits_are_played_on_request_only():
    assert evaluation_splits(TOY_PICK) == ("seen", "held_out_pairs", "held_out_phrasings")
    metrics, _ = evaluate(make_policy(), TOY_PICK, episodes=2, further_splits=["synonyms_verbs"])
    assert list(metrics["splits"]) == ["seen", "held_out_pairs", "held_out_phrasings", "synonyms_verbs"]
    assert metrics["splits"]["synonyms_verbs"]["episodes"] == 2


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(ReachPolicy(), REACH, episodes=0)
    with pytest.raises(ValueError, match=r"further_splits: .* has no split 'synonym'; did you mean 'synonyms'\?"):
        evaluate(make_policy(), TOY_PICK, episodes=2, further_splits=["synonym"])
    with pytest.raises(ValueError, match="execute=5 is not between 1 and 4"):
        evaluate(ReachPolicy(), REACH, episodes=1, execute=5)
