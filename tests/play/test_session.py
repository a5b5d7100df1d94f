"""One visitor's scene without the web: what acts, what is shown, going back, and what is said of the scene."""

import itertools

import numpy as np
import pytest
import torch

from tests import reach
from tests.factory import make_policy, spec
from tests.play.conftest import SCENE, TOY_PICK, make_session
from vla_mini.acting import Controller, observe
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.envs import make
from vla_mini.play.scenes import table
from vla_mini.play.scenes.recording import Recording
from vla_mini.play.session import SAVED, Session
from vla_mini.play.setup import run_policies
from vla_mini.training.checkpoints import AtomicCheckpointIO


@pytest.fixture
def session(policy):
    return make_session(policy)


def finish(session):
    """Step until the episode is over; the sentence that says how."""
    while session.steps[-1].outcome[0] == "running" or session.position < len(session.steps) - 1:
        session.step()
    return session.shown.outcome


def images(session):
    return [step.observation["images"]["top"] for step in session.steps]


# ---- acting


def test_it_acts_as_a_controller_does_in_the_evaluations_scenes():
    policy = make_policy()
    session, env = make_session(policy, execute=3), make(TOY_PICK)
    controller = Controller(policy, execute=3, ensemble="none", seed=SCENE)
    observation, _ = env.reset(seed=SCENE, options={"purpose": "evaluation"})
    for _ in range(8):
        np.testing.assert_array_equal(session.shown.observation["images"]["top"], observation["images"]["top"])
        action = controller.step(observation)
        np.testing.assert_array_equal(session.shown.look.action, action)
        observation, *_ = env.step(action)
        session.step()


def test_the_policy_does_what_it_is_told(session):
    assert finish(session) == ("success", "Success: it lifted the green cube.")
    for sentence, name in zip(session.sentences(), ("red star", "blue cube", "green cube"), strict=True):
        session.say(sentence)
        assert session.position == 0 and len(session.steps) == 1
        assert finish(session) == ("success", f"Success: it lifted the {name}.")


def test_words_may_change_within_an_episode(session):
    for _ in range(4):
        session.step()
    session.say("grab the blue cube please")
    assert session.position == 4
    assert finish(session) == ("success", "Success: it lifted the blue cube.")
    assert [step.observation["instruction"] for step in session.steps[3:5]] == [
        "please pick up the green cube",
        "grab the blue cube please",
    ]


def test_what_happened_is_said_in_words(session):
    session.say("the blue thing")
    assert session.shown.outcome == ("running", "The instruction names the blue cube.")
    session.unwrapped.scene = session.unwrapped.scene._replace(target=0)  # whatever the policy goes to
    assert finish(session) == ("failure", "Wrong object: it lifted the blue cube, and the instruction names the red star.")
    session.say("the blue ball")  # there is none
    assert session.shown.outcome == ("running", "The instruction names no single object of this scene.")
    kind, text = finish(session)
    assert kind == "over" and text.startswith("It lifted the blue cube. The instruction names no single object of this scene")


def test_time_is_up():
    session = make_session(make_policy())
    assert finish(session) == ("failure", "Time is up: after 48 steps nothing is lifted.")
    assert len(session.steps) == 49
    with pytest.raises(ValueError, match="The episode is over"):
        session.step()


def test_the_expert_acts_where_the_policy_fails():
    session = make_session(make_policy())
    session.step()
    session.let_expert_act(True)
    np.testing.assert_array_equal(session.shown.other, session.unwrapped.expert_action())
    assert finish(session)[0] == "success" and len(session.steps) < 20
    np.testing.assert_array_equal(session.steps[3].executed, session.steps[3].other)
    session.reset()
    session.say("which one?")
    assert not session.expert
    with pytest.raises(ValueError, match="needs an instruction that names one object"):
        session.let_expert_act(True)


# ---- what moves the action


@pytest.mark.parametrize("execute", [1, 2])
def test_saliency_is_that_of_the_action_that_is_executed(execute):
    policy = make_policy()
    session = make_session(policy, execute=execute)
    for _ in range(3):
        session.step()
    look, index = session.shown.look, 3 % execute
    assert look.step == 3 - index
    pixels, words, mask, state = policy.prepare(observe(policy, [session.steps[look.step].observation]))
    inputs = [tensor.detach().requires_grad_() for tensor in (pixels, words, state)]
    actions = policy.normalization.action(policy.predict(*inputs, word_mask=mask))
    np.testing.assert_allclose(policy.normalization.unnormalize_action(actions)[0, index].detach(), look.action, atol=1e-5)
    each = [torch.autograd.grad(actions[0, index, d], inputs, retain_graph=True) for d in range(4)]
    torch.testing.assert_close(torch.from_numpy(look.pixels), sum(grad[0].abs() for grad in each)[0].sum(dim=1))
    torch.testing.assert_close(torch.tensor([v for _, v in look.words]), sum(grad[1].norm(dim=-1) for grad in each)[0])
    torch.testing.assert_close(
        torch.tensor([v for _, v in look.state]), sum(grad[2].abs() for grad in each)[0] * policy.normalization.state_std
    )


def test_saliency_and_attention_lie_on_what_is_named_and_move_with_the_words(session):
    for index, (sentence, colour) in enumerate(zip(session.sentences(), ("red", "blue", "green"), strict=True)):
        session.say(sentence)
        look, masks = session.shown.look, session.unwrapped.object_masks()
        for maps in (look.pixels, look.attention):
            means = [maps[0][mask].mean() for mask in masks]
            assert np.argmax(means) == index
        words = dict(look.words)
        assert max(words, key=words.get) == colour and list(words) == ["[START]", *sentence.split()]


# ---- time


def test_the_past_can_be_looked_at_and_nothing_changes(session):
    finish(session)
    before, last = images(session), len(session.steps) - 1
    for step in (0, 5, last, 2):
        session.go(step)
        assert session.position == step
        np.testing.assert_array_equal(session.shown.observation["images"]["top"], before[step])
    session.step()
    assert session.position == 3 and len(session.steps) == last + 1
    with pytest.raises(ValueError, match=f"steps so far are 0 to {last}"):
        session.go(last + 1)


def test_a_change_in_the_past_repeats_all_before_it_and_forgets_what_came_after(session):
    session.change("move", 1, 0.9, 0.1)
    session.step()
    session.change("recolour", 0, "pink")
    session.change("move", table.GRIPPER, 0.2, 0.2)
    for _ in range(5):
        session.step()
    before = images(session)
    session.go(4)
    session.let_expert_act(False)  # nothing but going on from there
    assert len(session.steps) == 5
    np.testing.assert_array_equal(session.unwrapped.render(), before[4])
    session.step()
    np.testing.assert_array_equal(images(session)[5], before[5])
    session.go(0)
    session.say("the blue cube")
    np.testing.assert_array_equal(images(session)[0], before[0])  # as it was after the first move
    session.reset()
    assert not np.array_equal(images(session)[0], before[0])


def test_of_a_drag_only_its_end_is_kept(session):
    for x in np.linspace(0.1, 0.9, 30):
        session.change("move", 1, x, 0.5)
    session.change("move", 0, 0.5, 0.5)
    assert [change[1][:2] for change in session.shown.changes] == [(1, 0.9), (0, 0.5)]


def test_with_a_history_the_past_is_observed_again():
    policy = make_policy(history=3)
    session = make_session(policy)
    for _ in range(5):
        session.step()
    expected = session.steps[3].look
    session.go(3)
    session.let_expert_act(False)
    np.testing.assert_allclose(session.shown.look.action, expected.action, atol=1e-6)
    np.testing.assert_allclose(session.shown.look.pixels, expected.pixels, atol=1e-6)


# ---- other environments, recordings, checkpoints


def test_another_environment_has_no_hands_but_all_else():
    policy = make_policy(features=reach.FEATURES, auxiliary={}, vision=spec("vision", "conv") | {"input_size": [8, 8]})
    session = Session(make(reach.REACH), {SAVED: lambda: policy}, seed=2)
    assert session.sentences() == ["go to the left", "go to the right"] and session.shown.handles == []
    kind, text = finish(session)
    assert kind == "failure" and text.startswith("The episode is over after 12 steps, without success, overshot")
    session.go(3)
    before = images(session)[3]
    session.say("go to the moon")
    np.testing.assert_array_equal(images(session)[3], before)
    assert len(session.steps) == 4
    with pytest.raises(ValueError, match="Nothing can be moved"):
        session.change("move", 0, 0.5, 0.5)
    with pytest.raises(ValueError, match="has no expert"):
        session.let_expert_act(True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("play") / "data"
    collect(TOY_PICK, root, episodes=2, num_workers=1)
    return read_dataset(root)


def test_an_episode_of_one_frame_ends(data, policy):
    short = data._replace(episode_ends=data.episode_starts + 1)
    assert finish(Session(Recording(short, name="data=DIR"), {SAVED: lambda: policy})) == (
        "over",
        "This is the end of the recorded episode.",
    )


def test_recorded_frames_come_whatever_the_policy_does(data, policy):
    session = Session(Recording(data, name="data=DIR"), {SAVED: lambda: policy}, seed=1)
    start, end = int(data.episode_starts[1]), int(data.episode_ends[1])
    assert finish(session) == ("over", "This is the end of the recorded episode.")
    assert len(session.steps) == end - start
    for step, frame in zip(session.steps, itertools.count(start)):
        np.testing.assert_array_equal(step.observation["images"]["top"].transpose(2, 0, 1), data.frames[frame, 0])
        np.testing.assert_array_equal(step.other, data.actions[frame])
    session.go(2)
    own = session.shown.look.action
    session.say("pick up the star")
    assert not np.allclose(own, session.shown.look.action)
    np.testing.assert_array_equal(session.shown.other, data.actions[start + 2])
    with pytest.raises(ValueError, match="has no expert"):
        session.let_expert_act(True)


def test_a_runs_checkpoints_act_from_the_present_step_on(tmp_path):
    saved, early, average = (make_policy(seed=seed) for seed in range(3))
    for step, weights, callbacks in ((100, early, {}), (200, saved, {"WeightAverage": {"weights": average.state_dict()}})):
        state = {f"policy.{name}": tensor for name, tensor in weights.state_dict().items()}
        checkpoint = {"state_dict": state, "callbacks": callbacks, "global_step": step}
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / f"checkpoints/step_{step:06d}.ckpt")
    policies = run_policies(str(tmp_path), saved)
    assert list(policies) == ["step 100", "step 200", SAVED]
    session = Session(make(TOY_PICK), policies, seed=SCENE)
    for _ in range(3):
        session.step()
    for name, policy in (("step 100", early), ("step 200", average), (SAVED, saved)):
        session.use_policy(name)
        assert session.position == 3 and session.shown.look.policy == name
        expected = policy.act(observe(policy, [session.shown.observation]))[0, 0]
        np.testing.assert_allclose(session.shown.look.action, expected, atol=1e-6)
    (tmp_path / "checkpoints/step_000100.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"step_000100.ckpt is damaged"):
        Session(make(TOY_PICK), run_policies(str(tmp_path), saved)).use_policy("step 100")
    with pytest.raises(ValueError, match="There is no policy 'step 300'"):
        session.use_policy("step 300")
    assert session.policy is saved
