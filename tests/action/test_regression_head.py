"""The regression head's loss, by hand."""

import torch

from tests.factory import make_batch, make_policy


def test_the_loss_is_the_mean_distance_over_the_dimensions_of_an_action():
    policy = make_policy()
    batch = make_batch(policy)
    images, words, mask, state = policy.prepare(batch.observation)
    context = policy.context(images, words, state, mask)
    loss = policy.action.loss(context, batch.actions, batch.is_pad)
    torch.testing.assert_close(loss, (policy.action.predict(context) - batch.actions).abs().sum(dim=-1) / 4)
