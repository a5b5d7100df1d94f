"""The join itself: what it refuses, that it is exact, and that accumulation adds up."""

import pytest
import torch

from tests.factory import FEATURES, make_batch, make_observation, make_policy, mean_loss
from vla_mini.types import Batch, Observation


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o._replace(images=o.images[..., :32]), r"images are \(1, 3, 64, 32\)"),
        (lambda o: o._replace(state=o.state[:, :3]), "the state has 3 values"),
        (lambda o: o._replace(state=o.state.to("meta")), "observation.state is on meta, the policy is on cpu"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change, message):
    policy = make_policy()
    with pytest.raises(ValueError, match=message):
        policy.act(change(make_observation(policy)))


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


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The batch in parts; fields keep their type."""
    parts = []
    for fields in zip(*(t.split(sizes) for t in (*batch.observation, *batch[1:])), strict=True):
        parts.append(Batch(Observation(*fields[:4]), *fields[4:]))
    return parts


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
