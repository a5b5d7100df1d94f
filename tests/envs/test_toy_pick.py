"""toy_pick: its scenes, physics, seeds, splits and expert. Few frames each, so that the suite stays short."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_mini.envs import make
from vla_mini.envs.seeds import PURPOSES, episode_generator
from vla_mini.envs.toy_pick import phrasings
from vla_mini.envs.toy_pick.drawing import PAINTS
from vla_mini.envs.toy_pick.environment import GRASP_RADIUS, ToyPick
from vla_mini.envs.toy_pick.scene import CLEARANCE, sample_scene
from vla_mini.envs.toy_pick.spec import SPEC

ID = "vla_mini/ToyPick-v0"


def scenes(split: str, number: int, purpose: str = "evaluation"):
    return [sample_scene(episode_generator(purpose, 0, episode), split=split) for episode in range(number)]


def play(env, episode: int, policy=None, **options):
    """Plays an episode with the expert, or with `policy(env) -> action`; the last info and the number of steps."""
    env.reset(seed=episode, options=options)
    for step in range(1, 49):
        action = env.unwrapped.expert_action() if policy is None else policy(env.unwrapped)
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return info, step
    raise AssertionError("no episode is longer than 48 steps")


def test_gymnasiums_own_checks():
    check_env(gymnasium.make(ID).unwrapped)


def test_fully_determined_by_its_seed():
    first, second = make(ID), make(ID)
    for episode in (3, 3, 11):
        a, _ = first.reset(seed=episode)
        b, _ = second.reset(seed=episode)
        for _ in range(5):
            assert a["instruction"] == b["instruction"]
            np.testing.assert_array_equal(a["images"]["top"], b["images"]["top"])
            np.testing.assert_array_equal(a["state"], b["state"])
            action = first.unwrapped.expert_action()
            a, b = first.step(action)[0], second.step(action)[0]


def test_scenes_are_those_that_saved_policies_were_trained_on():
    env = make(ID)
    observation, info = env.reset(seed=7, options={"purpose": "demonstration"})
    assert (observation["instruction"], info["target"]) == ("find the green cone and pick it up", 1)
    np.testing.assert_allclose(observation["state"], [0.2425, -0.0955, 0.7843, 0], atol=1e-4)
    assert observation["images"]["top"].mean() == pytest.approx(179.466, abs=0.01)
    options = {"purpose": "evaluation", "split": "held_out_phrasings", "instruction": "swapped"}
    observation, info = env.reset(seed=7, options=options)
    assert (observation["instruction"], info["target"]) == ("pick up the yellow cone", 1)
    np.testing.assert_allclose(observation["state"], [0.0675, 0.6117, 0.7033, 0], atol=1e-4)
    assert observation["images"]["top"].mean() == pytest.approx(182.325, abs=0.01)
    objects = [item for scene in scenes("seen", 200, "demonstration") for item in scene.objects]
    assert len(objects) == 656 and sum(item.x + 2 * item.y for item in objects) == pytest.approx(-17.567675)


def test_no_purpose_shares_a_scene_with_another():
    """By content, not by seed: the positions of the objects are compared."""
    positions = [
        {tuple((item.x, item.y) for item in scene.objects) for scene in scenes("seen", 200, purpose)} for purpose in PURPOSES
    ]
    assert all(len(found) == 200 for found in positions)
    assert len(set.union(*positions)) == 200 * len(PURPOSES)


@pytest.mark.parametrize("split", SPEC.splits)
def test_scenes_are_as_documented(split):
    found = scenes(split, 400)
    for scene in found:
        pairs = [item.pair for item in scene.objects]
        assert 2 <= len(pairs) <= 4 and len(set(pairs)) == len(pairs)
        positions = np.array([(item.x, item.y) for item in scene.objects])
        distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 9 * np.eye(len(pairs))
        assert distances.min() >= CLEARANCE > 2 * GRASP_RADIUS
        assert all(word in scene.instruction.split() for word in pairs[scene.target])
        assert any(pair not in phrasings.HELD_OUT_PAIRS for i, pair in enumerate(pairs) if i != scene.target)
    assert np.mean([scene.two_words for scene in found]) >= 0.5


def test_held_out_pairs_are_targets_in_their_split_alone():
    assert all(s.objects[s.target].pair in phrasings.HELD_OUT_PAIRS for s in scenes("held_out_pairs", 200))
    demonstrations = scenes("seen", 400, "demonstration")
    assert not any(s.objects[s.target].pair in phrasings.HELD_OUT_PAIRS for s in demonstrations)
    distractors = {t.pair for s in demonstrations for i, t in enumerate(s.objects) if i != s.target}
    assert distractors >= set(phrasings.HELD_OUT_PAIRS)


def test_held_out_phrasings_are_made_of_training_words():
    def words(templates):
        return {word for template in templates for word in template.split()}

    assert len(phrasings.TRAINING) >= 8 and len(phrasings.HELD_OUT) >= 4
    assert words(phrasings.HELD_OUT) <= words(phrasings.TRAINING)
    assert not set(phrasings.HELD_OUT) & set(phrasings.TRAINING)
    assert any(template.index("{shape}") < template.index("{colour}") for template in phrasings.HELD_OUT)


def test_splits_draw_the_same_scenes_but_for_the_target():
    """The distributions of what does not depend on the target agree: number of objects, gripper."""
    means = [
        (
            np.mean([len(s.objects) for s in found]),
            np.mean([s.two_words for s in found]),
            np.mean([s.gripper for s in found]),
        )
        for found in (scenes(split, 1000) for split in SPEC.splits)
    ]
    np.testing.assert_allclose(means, np.broadcast_to(means[0], np.shape(means)), atol=0.06)


def test_the_expert_succeeds():
    env = make(ID)
    results = [play(env, episode, purpose="demonstration") for episode in range(200)]
    assert np.mean([info["success"] for info, _ in results]) >= 0.995


def test_the_expert_recovers_from_noise():
    env, generator = make(ID), np.random.default_rng(0)

    def noisy(unwrapped):
        push = generator.uniform(-1.5, 1.5, 4) * (generator.random() < 0.1)
        return np.clip(unwrapped.expert_action() + push, -1, 1).astype(np.float32)

    results = [play(env, episode, noisy, purpose="demonstration") for episode in range(200)]
    assert np.mean([info["success"] for info, _ in results]) >= 0.99


def test_lifting_another_object_ends_the_episode_as_a_failure():
    env = make(ID)

    def greedy(unwrapped):
        unwrapped.scene = unwrapped.scene._replace(target=(target + 1) % len(unwrapped.scene.objects))
        action = unwrapped.expert_action()
        unwrapped.scene = unwrapped.scene._replace(target=target)
        return action

    env.reset(seed=5)
    target = env.unwrapped.scene.target
    info, steps = play(env, 5, greedy)
    assert info["wrong_object"] and not info["success"] and env.unwrapped.held != target and steps < 48


def test_doing_nothing_fails_after_48_steps():
    info, steps = play(make(ID), 0, lambda _: np.zeros(4, np.float32))
    assert steps == 48 and not info["success"] and not info["wrong_object"]


def test_opening_the_gripper_drops_the_object():
    env = make(ID)
    env.reset(seed=1)
    while env.unwrapped.held is None:
        env.step(env.unwrapped.expert_action())
    env.step(np.float32([0, 0, 0.5, 1]))
    held = env.unwrapped.held
    for _ in range(2):
        env.step(np.float32([0, 0, 0, -1]))
    assert env.unwrapped.held is None
    np.testing.assert_allclose(env.unwrapped.object_positions[held], env.unwrapped.position[:2])


def test_swapped_names_another_object_of_the_same_scene():
    env = make(ID)
    for episode in range(50):
        before, info = env.reset(seed=episode)
        after, swapped = env.reset(seed=episode, options={"instruction": "swapped"})
        np.testing.assert_array_equal(before["images"]["top"], after["images"]["top"])
        assert swapped["target"] != info["target"] == env.unwrapped.original_target
        pair = env.unwrapped.scene.objects[swapped["target"]].pair
        assert pair not in phrasings.HELD_OUT_PAIRS
        assert all(word in after["instruction"].split() for word in pair)


def test_blank_is_no_instruction():
    assert make(ID).reset(seed=0, options={"instruction": "blank"})[0]["instruction"] == ""


def test_height_and_closedness_are_visible():
    env = ToyPick()
    env.reset(seed=0)
    images = []
    for height, closedness in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        env.position[2], env.closedness = height, closedness
        images.append(env.render().astype(int))
    assert abs(images[0] - images[1]).sum() > 1000 and abs(images[0] - images[2]).sum() > 1000


def test_masks_lie_where_the_objects_are():
    env = ToyPick()
    env.reset(seed=0)
    for item, mask in zip(env.scene.objects, env.object_masks(), strict=True):
        paint = np.array(PAINTS[item.colour]) * item.brightness
        assert 30 < mask.sum() < 180
        np.testing.assert_allclose(np.median(env.render()[mask], axis=0), np.clip(paint, 0, 255), atol=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "sene"}, "split='sene' is not one of seen"),
        ({"purpose": "test"}, "purpose='test' is not one of demonstration"),
        ({"instruction": "none"}, "instruction='none' is not one of named"),
        ({"instructions": "blank"}, "'instructions' is not one of"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(ID).reset(seed=0, options=options)
