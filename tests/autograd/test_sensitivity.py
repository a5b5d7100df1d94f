import numpy as np
import pytest
import torch

from tests.factory import FEATURES, make_observation, make_policy
from vla_mini.autograd.jacobian import jacobian
from vla_mini.autograd.scenes import start_scenes
from vla_mini.autograd.sensitivity import on_objects, sensitivity
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.policy import INPUTS

TOY_PICK = "vla_mini/ToyPick-v0"


def test_against_central_differences():
    """Each input moved by itself, back and forth; the normalised actions, added up over the chunk, move along."""
    policy = make_policy(features=FEATURES._replace(image_size=(8, 8)), dtype=torch.float64)
    policy.normalization.action_reach.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
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


def test_samples_do_not_touch_each_other_and_padding_weighs_nothing():
    policy = make_policy(dtype=torch.float64)
    observation = make_observation(policy, 3)
    together = sensitivity(policy, observation)
    alone = sensitivity(policy, type(observation)(*(tensor[1:2] for tensor in observation)))
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], part)
    assert not observation.token_mask.all()
    assert (together.words[~observation.token_mask] == 0).all()
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_on_objects_by_hand():
    pixels = torch.arange(6.0).reshape(2, 3)
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 0, 1] = True  # 0, 1
    masks[1, 1, 0] = True  # 3
    masks[2, 0, 1] = masks[2, 1, 2] = True  # 1, where it overlaps the first, and 5
    assert on_objects(pixels, masks, 0) == (0.5, 4.0, [(True, 0.5), (False, 3.0), (False, 5.0)])
    assert on_objects(pixels, masks, 1) == (3.0, 2.0, [(False, 0.5), (True, 3.0), (False, 3.0)])
    with pytest.raises(ValueError, match="1 object"):
        on_objects(pixels, masks[:1], 0)


def test_each_scene_is_begun_under_two_instructions(monkeypatch):
    options, reset = [], ToyPick.reset
    monkeypatch.setattr(ToyPick, "reset", lambda self, **how: options.append(how) or reset(self, **how))
    scenes = start_scenes(TOY_PICK, scenes=3, seed=5)
    assert [scene.episode for scene in scenes] == [0, 0, 1, 1, 2, 2]
    assert {how["options"]["purpose"] for how in options} == {"validation"}  # not what evaluation will show
    for named, swapped in zip(scenes[::2], scenes[1::2], strict=True):
        assert np.array_equal(named.observation["images"]["top"], swapped.observation["images"]["top"])
        assert named.observation["instruction"] != swapped.observation["instruction"]
        assert named.target != swapped.target
        assert np.array_equal(named.masks, swapped.masks)


def test_an_untrained_policy_does_not_know_where_to_look():
    from vla_mini.evaluation.rollout import observe

    policy = make_policy()
    scenes = start_scenes(TOY_PICK, scenes=20)
    found = sensitivity(policy, observe(policy, [scene.observation for scene in scenes]))
    pairs = [
        on_objects(p[0], torch.from_numpy(scene.masks), scene.target) for p, scene in zip(found.pixels, scenes, strict=True)
    ]
    assert np.mean([on_target > on_others for on_target, on_others, _ in pairs]) < 0.7


@pytest.mark.parametrize("blind", INPUTS)
def test_by_an_input_that_it_never_sees_the_action_does_not_change(blind):
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), blind=[blind])
    observation = make_observation(policy, 2)
    found = sensitivity(policy, observation)
    by_input = dict(zip(INPUTS, found, strict=True))
    assert {name for name, product in by_input.items() if not product.any()} == {blind}
    by_state, by_image = jacobian(policy, observation, grid=2).matrix.split([4, 3 * 2 * 2], dim=1)
    assert (by_state.any(), by_image.any()) == (blind != "state", blind != "images")
