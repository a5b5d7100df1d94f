"""The join itself: what it refuses, that it is exact, and that accumulation adds up."""

import os

import numpy as np
import pytest
import torch

from tests.factory import FEATURES, make_batch, make_observation, make_policy, mean_loss, spec
from vla_mini.features import Moments, Statistics
from vla_mini.normalization import Normalization
from vla_mini.testing import split


def test_act_is_prepare_and_predict():
    policy = make_policy()
    observation = make_observation(policy)
    images, words, mask, state = policy.prepare(observation)
    predicted = policy.predict(images, words, state, word_mask=mask)
    assert predicted.requires_grad
    torch.testing.assert_close(policy.act(observation), predicted.detach(), rtol=0, atol=0)


def test_predict_is_differentiable_by_pixels_words_and_state():
    policy = make_policy()
    images, words, mask, state = policy.prepare(make_observation(policy))
    inputs = [tensor.detach().requires_grad_() for tensor in (images, words, state)]
    policy.predict(*inputs, word_mask=mask).sum().backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in inputs)


def test_several_cameras_are_told_apart():
    policy = make_policy(features=FEATURES._replace(cameras=("top", "wrist")))
    observation = make_observation(policy)
    swapped = observation._replace(images=observation.images.flip(1))
    assert (policy.act(observation) - policy.act(swapped)).abs().max() > 1e-5


def test_past_frames_are_told_from_the_present_and_saved_with_the_policy(tmp_path):
    policy = make_policy(history=2)
    observation = make_observation(policy)
    assert observation.images.shape[1] == 2 and observation.state.shape[1] == 8
    actions = policy.act(observation)
    for swapped in ({"images": observation.images.flip(1)}, {"state": observation.state.roll(4, 1)}):
        assert (policy.act(observation._replace(**swapped)) - actions).abs().max() > 1e-5
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert loaded.history == 2
    torch.testing.assert_close(loaded.act(observation), actions, rtol=0, atol=0)


def test_the_past_is_normalised_as_the_present():
    low, high, mean, std = (np.float32([value, value + 1]) for value in (-3, 3, 0.5, 2))
    moments = Moments(low, high, mean, std, low, high)
    once, thrice = (Normalization(Statistics(moments, moments), history=history) for history in (1, 3))
    state = torch.randn(2, 2)
    torch.testing.assert_close(thrice.state(state.repeat(1, 3)), once.state(state).repeat(1, 3))


def test_observations_of_too_few_frames_are_refused():
    policy, one = make_policy(history=2), make_observation(make_policy())
    with pytest.raises(ValueError, match=r"observation.images is \(4, 1, 3, 64, 64\), the policy takes \(b=4, k=2, "):
        policy.act(one)
    images = make_observation(policy).images
    with pytest.raises(
        ValueError, match=r"state is \(4, 4\), the policy takes \(b=4, s=8\); s: x, y, height, closed, x 1 before"
    ):
        policy.act(one._replace(images=images))


def test_insulation_stops_the_heads_gradient_before_the_backbone():
    policy = make_policy(backbone_action=spec("action", "bins"), auxiliary="none")
    batch = make_batch(policy)
    with torch.no_grad():  # nothing of the second head reaches the backbone either: what is left is the first head's
        policy.backbone_action.layers[0].weight.zero_()
    mean_loss(policy, batch).backward()
    assert all(p.grad.abs().max() > 0 for p in policy.action.parameters())
    backbone = [policy.vision, policy.language, policy.trunk, policy.projection, policy.state]
    assert all(p.grad is None or p.grad.abs().max() == 0 for part in backbone for p in part.parameters())


def test_insulated_backbones_learn_from_their_own_head():
    policy = make_policy(backbone_action=spec("action", "bins"), auxiliary="none")
    mean_loss(policy, make_batch(policy)).backward()
    assert policy.vision.stem.weight.grad.abs().max() > 0 and policy.trunk.queries.weight.grad.abs().max() > 0


def test_an_insulated_policy_is_saved_whole(tmp_path):
    policy = make_policy(backbone_action=spec("action", "bins"))
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(loaded.backbone_action.layers[0].weight, policy.backbone_action.layers[0].weight)


def test_missing_keyframes_count_nothing():
    policy = make_policy()
    batch = make_batch(policy)._replace(has_keyframe=torch.zeros(4, dtype=torch.bool))
    _, terms = policy.loss(batch)
    assert (terms["keyframe"] == 0).all()


def test_padded_actions_do_not_change_the_loss():
    policy = make_policy()
    batch = make_batch(policy)
    other = batch._replace(actions=torch.where(batch.is_pad[..., None], 0.7, batch.actions))
    torch.testing.assert_close(policy.loss(batch)[0], policy.loss(other)[0], rtol=0, atol=0)


def test_summed_losses_accumulate_to_the_gradient_of_the_big_batch():
    policy = make_policy(dtype=torch.float64)
    batch = make_batch(policy, 16)
    mean_loss(policy, batch).backward()
    expected = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    for part in split(batch, [7, 4, 4, 1]):
        policy.loss(part)[0].sum().backward()
    count = (~batch.is_pad).sum()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad / count, expected[name], rtol=1e-10, atol=1e-14)


def test_how_chunks_are_executed_is_saved(tmp_path):
    policy = make_policy()
    policy.execute, policy.ensemble = 3, 0.01
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert (loaded.execute, loaded.ensemble) == (3, 0.01)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_saved_policy_stays_where_a_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    """The second of two renames fails, or a signal comes before it."""
    policy, rename = make_policy(), os.rename
    policy.execute = 1
    policy.save_pretrained(tmp_path / "policy")

    def fails(source, target):
        if target == tmp_path / "policy" and not source.name.endswith("-old"):
            raise error
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(os, "rename", fails)
        policy.execute = 2
        policy.save_pretrained(tmp_path / "policy")
    assert type(policy).from_pretrained(tmp_path / "policy").execute == 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


OTHER = {  # an observation that differs in one input
    "images": lambda o: o._replace(images=255 - o.images),
    "words": lambda o: o._replace(tokens=o.tokens.roll(1, 0), token_mask=o.token_mask.roll(1, 0)),
    "state": lambda o: o._replace(state=o.state + 1),
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("language", ["table", "huggingface"])
def test_a_blind_policy_depends_on_all_but_what_it_is_blind_to(name, language):
    policy = make_policy(blind=[name], language=language)
    observation = make_observation(policy)
    actions = policy.act(observation)
    for other, change in OTHER.items():
        change_in_actions = (policy.act(change(observation)) - actions).abs().max()
        assert change_in_actions == 0 if other == name else change_in_actions > 1e-6, other


def test_blind_means_no_picture_no_words_and_the_mean_state():
    policy = make_policy(blind=["images", "words", "state"], history=2)
    images, words, mask, state = policy.prepare(make_observation(policy))
    silence = policy.language(*policy.tokenize([""] * 4))
    assert (images == 0).all() and (policy.normalization.state(state) == 0).all()
    assert mask.all() and torch.equal(words, silence)


def test_a_blind_policy_learns_nothing_about_what_it_is_blind_to():
    policy = make_policy(blind=["words", "state"])
    batch = make_batch(policy)
    batch.observation.state.requires_grad_()
    mean_loss(policy, batch).backward()
    assert batch.observation.state.grad is None
    assert policy.state.weight.grad.abs().max() == 0
    learnt = policy.language.table.weight.grad.abs().amax(1).nonzero().flatten()
    assert learnt.tolist() == [policy.tokenize([""])[0].item()]  # the start token alone


def test_a_blind_policy_stays_blind_when_it_is_saved(tmp_path):
    policy = make_policy(blind=["words"])
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert loaded.blind == ("words",)
    observation = make_observation(policy)
    torch.testing.assert_close(loaded.act(OTHER["words"](observation)), policy.act(observation), rtol=0, atol=0)


def test_blind_to_something_unknown_is_refused():
    with pytest.raises(ValueError, match="there is no input 'image', but images, words, state"):
        make_policy(blind=["image"])
