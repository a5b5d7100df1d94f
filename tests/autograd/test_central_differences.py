"""Autograd against NumPy: the gradient of every encoder, trunk, head and loss is the slope that central differences give."""

import pytest
import torch
from torch.autograd import gradcheck

from tests.factory import FEATURES, VARIANTS, make_batch, make_policy
from vla_mini.auxiliary.keyframe import KeyframeLoss
from vla_mini.parts import AuxiliarySpec
from vla_mini.testing import assert_matches_central_differences, mean_loss
from vla_mini.types import Context
from vla_mini.utils.layers import Block, FiLMBlock
from vla_mini.vision.conv import channel_norm

SMALL = FEATURES._replace(image_size=(16, 16))


def functions_of(policy, batch, kind):
    """The functions that one part computes, each with its floating-point inputs by name."""
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(batch.observation))
    context = policy.context(images, words, state, mask)
    context = Context(context.tokens.detach(), context.mask, context.attention.detach())
    floats = {"tokens": context.tokens, "attention": context.attention}
    actions, noise = policy.normalization.action(batch.actions), policy.draw_noise(3, torch.Generator().manual_seed(0))
    image_tokens = policy.projection["vision"](policy.vision(images[:, 0])).detach()
    tokens = {
        "image": image_tokens,
        "words": policy.projection["language"](words).detach(),
        "state": policy.state(policy.normalization.state(state)).detach(),
    }

    def action_loss(**inputs):
        torch.manual_seed(0)  # the same noise in every call, for heads that sample
        return policy.action.loss(context._replace(**inputs), actions, batch.is_pad)

    def auxiliary_loss(**inputs):
        return sum(loss.loss(context._replace(**inputs), batch) for loss in policy.auxiliary.values())

    return {
        "vision": [(lambda images: policy.vision(images), {"images": images[:, 0]})],
        "language": [(lambda: policy.language(batch.observation.tokens, mask), {})],
        "trunk": [(lambda image, words, state: policy.trunk(image, words, mask, state).tokens, tokens)],
        "action": [
            (action_loss, floats),
            (lambda **inputs: policy.action.predict(context._replace(**inputs), noise), floats),
        ],
        "auxiliary": [(auxiliary_loss, floats)],
    }[kind]


CASES = [(kind, name) for kind, names in VARIANTS.items() for name in names if name != "none"]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=map("=".join, CASES))
def test_every_part_matches_central_differences(kind, name):
    """By its parameters and inputs, each along a random direction; outputs are summed with random weights."""
    policy = make_policy(features=SMALL, dtype=torch.float64, **{kind: name})
    getattr(policy, kind).requires_grad_(True)  # also parts that are frozen by default
    if name == "huggingface":  # whose eager attention takes its softmax in float32, whatever the dtype of its input
        getattr(policy, kind).model.set_attn_implementation("sdpa")
    for function, inputs in functions_of(policy, make_batch(policy, 3), kind):
        inputs = {key: tensor.clone().requires_grad_() for key, tensor in inputs.items()}
        shape = function(**inputs).shape
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        parameters = dict(getattr(policy, kind).named_parameters())

        def scalar(function=function, inputs=inputs, weights=weights):
            return (function(**inputs) * weights).sum()

        assert_matches_central_differences(scalar, parameters | inputs, directions=1)


def test_the_whole_policy_matches_central_differences():
    policy = make_policy(features=SMALL, dtype=torch.float64)
    batch = make_batch(policy, 3)
    assert_matches_central_differences(lambda: mean_loss(policy, batch), policy, directions=1)


def test_gradcheck_of_small_modules():
    """Every entry of the Jacobian, not only random directions."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    block = Block(width=4, num_heads=2).double()
    assert gradcheck(block, random(1, 3, 4))
    assert gradcheck(channel_norm, random(1, 3, 2, 2))
    film = FiLMBlock((2, 2), 3).double()
    torch.nn.init.normal_(film.film.weight)
    assert gradcheck(film, (random(1, 4, 3), random(1, 3)))
    spec = AuxiliarySpec((2, 2), num_cameras=1, num_queries=2, context_width=4, state_names=("x", "y"), action_names=("close",))
    loss = KeyframeLoss(spec, state=["x", "y"], closes="close").double()
    batch = make_batch(make_policy(dtype=torch.float64), 1)
    context = Context(random(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    assert batch.targets["has_keyframe"].all()
    assert gradcheck(lambda attention: loss.loss(context._replace(attention=attention.log_softmax(-1)), batch), random(1, 2, 4))
