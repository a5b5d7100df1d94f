"""Meta-World as an environment: its scenes and sentences, what the policy may see, experts, drawing, mistakes."""

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.envs.helpers import needs
from vla_mini.collection import play
from vla_mini.envs import get_spec, make, make_vec
from vla_mini.envs.metaworld.tasks import GROUPS, SENTENCES, SUITES
from vla_mini.envs.suite import STEPS_AFTER_SUCCESS

pytestmark = needs("metaworld")
MT10 = "vla_mini/MetaWorld-v0?task=mt10&image_size=32"


@pytest.fixture(scope="module")
def env():
    env = make(MT10)
    yield env
    env.close()


def reset(env, episode=0, **options):
    return env.reset(seed=episode, options={"render_every": 1000} | options)


def play_expert(env, episode, steps, **options):
    """All that the environment returns while its expert acts."""
    seen = [reset(env, episode, **options)[0]]
    for _ in range(steps):
        seen.append(env.step(env.unwrapped.expert_action())[0])
    return np.stack([observation["state"] for observation in seen]), seen


def test_the_suites_are_those_that_papers_report():
    assert {group: len(tasks) for group, tasks in GROUPS.items()} == {"easy": 28, "medium": 11, "hard": 6, "very_hard": 5}
    spec = get_spec("vla_mini/MetaWorld-v0?task=mt50")
    assert spec.num_tasks == len(SENTENCES) == 50 and sum(map(len, spec.groups.values())) == 50
    from metaworld import MT10 as SUITE

    assert [f"{name}-v3" for name in SUITES["mt10"]] == list(SUITE().train_classes)


def test_it_is_a_gymnasium_environment(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_episodes_go_through_the_tasks_and_scenes_are_those_of_their_seed(env):
    names = SUITES["mt10"]
    for episode in (0, 1, 10):
        observation, info = reset(env, episode)
        assert info == {"success": False, "task": names[episode % 10]}
        assert observation["instruction"] == SENTENCES[names[episode % 10]]
    targets = {}
    for key in ((0, "evaluation", 0), (0, "selection", 0), (0, "evaluation", 1), (10, "evaluation", 0), (0, "evaluation", 0)):
        episode, purpose, seed = key
        reset(env, episode, purpose=purpose, seed=seed)
        target = tuple(env.unwrapped._scene.simulation._target_pos)
        assert targets.setdefault(key, target) == target
    assert len(set(targets.values())) == 4
    simulation = env.unwrapped._scene.simulation
    simulation.seed(1000)  # as LeRobot's first episode
    simulation.reset()
    assert tuple(simulation._target_pos) == targets[0, "evaluation", 0]


def test_an_episode_is_determined_by_its_seed_and_by_it_alone(env):
    first, _ = play_expert(env, 3, 30)
    play_expert(env, 0, 5)
    again, _ = play_expert(env, 3, 30)
    np.testing.assert_array_equal(first, again)


def test_the_state_is_the_hands_alone(env):
    """It is the same wherever the object is, until the hand touches it: the first four values of the simulation's 39."""
    first, _ = reset(env, 1)
    values = env.unwrapped._values
    np.testing.assert_allclose(first["state"], values[:4], atol=1e-6)
    other, _ = reset(env, 11)
    assert np.abs(env.unwrapped._values[4:7] - values[4:7]).max() > 0.01  # the puck is elsewhere
    np.testing.assert_allclose(first["state"], other["state"], atol=1e-6)


def test_images_are_drawn_when_they_are_asked_for(env, monkeypatch):
    drawn, draw = [], type(env.unwrapped).draw
    monkeypatch.setattr(type(env.unwrapped), "draw", lambda self, camera: (drawn.append(self._steps), draw(self, camera))[1])
    env.reset(seed=0, options={"render_every": 4})
    for _ in range(9):
        env.step(env.action_space.sample())
    assert drawn == [0, 4, 8]


def test_the_image_shows_the_scene_upright():
    env = make(f"{MT10}&view=whole")
    image = env.reset(seed=3)[0]["images"]["corner2"].astype(int)
    env.close()
    assert image.shape == (32, 32, 3)
    red = (image[..., 0] > 100) & (image[..., 1] < 60)  # the arm, which comes from above on the left
    rows, columns = np.nonzero(red)
    assert len(rows) > 20 and rows.min() < 8 and columns.mean() < 16


def test_the_first_image_shows_this_episodes_goal(env):
    reset(env, 0)  # reach
    simulation = env.unwrapped._scene.simulation
    np.testing.assert_allclose(simulation.data.site("goal").xpos, simulation._target_pos, atol=1e-6)


def test_the_workspace_is_a_part_of_the_whole_image():
    images = {}
    for view, size in (("workspace", 66), ("whole", 100)):
        env = make(f"vla_mini/MetaWorld-v0?task=push&image_size={size}&view={view}&render=faithful")
        images[view] = env.reset(seed=0)[0]["images"]["corner2"].astype(int)
        env.close()
    assert np.abs(images["workspace"] - images["whole"][15:81, 29:95]).mean() < 6
    assert np.abs(images["workspace"] - images["whole"][17:83, 29:95]).mean() > 6  # two pixels beside it


def test_fast_images_are_like_the_suites_own_and_physics_are_the_same():
    states, images = {}, {}
    for render in ("fast", "faithful"):
        env = make(f"vla_mini/MetaWorld-v0?task=drawer-open&image_size=48&view=whole&render={render}")
        states[render], _ = play_expert(env, 0, 40)
        images[render] = env.render().astype(int)
        env.close()
    np.testing.assert_array_equal(states["fast"], states["faithful"])
    table = images["fast"].max(axis=-1) > 0  # not the sky, which is missing, as shadows are
    assert table.mean() > 0.6 and np.abs(images["fast"] - images["faithful"])[table].mean() < 16


@pytest.mark.parametrize("episode", [3, 5, 6])
def test_the_expert_succeeds_in_spite_of_noise_and_shows_how_to_stay(env, episode):
    played = play(env, purpose="demonstration", seed=0, attempt=episode)
    assert played.task == SENTENCES[SUITES["mt10"][episode]]
    assert 20 < len(played.states) == len(played.actions) < 500 and np.abs(played.actions).max() <= 1
    simulation = env.unwrapped
    assert simulation._successes == STEPS_AFTER_SUCCESS
    assert len(play(env, purpose="evaluation", seed=0, attempt=episode, action_noise=0.0).states) < 300
    assert simulation._successes == 1


def test_other_sentences_in_the_same_scene(env):
    named, _ = reset(env, 6)
    target = env.unwrapped._scene.simulation._target_pos
    for check in env.unwrapped.env_spec.checks:
        changed, info = reset(env, 6, instruction=check)
        np.testing.assert_array_equal(env.unwrapped._scene.simulation._target_pos, target)
        assert changed["instruction"] != named["instruction"] and info["task"] == SUITES["mt10"][6]
        assert changed["instruction"] == "" if check == "blank" else changed["instruction"] in SENTENCES.values()
    assert "swapped" not in get_spec("vla_mini/MetaWorld-v0?task=reach").checks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("task=raech", "task='raech' is not one of Meta-World's; did you mean 'reach'"),
        ("task=reach&render=pretty", "render='pretty' is not one of fast, faithful"),
        ("task=reach&view=all", "view='all' is not one of workspace, whole"),
        ("taks=reach", "unexpected keyword argument 'taks'"),
        ("", "env.task is required"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        make(f"vla_mini/MetaWorld-v0?{arguments}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("module.find_spec = lambda name: None", "the package mujoco is missing: pip install 'vla-mini[metaworld]'"),
        ("module.ctypes.util.find_library = lambda name: None", "apt-get install libegl1"),
    ],
)
def test_what_is_missing_is_said_with_what_installs_it(change, message):
    code = f"import os; os.environ.pop('MUJOCO_GL', 0); import vla_mini.envs.mujoco as module; {change}\n"
    code += "from vla_mini.envs import make; make('vla_mini/MetaWorld-v0?task=reach')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_it_is_imported_only_where_it_is_used_and_ends_without_complaints():
    code = "import sys, vla_mini.envs; assert not {'metaworld', 'mujoco'} & set(sys.modules)\n"
    code += f"env = vla_mini.envs.make({MT10!r}); env.reset(seed=0)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_torch_may_be_imported_after_something_was_drawn():
    code = f"import vla_mini.envs; env = vla_mini.envs.make({MT10!r}); env.reset(seed=0)\n"
    code += "import torch; layer = torch.nn.Linear(2, 2); layer(torch.ones(1, 2)).sum().backward()\n"
    code += "torch.optim.AdamW(layer.parameters()).step(); import torch._dynamo"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_processes_of_their_own_play_as_one_does(env):
    envs = make_vec(MT10, 2)
    try:
        options = {"render_every": 1, "reset_mask": np.ones(2, bool)}
        batch, _ = envs.reset(seed=[3, 4], options=options)
        actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 4)).astype(np.float32)
        together = [batch, *(envs.step(action)[0] for action in actions)]
    finally:
        envs.close()
    for i, episode in enumerate((3, 4)):
        alone = [env.reset(seed=episode)[0], *(env.step(action[i])[0] for action in actions)]
        for one, both in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one["state"], both["state"][i])
            np.testing.assert_array_equal(one["images"]["corner2"], both["images"]["corner2"][i])
