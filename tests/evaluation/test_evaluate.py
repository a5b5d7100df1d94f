import json

import pytest

from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.evaluation.evaluate import evaluate

SPLIT = {"episodes", "success_rate", "success_ci95", "wrong_object_rate", "two_words"}


def test_plays_all_splits_and_checks(toy_pick, expert, tmp_path):
    metrics = evaluate(expert(obey=False), toy_pick, episodes=12, seed=3, output=tmp_path / "evaluation")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    assert list(metrics["splits"]) == ["seen", "held_out_pairs", "held_out_wordings"]
    assert all(split.keys() == SPLIT and split["episodes"] == 12 for split in metrics["splits"].values())
    assert (metrics["env"], metrics["episodes"], metrics["seed"]) == (toy_pick, 12, 3)
    for key in ("success_rate", "success_ci95", "wrong_object_rate"):
        assert metrics[key] == metrics["splits"]["seen"][key]
    assert metrics["success_rate"] >= 11 / 12
    assert 5 < metrics["steps_mean"] < 30
    assert metrics["seconds"] > 0
    # It goes for the original target whatever is said, so it fails where another object is named, and only there.
    swapped, blank = metrics["grounding"]["swapped"], metrics["grounding"]["blank"]
    assert swapped["success_rate"] == 0
    assert swapped["original_object_rate"] == blank["original_object_rate"] == blank["success_rate"] >= 11 / 12
    assert 1 / 4 <= blank["chance_rate"] <= 1 / 2
    names = {path.name for path in (tmp_path / "evaluation" / "videos").glob("*.gif")}
    assert {"seen_0000_success.gif", "held_out_pairs_0000_success.gif"} <= names


def test_another_seed_gives_other_scenes(toy_pick, expert):
    first, again, other = (evaluate(expert(), toy_pick, episodes=6, seed=seed) for seed in (0, 0, 1))
    assert first["steps_mean"] == again["steps_mean"] != other["steps_mean"]


def test_an_environment_from_elsewhere_has_one_split(reach, reach_policy):
    metrics = evaluate(reach_policy(), reach, episodes=5)
    assert list(metrics["splits"]) == ["seen"]
    assert metrics["grounding"] == {}
    assert metrics["success_rate"] == 1


def test_refuses_no_episodes_and_leaves_nothing(reach, reach_policy, tmp_path):
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(reach_policy(), reach, episodes=0, output=tmp_path / "evaluation")
    assert list(tmp_path.iterdir()) == []


def test_every_examination_plays_final_scenes_of_its_own(toy_pick, expert, monkeypatch):
    played, reset = set(), ToyPick.reset

    def noting(self, *, seed=None, options=None):
        played.add((seed, *sorted(options.items())))
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ToyPick, "reset", noting)
    evaluate(expert(), toy_pick, episodes=2, seed=5)
    examinations = [
        {"split": "seen"},
        {"split": "held_out_pairs"},
        {"split": "held_out_wordings"},
        {"split": "seen", "instruction": "swapped"},
        {"split": "seen", "instruction": "blank"},
    ]
    finals = [{"purpose": "evaluation", "seed": 5} | examination for examination in examinations]
    assert played == {(episode, *sorted(options.items())) for options in finals for episode in range(2)}
