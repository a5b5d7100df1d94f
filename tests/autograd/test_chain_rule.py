"""The chain rule, carried out: the Jacobians of the policy's modules, multiplied from the loss back to the pixels."""

import torch
from torch.func import jacrev

from tests.factory import FEATURES, make_batch, make_policy, mean_loss


def jacobian(function, point):
    """The whole Jacobian of a module at a point, both flattened."""
    rows, columns = function(point).numel(), point.numel()
    return jacrev(function)(point).reshape(rows, columns).detach()


def test_the_product_of_all_modules_jacobians_is_what_backward_gives():
    """For both losses: the action's depends on the context's tokens, the keyframe's on its attention."""
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), dtype=torch.float64)
    batch = make_batch(policy, 1)
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(batch.observation))
    words = policy.projection["language"](words).detach()
    state = policy.state(policy.normalization.state(state)).detach()
    images, like = images[:, 0], policy.trunk(torch.zeros(1, 16, 64, dtype=torch.float64), words, mask, state)
    sizes = [like.tokens.numel(), like.attention.numel()]

    def trunk(image):
        context = policy.trunk(image, words, mask, state)
        return torch.cat([context.tokens.flatten(), context.attention.flatten()])

    def losses(values):
        tokens, attention = values.split(sizes)
        context = like._replace(tokens=tokens.view_as(like.tokens), attention=attention.view_as(like.attention))
        action = policy.action.loss(context, policy.normalization.action(batch.actions), batch.is_pad) * ~batch.is_pad
        keyframe = policy.auxiliary["keyframe"]
        return action.sum() / (~batch.is_pad).sum() + keyframe.weight * keyframe.loss(context, batch).sum()

    modules = [policy.vision, policy.projection["vision"], trunk, losses]
    points = [images]
    for module in modules:
        points.append(module(points[-1]).detach())
    gradient = torch.ones(1, 1, dtype=torch.float64)
    for module, point in reversed(list(zip(modules, points[:-1], strict=True))):
        gradient = gradient @ jacobian(module, point)
    torch.testing.assert_close(points[-1], mean_loss(policy, batch).detach(), rtol=1e-12, atol=0)

    images.requires_grad_()
    prepare = policy.prepare
    policy.prepare = lambda observation: (images[:, None], *prepare(observation)[1:])  # uint8 images have no gradient
    (backward,) = torch.autograd.grad(mean_loss(policy, batch), images)
    assert backward.abs().max() > 1e-4
    torch.testing.assert_close(gradient.view_as(backward), backward, rtol=1e-10, atol=1e-14)
