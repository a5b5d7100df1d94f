"""Controller: which action of which chunk is executed, history, noise of its own, and refusals in one line."""

import threading
import time

import numpy as np
import pytest
import torch

from tests.factory import make_policy
from tests.reach import REACH
from tests.reach_policy import CountingPolicy, ReachPolicy
from vla_mini.acting import AsyncController, Controller, observe, prefix_weights, step_together
from vla_mini.envs import make
from vla_mini.parts import ActingDefaults

OBSERVATION = {"images": {"top": np.zeros((8, 6, 3), np.uint8)}, "state": np.float32([0, 1]), "instruction": "go"}


def frames(number: int) -> list[dict]:
    """Observations that are numbered by their images and states."""
    return [
        {"images": {"top": np.full((8, 6, 3), i, np.uint8)}, "state": np.float32([i, -i]), "instruction": "go"}
        for i in range(number)
    ]


@pytest.mark.parametrize("execute", [1, 3, 4])
def test_the_first_actions_of_each_chunk_are_executed(execute):
    policy = CountingPolicy(execute=execute)
    controller = Controller(policy)
    actions = [controller.step(OBSERVATION) for _ in range(12)]
    assert [action.item() for action in actions] == [10 * (i // execute) + i % execute for i in range(12)]
    assert len(policy.calls) == 12 // execute and {(a.dtype.name, a.shape) for a in actions} == {("float32", (1,))}


@pytest.mark.parametrize("execute", [1, 2, 3])
def test_an_ensemble_averages_all_chunks_that_reach_a_step(execute):
    controller = Controller(CountingPolicy(execute=execute), ensemble=0.5)
    for step in range(9):
        starts = [start for start in range(0, step + 1, execute) if step < start + 4]  # of those chunks, the oldest first
        predictions = [10 * (start // execute) + step - start for start in starts]
        weights = np.exp(-0.5 * np.arange(len(starts)))  # the oldest weighs most
        assert controller.step(OBSERVATION).item() == pytest.approx(np.average(predictions, weights=weights))


def test_the_saved_defaults_hold_unless_others_are_given():
    policy = ReachPolicy(execute=3, ensemble=0.1)
    controller = Controller(policy)
    assert (controller.execute, controller.ensemble) == (3, 0.1)
    controller = Controller(policy, execute=4, ensemble="none")
    assert (controller.execute, controller.ensemble) == (4, None)
    assert Controller(ReachPolicy(), ensemble=0.0).ensemble == 0.0


def test_reset_forgets_chunks_and_observations():
    policy = CountingPolicy(history=3)
    controller = Controller(policy, execute=2, ensemble=0.5)
    for frame in frames(3):
        controller.step(frame)
    controller.reset()
    assert controller.step(OBSERVATION).item() == 20  # of the third chunk alone
    assert policy.calls[-1].state.tolist() == [[0, 1] * 3]


def test_a_history_holds_every_observation_not_only_those_of_calls():
    policy = ReachPolicy(execute=2, history=3)
    controller, memory = Controller(policy), np.zeros((8, 6, 3), np.uint8)
    for frame in frames(5):
        memory[:] = frame["images"]["top"]  # as a camera that always writes into the same memory
        controller.step(frame | {"images": {"top": memory}})
    assert [call.state[0, ::2].tolist() for call in policy.calls] == [[0, 0, 0], [2, 1, 0], [4, 3, 2]]
    assert [call.images[0, :, 0, 0, 0].tolist() for call in policy.calls] == [[0, 0, 0], [2, 1, 0], [4, 3, 2]]
    observation = controller.observe(frames(6)[5])
    assert observation.state.tolist() == [[5, -5, 4, -4, 3, -3]] and observation.images.shape == (1, 3, 3, 8, 6)


def test_each_controller_has_noise_of_its_own():
    policy = ReachPolicy(noise=1.0)
    alone = [[controller.step(OBSERVATION) for _ in range(4)] for controller in (Controller(policy, seed=i) for i in range(3))]
    together = [Controller(policy, seed=i) for i in range(3)]
    steps = [step_together(together, [OBSERVATION] * 3) for _ in range(4)]
    np.testing.assert_array_equal(np.swapaxes(steps, 0, 1), alone)
    assert len(np.unique(alone)) == 12
    together[0].reset(seed=1)  # the seed determines the noise; without one the generator continues
    np.testing.assert_array_equal(together[0].step(OBSERVATION), alone[1][0])
    together[0].reset()
    assert together[0].step(OBSERVATION) not in np.array(alone[1])[:2]


def test_one_call_serves_all_controllers_whose_chunk_is_used_up():
    policy = ReachPolicy(execute=2)
    first, second = Controller(policy), Controller(policy)
    first.step(OBSERVATION)
    for _ in range(4):
        step_together([first, second], [OBSERVATION] * 2)
    assert [len(call.state) for call in policy.calls] == [1] * 5
    third = Controller(policy)
    step_together([second, third], [OBSERVATION] * 2)
    assert len(policy.calls[-1].state) == 2


@pytest.mark.parametrize("action", ["regression", "flow"])
def test_a_policy_acts_through_it_as_its_act_does(action):
    policy = make_policy(action=action)
    env = make("vla_mini/ToyPick-v0")
    observation, _ = env.reset(seed=0)
    controller = Controller(policy, execute=2, seed=7)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(7).generate_state(1)[0]))
    chunk = policy.act(observe(policy, [observation]), generator)[0].numpy()
    for step in range(2):
        np.testing.assert_array_equal(controller.step(observation), chunk[step])
        observation, *_ = env.step(chunk[step])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 0}, "execute=0 is not between 1 and 4"),
        ({"execute": 5}, "execute=5 is not between 1 and 4"),
        ({"execute": 4, "ensemble": 0.1}, "ensemble=0.1: with execute=4.* no two chunks overlap"),
    ],
)
def test_saved_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Controller(ReachPolicy(), **settings)
    with pytest.raises(ValueError, match=message):  # as do saved ones
        policy = ReachPolicy()
        policy.acting = ActingDefaults(**settings)
        Controller(policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execute": 7, "delay": 2}, "delay=2 is not between 0 and 1, with execute=7 of a chunk's 8 actions"),
        ({"execute": 1, "delay": 2}, "delay=2 is not between 0 and 1"),
        ({"delay": -1}, "delay=-1 is not between 0 and 2"),
        ({"rtc": True}, "rtc=true is for policies with a head that denoises"),
    ],
)
def test_a_delay_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Controller(make_policy(), **{"execute": 2} | settings)
    with pytest.raises(ValueError, match=r"rtc=true and ensemble=0\.1: give one"):
        Controller(make_policy(action="flow"), rtc=True, ensemble=0.1)


@pytest.mark.parametrize(("execute", "delay"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_with_a_delay_the_chunk_before_is_executed_until_the_next_is_there(execute, delay):
    controller = Controller(CountingPolicy(), execute=execute, delay=delay)
    for step in range(12):
        number = max((k for k in range(step // execute + 1) if k * execute + (delay if k else 0) <= step), default=0)
        assert controller.step(OBSERVATION).item() == 10 * number + step - number * execute
    ensemble = Controller(CountingPolicy(), execute=2, delay=1, ensemble=0.0)
    assert [ensemble.step(OBSERVATION).item() for _ in range(4)] == [0, 1, 2, (3 + 11) / 2]


def test_what_is_executed_meanwhile_is_fixed_and_what_follows_is_less_and_less():
    weights = prefix_weights(8, delay=2, overlap=6)
    assert weights[:2].tolist() == [1, 1] and weights[6:].tolist() == [0, 0] and (np.diff(weights[1:7]) < 0).all()
    assert weights[2] == pytest.approx(0.8 * np.expm1(0.8) / np.expm1(1))  # c (e^c - 1) / (e - 1), c = 4 / 5
    assert prefix_weights(4, delay=0, overlap=0).tolist() == [0] * 4
    assert prefix_weights(4, delay=1, overlap=1).tolist() == [1, 0, 0, 0]
    assert prefix_weights(4, delay=3, overlap=2).tolist() == [1, 1, 0, 0]  # there is nothing more to continue


def test_a_new_chunk_continues_the_one_before():
    """The policy is untrained, and the noise of each chunk another: without guidance its chunks have nothing in common."""
    policy, distances = make_policy(action="flow"), {}
    observation, _ = make("vla_mini/ToyPick-v0").reset(seed=0)
    for rtc in (False, True):
        controller = Controller(policy, execute=3, delay=2, rtc=rtc)
        for _ in range(4):
            controller.step(observation)
        before, after = (chunk.actions for chunk in controller._chunks)
        distances[rtc] = np.abs(before[3:] - after[:5]).mean(axis=1)
    assert distances[True][:2].mean() < 0.3 * distances[False][:2].mean()
    assert distances[True][:2].mean() < distances[True][3:].mean()


class SlowPolicy(CountingPolicy):
    """Takes as long as the test says."""

    def __init__(self):
        super().__init__()
        self.go = threading.Semaphore(0)

    def act(self, observation, generator=None, prefix=None):
        assert self.go.acquire(timeout=10)
        return super().act(observation, generator)


def test_in_real_time_the_next_chunk_is_computed_while_the_present_one_is_executed():
    policy = SlowPolicy()
    controller = AsyncController(policy, execute=2)
    policy.go.release()
    assert [controller.step(OBSERVATION).item() for _ in range(3)] == [0, 1, 2]  # the second chunk was asked for at step 2
    assert controller.step(OBSERVATION).item() == 3 and controller.delay == 1
    policy.go.release()
    while not controller._pending[1].done():
        time.sleep(0.001)
    # At step 4 the first chunk is used up. The second, of step 2, is there since, with what it says of step 4.
    assert controller.step(OBSERVATION).item() == 12 and controller.delay == 2
    policy.go.release()
    controller.reset()  # forgets what is still computed
    policy.go.release()
    assert controller.step(OBSERVATION).item() == 30
    policy.go.release()
    controller.close()


@pytest.mark.parametrize("rtc", [False, True])
def test_in_real_time_a_new_chunk_is_asked_to_continue_the_one_before(rtc, monkeypatch):
    policy = make_policy(action="flow")
    act, prefixes = policy.act, []
    monkeypatch.setattr(policy, "act", lambda *inputs, prefix=None: prefixes.append(prefix) or act(*inputs, prefix))
    env = make("vla_mini/ToyPick-v0")
    observation, _ = env.reset(seed=0)
    controller = AsyncController(policy, execute=3, rtc=rtc)
    for _ in range(20):
        action = controller.step(observation)
        assert action.shape == (4,) and np.isfinite(action).all()
        observation, *_ = env.step(action)
    with pytest.raises(ValueError, match="the state is not finite"):
        for _ in range(4):
            controller.step(observation | {"state": np.full(4, np.nan, np.float32)})
    controller.close()
    assert prefixes[0] is None and len(prefixes) > 2
    assert [prefix is not None for prefix in prefixes[1:]] == [rtc] * (len(prefixes) - 1)
    assert all(prefix.weights[0, 0] == 1 for prefix in prefixes[1:] if rtc)  # executed until the new chunk is there


def test_actions_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match="not finite"):
        Controller(ReachPolicy(speed=float("nan"))).step(OBSERVATION)


def test_observe_makes_images_bytes_channels_first():
    rng = np.random.default_rng(0)
    images, states = rng.integers(0, 256, (3, 8, 6, 3), np.uint8), rng.normal(size=(3, 2))
    observations = [
        {"images": {"top": image, "side": image}, "state": state, "instruction": "go"}
        for image, state in zip(images, states, strict=True)
    ]
    observation = observe(ReachPolicy(), observations)
    np.testing.assert_array_equal(observation.images[:, 0].numpy(), images.transpose(0, 3, 1, 2))
    assert observation.images.dtype == torch.uint8
    np.testing.assert_array_equal(observation.state.numpy(), states.astype(np.float32))
    assert observation.tokens.tolist() == [[2], [2], [2]]


def test_observe_repeats_the_earliest_frame():
    policy, numbered = ReachPolicy(history=3), frames(4)
    observation = observe(policy, numbered[:3], past=[numbered[3:], [], numbered[:3]])
    assert observation.state.tolist() == [[0, 0, 3, -3, 3, -3], [1, -1] * 3, [2, -2, 0, 0, 1, -1]]
    assert observation.images[:, :, 0, 0, 0].tolist() == [[0, 3, 3], [1, 1, 1], [2, 0, 1]]
    assert torch.equal(observe(policy, numbered[:1]).state, torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"top": np.zeros((8, 8), np.uint8)}}, r"'top' is uint8 \(8, 8\).*uint8 \(height, width, 3\)"),
        ({"images": {"top": np.zeros((8, 6, 3), np.float32)}}, "'top' is float32"),
        ({"images": {"wrist": np.zeros((8, 6, 3), np.uint8)}}, "'top' is missing.*wrist"),
        ({"state": np.zeros(3, np.float32)}, r"\(3,\).*x, goal"),
        ({"state": np.float32([0, np.nan])}, "the state is not finite: .*goal"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Controller(ReachPolicy()).step(OBSERVATION | change)
    with pytest.raises(ValueError, match=message):  # in a later observation, too, and in the past
        observe(ReachPolicy(history=2), [OBSERVATION, OBSERVATION], past=[[], [OBSERVATION | change]])


@pytest.mark.parametrize("name", OBSERVATION)
def test_an_observation_that_lacks_something_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        Controller(ReachPolicy()).step({key: value for key, value in OBSERVATION.items() if key != name})


def test_observe_takes_at_least_one_observation():
    with pytest.raises(ValueError, match="list of at least one observation"):
        observe(ReachPolicy(), [])


def test_an_episode_is_solved_by_stepping():
    env, controller = make(REACH), Controller(ReachPolicy())
    observation, _ = env.reset(seed=0)
    for _ in range(12):
        observation, _, terminated, _, info = env.step(controller.step(observation))
        if terminated:
            break
    assert info["success"]
