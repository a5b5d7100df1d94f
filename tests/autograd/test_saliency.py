"""Sensitivity against central differences, and the saliency of scenes."""

import numpy as np
import pytest
import torch

from tests.factory import FEATURES, make_observation, make_policy
from vla_mini.autograd.batches import select
from vla_mini.autograd.jacobian import jacobian
from vla_mini.autograd.saliency import SCENES_PER_BATCH, Scene, data_scenes, env_scenes, on_objects, saliency, sensitivity
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.policy import INPUTS

TOY_PICK = "vla_mini/ToyPick-v0"


def test_sensitivity_matches_central_differences():
    """One input is moved back and forth; the change of the normalised actions is summed over the chunk."""
    policy = make_policy(features=FEATURES._replace(image_size=(8, 8)), dtype=torch.float64)
    policy.normalization.action_scale.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
    observation = make_observation(policy, 2)
    found = sensitivity(policy, observation)
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(observation))

    def slopes(which: int, index: tuple[int, ...]) -> np.ndarray:
        ends = []
        for step in (1e-6, -1e-6):
            inputs = [images.clone(), words.clone(), state.clone()]
            inputs[which][index] += step
            with torch.no_grad():
                actions = policy.normalization.action(policy.predict(*inputs, word_mask=mask))
            ends.append(actions[index[0]].sum(dim=0).numpy())
        return np.abs(ends[0] - ends[1]) / 2e-6

    for sample, row, column in ((0, 2, 5), (1, 7, 0)):
        expected = sum(slopes(0, (sample, 0, colour, row, column)).sum() for colour in range(3))
        assert found.pixels[sample, 0, row, column].item() == pytest.approx(expected, rel=1e-5)
    by_vector = np.stack([slopes(1, (1, 3, dimension)) for dimension in range(words.shape[-1])])  # (width, actions)
    assert found.words[1, 3].item() == pytest.approx(np.linalg.norm(by_vector, axis=0).sum(), rel=1e-5)
    expected = slopes(2, (0, 2)).sum() * policy.normalization.state_std[2].item()
    assert found.state[0, 2].item() == pytest.approx(expected, rel=1e-5)


def test_samples_are_independent_and_padding_has_no_effect():
    policy = make_policy(dtype=torch.float64)
    observation = make_observation(policy, 3)
    together = sensitivity(policy, observation)
    alone = sensitivity(policy, select(observation, slice(1, 2)))
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], part)
    assert not observation.token_mask.all()
    assert (together.words[~observation.token_mask] == 0).all()
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("ablated", INPUTS)
def test_the_action_does_not_depend_on_an_ablated_input(ablated):
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), ablate=[ablated])
    observation = make_observation(policy, 2)
    found = sensitivity(policy, observation)
    by_input = dict(zip(INPUTS, found, strict=True))
    assert {name for name, product in by_input.items() if not product.any()} == {ablated}
    by_state, by_image = jacobian(policy, observation, grid=2).matrix.split([4, 3 * 2 * 2], dim=1)
    assert (by_state.any(), by_image.any()) == (ablated != "state", ablated != "images")


def test_on_objects_by_hand():
    pixels = torch.arange(6.0).reshape(2, 3)
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 0, 1] = True  # 0, 1
    masks[1, 1, 0] = True  # 3
    masks[2, 0, 1] = masks[2, 1, 2] = True  # 1, which overlaps the first object, and 5
    assert on_objects(pixels, masks, 0) == (0.5, 4.0, [(True, 0.5), (False, 3.0), (False, 5.0)])
    assert on_objects(pixels, masks, 1) == (3.0, 2.0, [(False, 0.5), (True, 3.0), (False, 3.0)])
    with pytest.raises(ValueError, match="1 object"):
        on_objects(pixels, masks[:1], 0)


def test_each_scene_of_an_environment_comes_with_two_instructions(monkeypatch):
    options, reset = [], ToyPick.reset
    monkeypatch.setattr(ToyPick, "reset", lambda self, **how: options.append(how) or reset(self, **how))
    scenes = env_scenes(TOY_PICK, scenes=3, seed=5)
    assert [scene.episode for scene in scenes] == [0, 0, 1, 1, 2, 2]
    assert {how["options"]["purpose"] for how in options} == {"validation"}  # not the scenes of the final evaluation
    for named, swapped in zip(scenes[::2], scenes[1::2], strict=True):
        assert np.array_equal(named.observation["images"]["top"], swapped.observation["images"]["top"])
        assert named.observation["instruction"] != swapped.observation["instruction"]
        assert named.target != swapped.target
        assert np.array_equal(named.masks, swapped.masks)


def test_each_frame_of_a_dataset_comes_with_two_instructions():
    policy = make_policy(history=2)
    observation = make_observation(policy, 3)
    scenes = data_scenes(observation, ["lift it", "lift it", "drop it"], features=policy.features, scenes=2)
    assert [scene.observation["instruction"] for scene in scenes] == ["lift it", "drop it"] * 2
    assert np.array_equal(scenes[2].observation["images"]["top"], observation.images[1, 0].permute(1, 2, 0).numpy())
    assert np.array_equal(scenes[2].observation["state"], observation.state[1, :4].numpy())
    assert all(scene.masks is None for scene in scenes)


def test_saliency_is_the_sensitivity_in_each_scene():
    """Of a policy with a history, by the newest frame; in more scenes than are computed at once."""
    policy = make_policy(history=2)
    observation = make_observation(policy, SCENES_PER_BATCH + 2)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :, :32] = masks[1, :, 32:] = True
    frame = {"images": {"top": np.zeros((64, 64, 3), np.uint8)}, "instruction": "pick up the red cube"}
    scenes = [Scene(index, frame, masks.numpy() if index else None, 1) for index in range(SCENES_PER_BATCH + 2)]
    expected, found = sensitivity(policy, observation), saliency(policy, scenes, observation)
    assert len(found) == len(scenes) and (found[0].on_target, found[0].objects) == (None, [])
    for index, one in enumerate(found):
        torch.testing.assert_close(one.pixels, expected.pixels[index, 0])
        assert [name for name, _ in one.state] == list(policy.features.state)
        assert [value for _, value in one.state] == pytest.approx(expected.state[index, :4].tolist(), rel=1e-5)
        assert [token for token, _ in one.words][1:] == ["pick", "up", "the", "red", "cube"]
    assert found[-1].on_target == pytest.approx(expected.pixels[-1, 0, :, 32:].mean().item(), rel=1e-5)
    assert found[-1].on_others == pytest.approx(expected.pixels[-1, 0, :, :32].mean().item(), rel=1e-5)


def test_an_untrained_policy_does_not_depend_on_the_named_object_most():
    from vla_mini.acting import observe

    policy = make_policy()
    scenes = env_scenes(TOY_PICK, scenes=20)
    found = saliency(policy, scenes, observe(policy, [scene.observation for scene in scenes]))
    assert np.mean([one.on_target > one.on_others for one in found]) < 0.7
