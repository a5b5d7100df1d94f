"""Autograd against NumPy: the gradient of every encoder, trunk, head and loss is the slope that float64 finds by itself."""

import pytest
import torch
from torch.autograd import gradcheck

from tests.factory import FEATURES, VARIANTS, make_batch, make_policy
from vla_mini.auxiliary.keyframe import KeyframeLoss
from vla_mini.layers import Block
from vla_mini.testing import assert_matches_central_differences, mean_loss
from vla_mini.types import Context
from vla_mini.vision.conv import channel_norm

SMALL = FEATURES._replace(image_size=(16, 16))


def part(policy, batch, group):
    """One part of the policy by itself: its name, as a function of the float inputs that come from below, and the inputs."""
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(batch.observation))
    floats = {"images": images[:, 0], "words": words, "state": state}
    context = Context(*(tensor.detach() for tensor in policy.context(images, words, state, mask)))
    seen = {"tokens": context.tokens, "attention": context.attention, "positions": context.positions}
    actions, generator = policy.normalization.action(batch.actions), torch.Generator()
    image_tokens = policy.projection["vision"](policy.vision(floats["images"])).detach()
    tokens = {
        "image": image_tokens,
        "words": policy.projection["language"](words).detach(),
        "state": policy.state(state).detach(),
    }

    def head(predict, **inputs):
        if predict:
            return policy.action.predict(context._replace(**inputs), generator.manual_seed(0))
        torch.manual_seed(0)  # the same noise in every call, for heads that draw some
        return policy.action.loss(context._replace(**inputs), actions, batch.is_pad)

    return {
        "vision": [(lambda images: policy.vision(images), {"images": floats["images"]})],
        "language": [(lambda: policy.language(batch.observation.tokens, mask), {})],
        "trunk": [(lambda image, words, state: policy.trunk(image, words, mask, state).tokens, tokens)],
        "action": [(lambda **inputs: head(False, **inputs), seen), (lambda **inputs: head(True, **inputs), seen)],
        "auxiliary": [
            (lambda **inputs: policy.auxiliary(context._replace(**inputs), batch.keyframe, batch.has_keyframe), seen),
        ],
    }[group]


CASES = [(group, name) for group, names in VARIANTS.items() for name in names if name != "none"]


@pytest.mark.parametrize(("group", "name"), CASES, ids=map("=".join, CASES))
def test_every_part_matches_central_differences(group, name):
    """By its parameters and by its inputs, along random directions; outputs are weighted at random into one number."""
    policy = make_policy(features=SMALL, dtype=torch.float64, **{group: name})
    getattr(policy, group).requires_grad_(True)  # those, too, that come frozen
    if name == "huggingface":  # whose own attention takes its softmax in float32, whatever it is given
        getattr(policy, group).model.set_attn_implementation("sdpa")
    for function, inputs in part(policy, make_batch(policy, 3), group):
        inputs = {key: tensor.clone().requires_grad_() for key, tensor in inputs.items()}
        shape = function(**inputs).shape
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        parameters = dict(getattr(policy, group).named_parameters())

        def scalar(function=function, inputs=inputs, weights=weights):
            return (function(**inputs) * weights).sum()

        assert_matches_central_differences(scalar, parameters | inputs)


def test_the_whole_policy_matches_central_differences():
    policy = make_policy(features=SMALL, dtype=torch.float64)
    batch = make_batch(policy, 3)
    assert_matches_central_differences(lambda: mean_loss(policy, batch), policy, directions=1)


def test_gradcheck_of_small_modules():
    """Every entry of the Jacobian, not only directions."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    block = Block(width=4, num_heads=2).double()
    assert gradcheck(block, random(1, 3, 4))
    assert gradcheck(channel_norm, random(1, 3, 2, 2))
    keyframe = KeyframeLoss(grid=(2, 2), num_cameras=1, keyframe_size=2, num_positions=2).double()
    context = Context(random(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), random(1, 2, 2), torch.zeros(1, 2, 4))
    where, present = random(1, 2), torch.ones(1, dtype=torch.bool)
    assert gradcheck(
        lambda attention: keyframe(context._replace(attention=attention.log_softmax(-1)), where, present), random(1, 2, 4)
    )
