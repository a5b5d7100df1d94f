"""LIBERO as an environment: its suites, stored initial states and images, what the policy may see, its expert, mistakes."""

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.envs.helpers import needs
from vla_mini.collection import play
from vla_mini.envs import get_spec, make
from vla_mini.envs.libero.environment import STATE
from vla_mini.envs.libero.suites import SUITES, env_id, load_tasks
from vla_mini.envs.suite import STEPS_AFTER_SUCCESS

pytestmark = needs("libero")
LIVING_ROOM = "vla_mini/LiberoLivingRoom-v0?image_size=32"


@pytest.fixture(scope="module")
def env():
    env = make(LIVING_ROOM)
    yield env
    env.close()


def reset(env, episode=0, **options):
    return env.reset(seed=episode, options={"render_every": 1000} | options)


def position(env, name):
    """Of an object, (3,), in metres."""
    return env.unwrapped._values[f"{name}_pos"].copy()


def test_the_suites_are_those_that_papers_report():
    assert {suite: len(load_tasks(suite)) for suite in SUITES} == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_90": 90,
        "libero_living_room": 14,
    }
    rooms = load_tasks("libero_living_room")
    assert [name.split("_")[2] for name in (task.name for task in rooms)] == ["SCENE1"] * 4 + ["SCENE2"] * 5 + ["SCENE3"] * 5
    assert len({task.scene for task in rooms}) == 3 and all(len(task.initial_states) == 50 for task in rooms)
    checks = {suite: list(get_spec(env_id(suite)).checks) for suite in SUITES}
    assert checks["libero_living_room"] == checks["libero_goal"] == ["swapped", "blank"]
    assert checks["libero_object"] == checks["libero_spatial"] == ["blank"]  # no two tasks share a scene


def test_it_is_a_gymnasium_environment():
    env = make(f"{LIVING_ROOM}&task={load_tasks('libero_living_room')[0].name}")  # one scene: each takes seconds to load
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_an_evaluation_starts_from_the_stored_initial_states_and_other_scenes_do_not(env):
    states = load_tasks("libero_living_room")[0].initial_states
    reset(env, 3 * 14)
    model = env.unwrapped._scene.simulation.sim.model._model
    first = 1 + model.joint("alphabet_soup_1_joint0").qposadr[0]  # a state begins with the time
    np.testing.assert_allclose(position(env, "alphabet_soup_1")[:2], states[3, first : first + 2], atol=0.01)
    seen = {tuple(position(env, "alphabet_soup_1"))}
    for options in ({"seed": 1}, {"purpose": "selection"}, {"purpose": "demonstration"}, {"purpose": "validation"}):
        reset(env, 3 * 14, **options)
        seen.add(tuple(position(env, "alphabet_soup_1")))
    assert len(seen) == 5


def test_an_episode_is_determined_by_its_seed_and_by_it_alone(env):
    def states(**options):
        seen = [reset(env, 1, **options)[0]]
        for _ in range(20):
            seen.append(env.step(env.unwrapped.expert_action())[0])
        return np.stack([observation["state"] for observation in seen])

    np.random.seed(0)
    for options in ({}, {"purpose": "demonstration"}):
        first = states(**options)
        reset(env, 2)
        np.testing.assert_array_equal(first, states(**options))
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    reset(env, 1, purpose="demonstration")
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # others' random numbers stay as they are


def test_the_state_is_the_hands_alone(env):
    first, _ = reset(env, 0, purpose="demonstration")
    place = position(env, "alphabet_soup_1")
    other, _ = reset(env, 14, purpose="demonstration")
    assert np.abs(position(env, "alphabet_soup_1") - place).max() > 0.005  # the can is elsewhere
    assert first["state"].shape == (len(STATE),)
    np.testing.assert_allclose(first["state"], other["state"], atol=1e-3)


def test_another_sentence_names_another_task_of_the_scene_and_counts_for_it(env):
    named, _ = reset(env, 1)
    place = position(env, "ketchup_1")
    blank, _ = reset(env, 1, instruction="blank")
    assert blank["instruction"] == "" and env.unwrapped._goal[0][1] == "cream_cheese_1"
    swapped, info = reset(env, 1, instruction="swapped")
    np.testing.assert_array_equal(position(env, "ketchup_1"), place)
    assert swapped["instruction"] != named["instruction"] and "SCENE1_pick_up_the_cream_cheese" in info["task"]
    moved = env.unwrapped._goal[0][1]
    assert moved != "cream_cheese_1" and moved.split("_")[0] in swapped["instruction"]
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        over = terminated or truncated
    assert info["success"] and env.unwrapped._scene.holds([["in", moved, "basket_1_contain_region"]])
    assert not env.unwrapped._scene.holds([["in", "cream_cheese_1", "basket_1_contain_region"]])


@pytest.mark.parametrize("episode", [2, 12])
def test_the_expert_succeeds_in_spite_of_noise_and_shows_how_to_stay(env, episode):
    played = play(env, purpose="demonstration", seed=0, attempt=episode)
    assert played.task == load_tasks("libero_living_room")[episode].sentence
    assert 60 < len(played.states) == len(played.actions) < 400 and np.abs(played.actions).max() <= 1
    assert env.unwrapped._successes == STEPS_AFTER_SUCCESS
    actions = played.actions
    assert {-1.0, 1.0} == set(actions[:, 6].tolist())
    assert not actions[:, 3:5].any()  # its hand always points down


def test_the_expert_begins_again_when_it_loses_the_object(env):
    reset(env, 0)
    for _ in range(50):
        env.step(env.unwrapped.expert_action())
    assert position(env, "alphabet_soup_1")[2] > 0.5  # it holds the can
    for _ in range(8):
        env.step(np.float32([0, 0, 0, 0, 0, 0, -1]))  # it drops it
    info, steps = {"success": False}, 0
    while not info["success"] and steps < 300:
        info, steps = env.step(env.unwrapped.expert_action())[4], steps + 1
    assert info["success"]


def test_goals_that_the_expert_cannot_reach_are_said():
    env = make("vla_mini/LiberoGoal-v0?task=turn_on_the_stove&image_size=32")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"the expert only picks and places one object, but the goal is .*turnon"):
        env.unwrapped.expert_action()
    env.close()


def test_faithful_images_are_liberos_own_turned_upside_down_and_fast_ones_are_like_them():
    """LIBERO's own are drawn in a process of their own, since its library raises an error when a process ends."""
    code = """
import os, sys, numpy as np
from vla_mini.envs.libero.suites import load_tasks
from libero.libero.envs import OffScreenRenderEnv
task = load_tasks("libero_living_room")[4]
env = OffScreenRenderEnv(bddl_file_name=str(task.file), camera_heights=256, camera_widths=256)
env.seed(1000)
env.reset()
env.set_init_state(task.initial_states[0])
for _ in range(10):
    images, *_ = env.step([0, 0, 0, 0, 0, 0, -1])
np.savez(sys.argv[1], image=images["agentview_image"], wrist_image=images["robot0_eye_in_hand_image"])
os._exit(0)
"""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "images.npz")
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(file)], capture_output=True, check=True)
        theirs = dict(np.load(file))
    for render, most in (("faithful", 0.5), ("fast", 12)):
        env = make(f"vla_mini/LiberoLivingRoom-v0?image_size=256&wrist=true&render={render}")
        ours = env.reset(seed=4)[0]["images"]
        env.close()
        assert list(ours) == ["image", "wrist_image"]
        for camera, image in ours.items():
            assert np.abs(image.astype(int) - theirs[camera][::-1, ::-1]).mean() < most


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("LiberoLivingRoom-v0?task=pick_up", "task='pick_up' is not one of libero_living_room's; "),
        ("LiberoGoal-v0?task=turn_on_the_stov", "did you mean 'turn_on_the_stove'"),
        ("LiberoGoal-v0?render=pretty", "render='pretty' is not one of fast, faithful"),
        ("LiberoGoal-v0?view=whole", "unexpected keyword argument 'view'"),
    ],
)
def test_mistakes_are_refused_in_one_line(address, message):
    with pytest.raises(ValueError, match=message) as refused:
        make(f"vla_mini/{address}")
    assert "\n" not in str(refused.value)


def test_it_is_imported_only_where_it_is_used_and_says_nothing_of_its_own():
    code = "import sys, vla_mini.envs; assert not {'libero', 'mujoco'} & set(sys.modules)\n"
    code += f"env = vla_mini.envs.make({LIVING_ROOM!r}); env.reset(seed=0)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
