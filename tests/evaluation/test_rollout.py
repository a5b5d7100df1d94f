import subprocess
import sys

import numpy as np
import pytest
import torch

import vla_mini.envs
from vla_mini.evaluation.rollout import _Slot, observe, rollout


def test_results_do_not_depend_on_the_number_of_environments(reach, reach_policy):
    policy = reach_policy()
    alone = rollout(policy, reach, episodes=range(20), num_envs=1)
    assert [result.episode for result in alone] == list(range(20))
    assert {result.success for result in alone} == {True}
    assert len({result.steps for result in alone}) > 3
    for num_envs in (3, 20, 64):
        assert rollout(policy, reach, episodes=range(20), num_envs=num_envs) == alone


def test_results_keep_the_order_of_the_episodes(reach, reach_policy):
    results = rollout(reach_policy(), reach, episodes=[7, 3, 11], num_envs=2)
    assert [result.episode for result in results] == [7, 3, 11]


def test_only_running_environments_go_through_the_policy(reach, reach_policy):
    policy = reach_policy(execute=2)
    results = rollout(policy, reach, episodes=range(20), num_envs=7)
    asked = sum(len(observation.state) for observation in policy.asked)
    assert asked == sum(-(-result.steps // 2) for result in results)


@pytest.mark.parametrize(("history", "num_envs"), [(2, 1), (4, 1), (3, 2)])
def test_a_history_holds_every_frame_back_to_the_episodes_first(reach, reach_policy, history, num_envs):
    """What the policy is shown against the same episodes played by hand; two steps lie between what it is asked."""
    policy = reach_policy(execute=2)
    policy.history = history
    rollout(policy, reach, episodes=range(4), num_envs=num_envs)
    shown = [(state, images) for asked in policy.asked for state, images in zip(asked.state, asked.images, strict=True)]
    expected = []
    for episode in range(4):
        env = vla_mini.envs.make(reach)
        frames, over = [env.reset(seed=episode)[0]], False
        while not over:
            latest = frames[-1]["state"]
            seen = [frames[max(len(frames) - 1 - age, 0)] for age in range(history)]
            expected.append((np.concatenate([f["state"] for f in seen]), np.stack([f["images"]["top"] for f in seen])))
            for _ in range(2):
                observation, _, terminated, truncated, _ = env.step(np.sign(latest[1:] - latest[:1]))
                frames.append(observation)
                over = terminated or truncated
                if over:
                    break
    assert len(shown) == len(expected)
    order = np.lexsort(np.stack([state for state, _ in expected]).T), np.lexsort(np.stack([s for s, _ in shown]).T)
    for i, j in zip(*order, strict=True):
        np.testing.assert_array_equal(shown[j][0], expected[i][0])
        np.testing.assert_array_equal(shown[j][1].numpy(), expected[i][1].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("execute", [1, 3, 4])
def test_executes_the_first_actions_of_a_chunk_before_asking_again(reach, reach_policy, execute):
    policy = reach_policy(execute=execute, speed=0.0)  # never arrives: 12 steps
    (result,) = rollout(policy, reach, episodes=[0])
    assert (result.success, result.steps, len(policy.asked)) == (False, 12, 12 // execute)


def test_an_ensemble_averages_what_all_chunks_say_of_a_step(reach, reach_policy):
    """Chunks of four that count up: 0 1 2 3, then 10 11 12 13 ..., so that each action tells from which chunks it comes."""
    policy, taken = reach_policy(execute=1, ensemble=0.5), []
    policy.act = lambda observation, generator: 10.0 * len(taken) + torch.arange(4.0)[None, :, None]
    slot = _Slot(vla_mini.envs.make(reach), record=False)
    slot.begin(0, {})
    for _ in range(6):
        chunk = policy.act(None, None)[0].numpy()
        taken.append(slot.plan(chunk, execute=policy.execute, ensemble=policy.ensemble).item())
        slot.play(np.zeros((1, 1), np.float32))
    for step, action in enumerate(taken):
        chunks = range(max(0, step - 3), step + 1)  # those that still speak of this step, the oldest first
        weights = np.exp(-0.5 * np.arange(len(chunks)))
        assert action == pytest.approx(np.average([10 * then + (step - then) for then in chunks], weights=weights))


def test_an_ensemble_of_one_chunk_is_that_chunk(reach, reach_policy):
    """Executed whole, no chunk overlaps with the next; and what agrees with itself is not changed by averaging."""
    for execute in (1, 2, 4):
        plain, ensemble = (reach_policy(execute=execute, ensemble=each) for each in (None, 0.1))
        if execute == 4:
            assert rollout(plain, reach, episodes=range(8)) == rollout(ensemble, reach, episodes=range(8))
        assert {result.success for result in rollout(ensemble, reach, episodes=range(8), num_envs=3)} == {True}


def test_actions_are_clipped_to_what_the_environment_takes(reach, reach_policy):
    far = reach_policy(execute=1, speed=100.0)  # the environment asserts its bounds
    assert rollout(far, reach, episodes=range(5)) == rollout(reach_policy(execute=1), reach, episodes=range(5))


def test_a_sampling_policy_is_determined_by_the_seed(reach, reach_policy):
    policy = reach_policy(noise=2.0)
    first, again, other = (rollout(policy, reach, episodes=range(20), options={"seed": seed}, num_envs=8) for seed in (0, 0, 1))
    assert first == again != other


def test_recording_keeps_the_lowest_numbers_and_changes_nothing(reach, reach_policy):
    policy = reach_policy(speed=0.4)  # too slow for some episodes
    plain = rollout(policy, reach, episodes=range(30), num_envs=4)
    expected = {result.episode for success in (True, False) for result in [r for r in plain if r.success is success][:2]}
    assert len(expected) == 4
    for num_envs in (1, 8):
        results = rollout(policy, reach, episodes=range(30), num_envs=num_envs, num_recordings=2)
        assert {result.episode for result in results if result.frames is not None} == expected
        for result in results:
            assert result.frames is None or result.frames.shape == (result.steps + 1, 8, 6, 3)
        assert [result._replace(frames=None) for result in results] == plain


def test_each_result_is_reported_once(reach, reach_policy):
    seen = []
    results = rollout(reach_policy(), reach, episodes=range(9), num_envs=4, on_episode=seen.append)
    assert sorted(seen) == sorted(results)


def test_the_expert_picks_what_it_is_told(toy_pick, expert):
    results = rollout(expert(), toy_pick, episodes=range(40), num_envs=16)
    assert sum(result.success for result in results) >= 39
    assert all(2 <= result.num_objects <= 4 for result in results)
    assert all(result.lifted == result.original_target for result in results if result.success)
    swapped = rollout(expert(obey=False), toy_pick, episodes=range(20), options={"instruction": "swapped"})
    assert sum(result.wrong_object and result.lifted == result.original_target for result in swapped) >= 19


def test_refuses_nothing_to_play(reach, reach_policy):
    with pytest.raises(ValueError, match="episodes=0"):
        rollout(reach_policy(), reach, episodes=range(0))
    with pytest.raises(ValueError, match="num_envs=0"):
        rollout(reach_policy(), reach, episodes=range(1), num_envs=0)


def test_refuses_actions_that_are_no_numbers(reach, reach_policy):
    with pytest.raises(FloatingPointError, match="not finite"):
        rollout(reach_policy(speed=float("nan")), reach, episodes=range(2))


def test_observe_gives_bytes_channels_first(reach_policy):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 8, 6, 3), np.uint8)
    states = rng.normal(size=(3, 2))
    observations = [
        {"images": {"top": frame, "side": frame}, "state": state, "instruction": "go"}
        for frame, state in zip(frames, states, strict=True)
    ]
    observation = observe(reach_policy(), observations)
    np.testing.assert_array_equal(observation.images[:, 0].numpy(), frames.transpose(0, 3, 1, 2))
    assert observation.images.dtype == torch.uint8
    np.testing.assert_array_equal(observation.state.numpy(), states.astype(np.float32))
    assert observation.tokens.tolist() == [[2], [2], [2]]


def test_observe_repeats_the_earliest_frame_where_there_is_no_more(reach_policy):
    policy = reach_policy()
    policy.history = 3
    frames = [{"images": {"top": np.full((8, 6, 3), i, np.uint8)}, "state": [i, -i], "instruction": "go"} for i in range(4)]
    observation = observe(policy, frames[:3], past=[frames[3:], [], frames[:3]])
    assert observation.state.tolist() == [[0, 0, 3, -3, 3, -3], [1, -1] * 3, [2, -2, 0, 0, 1, -1]]
    assert observation.images[:, :, 0, 0, 0].tolist() == [[0, 3, 3], [1, 1, 1], [2, 0, 1]]
    assert torch.equal(observe(policy, frames[:1]).state, torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"top": np.zeros((8, 8, 3), np.uint8)}}, r"\(8, 8, 3\).*\(8, 6, 3\)"),
        ({"images": {"top": np.zeros((8, 6, 3), np.float32)}}, "float32"),
        ({"images": {"wrist": np.zeros((8, 6, 3), np.uint8)}}, "'top' is missing.*wrist"),
        ({"state": np.zeros(3, np.float32)}, r"\(3,\).*'x', 'goal'"),
    ],
)
def test_observe_refuses_what_the_policy_does_not_know(reach_policy, change, message):
    good = {"images": {"top": np.zeros((8, 6, 3), np.uint8)}, "state": np.zeros(2, np.float32), "instruction": "go"}
    observe(reach_policy(), [good])
    with pytest.raises(ValueError, match=message):
        observe(reach_policy(), [good | change])


def test_importing_it_is_cheap():
    heavy = ["matplotlib", "PIL", "lightning", "transformers"]
    code = f"import sys, vla_mini.evaluation.rollout; print(*{set(heavy)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
