"""Rollouts: each episode once, the same results whatever the vectorization, metrics by EnvSpec, recordings."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.evaluation.conftest import TOY_PICK
from tests.factory import make_policy
from tests.reach import REACH, REACH_ASYNC, STEPS, Reach
from tests.reach_policy import ReachPolicy
from vla_mini.envs import make
from vla_mini.evaluation import rollout as module
from vla_mini.evaluation.rollout import rollout


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_results_do_not_depend_on_the_number_of_environments(noise):
    policy = ReachPolicy(noise=noise)
    alone = rollout(policy, REACH, episodes=range(20), num_envs=1)
    assert [result.episode for result in alone] == list(range(20))
    assert len({result.steps for result in alone}) > 3
    for num_envs in (3, 20, 64):
        assert rollout(policy, REACH, episodes=range(20), num_envs=num_envs) == alone


def test_results_are_those_of_episodes_played_by_hand():
    for result in rollout(ReachPolicy(execute=1), REACH, episodes=range(8), num_envs=3):
        env, steps, over = make(REACH), 0, False
        observation, _ = env.reset(seed=result.episode)
        while not over:
            x, goal = observation["state"]
            observation, _, terminated, truncated, info = env.step(np.sign([goal - x]))
            steps, over = steps + 1, terminated or truncated
        assert (result.steps, result.success, result.instruction) == (steps, True, observation["instruction"])
        assert result.info == {"overshot": info["overshot"], "far": info["far"]}


def test_processes_of_their_own_give_the_same_results(monkeypatch):
    monkeypatch.setattr(module, "num_cores", lambda: 2)
    policy = ReachPolicy()
    results = rollout(policy, REACH_ASYNC, episodes=range(5), num_envs=8, num_recordings=1)
    expected = rollout(policy, REACH, episodes=range(5), num_envs=2, num_recordings=1)
    assert len({result.instruction for result in results}) == 2  # each episode has its own
    for result, other in zip(results, expected, strict=True):
        assert result._replace(frames=None) == other._replace(frames=None)
        np.testing.assert_array_equal(result.frames, other.frames)


@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_dies_is_replaced_once(monkeypatch, tmp_path, times):
    monkeypatch.setattr(module, "num_cores", lambda: 2)
    monkeypatch.setenv("DIE_AT", f"3 {times} {tmp_path}")
    seen = []
    if times == 2:
        with pytest.raises(RuntimeError, match=rf"a process of env={REACH_ASYNC} died again, with \d episodes left"):
            rollout(ReachPolicy(), REACH_ASYNC, episodes=range(5), on_episode=seen.append)
        return
    results = rollout(ReachPolicy(), REACH_ASYNC, episodes=range(5), on_episode=seen.append)
    assert results == rollout(ReachPolicy(), REACH, episodes=range(5))
    assert sorted(result.episode for result in seen) == list(range(5)) and len(list(tmp_path.iterdir())) == 1


def test_episodes_are_played_task_by_task(monkeypatch):
    played, reset = [], Reach.reset
    monkeypatch.setattr(Reach, "reset", lambda self, **given: (played.append(given["seed"]), reset(self, **given))[1])
    results = rollout(ReachPolicy(), REACH, episodes=range(8), num_envs=1)
    assert played == [0, 2, 4, 6, 1, 3, 5, 7] and [result.episode for result in results] == list(range(8))
    assert [result.task for result in results] == ["left", "right"] * 4


@pytest.mark.parametrize(("history", "every"), [(1, 3), (2, 1)])
def test_images_are_asked_for_only_where_the_policy_looks(monkeypatch, history, every):
    asked, reset = [], Reach.reset
    monkeypatch.setattr(Reach, "reset", lambda self, **given: (asked.append(given["options"]), reset(self, **given))[1])
    rollout(ReachPolicy(history=history), REACH, episodes=[0], execute=3)
    assert [options.get("render_every", 1) for options in asked] == [every]


def test_results_keep_the_order_of_the_episodes():
    results = rollout(ReachPolicy(), REACH, episodes=[7, 3, 11], num_envs=2)
    assert [result.episode for result in results] == [7, 3, 11]


def test_only_running_environments_are_stepped_and_observed(monkeypatch):
    steps, step = [], Reach.step
    monkeypatch.setattr(Reach, "step", lambda self, action: (steps.append(1), step(self, action))[1])
    policy = ReachPolicy(execute=2)
    results = rollout(policy, REACH, episodes=range(20), num_envs=7)
    assert sum(len(call.state) for call in policy.calls) == sum(-(-result.steps // 2) for result in results)
    assert len(steps) == sum(result.steps for result in results)


def test_a_history_starts_anew_with_each_episode():
    policy = ReachPolicy(execute=1, history=3)
    rollout(policy, REACH, episodes=range(6), num_envs=2)
    goals = np.concatenate([call.state.numpy() for call in policy.calls])[:, 1::2]
    assert len(np.unique(goals[:, 0])) == 6 and (goals == goals[:, :1]).all()


def test_execute_and_ensemble_are_the_controllers():
    policy = ReachPolicy(execute=2, speed=0.0)  # never arrives
    (result,) = rollout(policy, REACH, episodes=[0], execute=3)
    assert (result.success, result.steps, len(policy.calls)) == (False, STEPS, STEPS // 3)
    with pytest.raises(ValueError, match="execute=9 is not between 1 and 4"):
        rollout(policy, REACH, episodes=[0], execute=9)
    with pytest.raises(ValueError, match="no two chunks overlap"):
        rollout(policy, REACH, episodes=[0], execute=4, ensemble=0.1)


def test_actions_are_clipped_to_the_action_space():
    far = ReachPolicy(execute=1, speed=100.0)  # the environment asserts its bounds
    assert rollout(far, REACH, episodes=range(5)) == rollout(ReachPolicy(execute=1), REACH, episodes=range(5))


def test_a_sampling_policy_is_determined_by_the_seed():
    policy, noise, draw = ReachPolicy(noise=2.0), [], ReachPolicy(noise=2.0).draw_noise
    policy.draw_noise = lambda size, generator: noise.append(draw(size, generator)) or noise[-1]
    rollout(policy, REACH, episodes=range(4), num_envs=4)
    assert len({drawn.sum().item() for drawn in noise}) == len(noise)  # each episode has noise of its own
    first, again, other = (rollout(policy, REACH, episodes=range(20), options={"seed": seed}) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("action", ["regression", "flow"])
def test_a_real_policy_gives_the_same_results_alone_and_together(action):
    policy = make_policy(action=action)
    alone, together = (rollout(policy, TOY_PICK, episodes=range(3), num_envs=n, num_recordings=3) for n in (1, 3))
    for one, other in zip(alone, together, strict=True):
        assert one._replace(frames=None) == other._replace(frames=None)
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1  # rounding differs with the size of a batch


def test_recording_keeps_the_lowest_numbers_and_changes_nothing():
    policy = ReachPolicy(speed=0.4)  # too slow for some episodes
    plain = rollout(policy, REACH, episodes=range(30), num_envs=4)
    kinds = [(task, success) for task in ("left", "right") for success in (True, False)]
    expected = {r.episode for kind in kinds for r in [r for r in plain if (r.task, r.success) == kind][:2]}
    assert len(expected) == 8
    for num_envs in (1, 8):
        results = rollout(policy, REACH, episodes=range(30), num_envs=num_envs, num_recordings=2)
        assert {result.episode for result in results if result.frames is not None} == expected
        for result in results:
            assert result.frames is None or result.frames.shape == (result.steps + 1, 8, 6, 3)
        assert [result._replace(frames=None) for result in results] == plain


def test_each_result_is_reported_once():
    seen = []
    results = rollout(ReachPolicy(), REACH, episodes=range(9), num_envs=4, on_episode=seen.append)
    assert sorted(seen, key=lambda result: result.episode) == results


def test_the_expert_picks_the_named_object(expert):
    results = rollout(expert(), TOY_PICK, episodes=range(40), num_envs=16)
    assert sum(result.success for result in results) >= 39
    assert all(result.info["original_object"] == result.success for result in results)
    assert {round(1 / result.info["chance"]) for result in results} == {2, 3, 4}
    swapped = rollout(expert(obey=False), TOY_PICK, episodes=range(20), options={"instruction": "swapped"})
    assert sum(result.info["wrong_object"] and result.info["original_object"] for result in swapped) >= 19


def test_no_episodes_and_no_environments_are_refused():
    with pytest.raises(ValueError, match="episodes=0"):
        rollout(ReachPolicy(), REACH, episodes=range(0))
    with pytest.raises(ValueError, match="num_envs=0"):
        rollout(ReachPolicy(), REACH, episodes=range(1), num_envs=0)


def test_an_info_without_what_its_spec_promises_is_refused(monkeypatch):
    broken = replace(Reach.env_spec, rates=("overshoot",))
    monkeypatch.setattr(module, "get_spec", lambda env_id: broken)
    with pytest.raises(ValueError, match="lacks 'overshoot'"):
        rollout(ReachPolicy(), REACH, episodes=range(1))


def test_importing_it_is_cheap():
    heavy = {"matplotlib", "PIL", "lightning", "transformers"}
    code = "import sys, vla_mini.acting; assert 'gymnasium' not in sys.modules; import vla_mini.evaluation.evaluate; "
    code += f"print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
