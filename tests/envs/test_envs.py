"""EnvSpec and Environment: which environments are accepted, whether they fit a dataset, how several are stepped together."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from tests.reach import REACH, Reach
from vla_mini.envs import Environment, check_fits, get_spec, make, make_vec
from vla_mini.envs.toy_pick.environment import ToyPick

TOY_PICK = "vla_mini/ToyPick-v0"


class Foreign(gymnasium.Env):
    observation_space, action_space = Reach.observation_space, Reach.action_space


gymnasium.register("vla_mini_tests/Foreign-v0", Foreign)
gymnasium.register("vla_mini_tests/Endless-v0", Reach)


def test_specs_are_found_by_id():
    assert get_spec(TOY_PICK) is ToyPick.env_spec and get_spec(REACH) is Reach.env_spec
    assert get_spec(f"tests.reach:{REACH}") is Reach.env_spec  # the module that registers it is imported first
    env = make(TOY_PICK)
    assert env.spec.max_episode_steps == ToyPick.env_spec.max_episode_steps and type(env.unwrapped) is ToyPick


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("vla_mini/ToyPikc-v0", "env='vla_mini/ToyPikc-v0' is not known to Gymnasium: .*ToyPick"),
        ("no_such_module:Env-v0", "env='no_such_module:Env-v0' is not known to Gymnasium: .*no_such_module"),
        ("vla_mini_tests/Foreign-v0", "has no env_spec: derive Foreign from vla_mini.envs.Environment"),
        ("vla_mini_tests/Endless-v0", "registered with max_episode_steps=None, but its env_spec has 12"),
    ],
)
def test_others_are_refused_in_one_line(env_id, message):
    for find in (make, get_spec):
        with pytest.raises(ValueError, match=message) as refused:
            find(env_id)
        assert "\n" not in str(refused.value)


def test_the_spec_is_true_of_toy_pick():
    spec, env = ToyPick.env_spec, make(TOY_PICK)
    observation, info = env.reset(seed=0)
    assert tuple(observation["images"]) == spec.features.cameras
    assert observation["images"]["top"].shape == (*spec.features.image_size, 3)
    assert observation["state"].shape == (spec.features.state_size,)
    assert env.action_space.shape == (spec.features.action_size,)
    assert info.keys() >= {"success", "target", *spec.rates, *spec.subsets, *spec.check_rates}
    for split in (*spec.splits, *spec.further_splits):
        for instruction in ("named", *spec.checks):
            env.reset(seed=0, options={"split": split, "instruction": instruction})


def test_an_environment_without_expert_or_masks_says_so():
    env = Reach()
    assert isinstance(env, Environment) and not (env.env_spec.has_expert or env.env_spec.has_object_masks)
    for method in (env.expert_action, env.object_masks):
        with pytest.raises(NotImplementedError, match="Reach-v0 has no"):
            method()


class Wrong(Reach):
    env_spec = replace(Reach.env_spec, id="vla_mini_tests/Wrong-v0", has_expert=True)


class Unknown(Reach):
    env_spec = replace(Reach.env_spec, id="vla_mini_tests/Unknown-v0")

    def object_masks(self):
        return np.zeros((1, 8, 6), bool)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Wrong, "has_expert=True, but of Wrong it is False"),
        (Unknown, "has_object_masks=False, but of Unknown it is True"),
    ],
)
def test_a_spec_that_is_not_true_of_its_environment_is_refused(env, message):
    gymnasium.register(env.env_spec.id, env, max_episode_steps=12)
    with pytest.raises(ValueError, match=f"^env='{env.env_spec.id}': its env_spec says {message}$"):
        make(env.env_spec.id)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ("front", "wrist")}, r"cameras is \['top'\] .* \['front', 'wrist'\]"),
        ({"image_size": (48, 64)}, r"image_size is \[64, 64\] .* \[48, 64\]"),
        ({"state": ("x", "y")}, r"state is \['x', 'y', 'height', 'closed'\] .* \['x', 'y'\]"),
        ({"action": ("dx", "dy", "dz", "open")}, "action is"),
        ({"fps": 30}, "fps is 10 .* 30"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(changes, message):
    spec = get_spec(TOY_PICK)
    wanted = {"whose": "the dataset data/mine", "hint": "try env=none"}
    check_fits(spec, spec.features, **wanted)
    with pytest.raises(ValueError, match=f"^env={TOY_PICK} does not fit the dataset data/mine: {message}.*env=none"):
        check_fits(spec, spec.features._replace(**changes), **wanted)


def test_environments_stepped_together_are_those_stepped_alone():
    envs, alone = make_vec(TOY_PICK, 3), [make(TOY_PICK) for _ in range(3)]
    options = {"split": "held_out_pairs"}
    batch, _ = envs.reset(seed=[4, 5, 6], options=options | {"reset_mask": np.ones(3, bool)})
    single = [env.reset(seed=4 + i, options=options)[0] for i, env in enumerate(alone)]
    for step in range(6):
        for i, observation in enumerate(single):
            np.testing.assert_array_equal(batch["images"]["top"][i], observation["images"]["top"])
            np.testing.assert_array_equal(batch["state"][i], observation["state"])
            assert batch["instruction"][i] == observation["instruction"]
        actions = np.stack([env.unwrapped.expert_action() for env in alone])
        if step == 3:  # one begins another episode, one is paused, one continues
            batch, _ = envs.reset(seed=[9, None, None], options=options | {"reset_mask": np.array([True, True, False])})
            single[0] = alone[0].reset(seed=9, options=options)[0]
            actions[0] = alone[0].unwrapped.expert_action()
        paused, (batch, *_) = batch["state"][1].copy(), envs.step(actions)
        single = [env.step(action)[0] for env, action in zip(alone, actions, strict=True)]
        if step >= 3:
            np.testing.assert_array_equal(batch["state"][1], paused)
            single[1] = {"images": {"top": batch["images"]["top"][1]}, "state": paused, "instruction": batch["instruction"][1]}
    envs.close()
