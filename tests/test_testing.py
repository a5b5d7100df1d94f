"""The public assertions of vla_mini.testing: each passes what is right (tests/test_variants.py) and catches what is wrong."""

import pytest
import torch
from torch import nn

from vla_mini import testing
from vla_mini.action.regression import RegressionHead
from vla_mini.testing import make_batch, make_observation, make_policy


class Wrong(torch.autograd.Function):
    """The square, with a gradient that is wrong by one part in ten thousand."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2.0002 * ctx.saved_tensors[0] * gradient


class LeakyHead(RegressionHead):
    """Acts with a graph, averages its loss over the batch, and has a layer that nothing passes through."""

    def __init__(self, *, context_width: int, num_tokens: int, horizon: int, action_size: int):
        super().__init__(context_width=context_width, num_tokens=num_tokens, horizon=horizon, action_size=action_size)
        self.unused = nn.Linear(2, 2)

    def loss(self, context, actions, is_pad):
        return super().loss(context, actions, is_pad) / len(actions)


def test_a_gradient_that_is_slightly_wrong_is_found():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    testing.assert_matches_central_differences(lambda: x.square().sum(), {"x": x})
    with pytest.raises(AssertionError, match=r"x: autograd says .* central differences"):
        testing.assert_matches_central_differences(lambda: Wrong.apply(x).sum(), {"x": x})
    with pytest.raises(AssertionError, match="x: autograd says 0, central"):  # detached on the way
        testing.assert_matches_central_differences(lambda: (x.detach().square() + 0 * x).sum(), {"x": x})
    with pytest.raises(ValueError, match=r"x is torch.float32: float64"):
        testing.assert_matches_central_differences(lambda: x.sum(), {"x": x.detach().float()})


def test_kinks_are_stepped_over():
    """|x| a millionth away from its kink: the largest step straddles it, the smallest does not."""
    x = torch.tensor([3e-6], dtype=torch.float64, requires_grad=True)
    testing.assert_matches_central_differences(lambda: x.abs().sum(), {"x": x})


def test_unreached_parameters_are_named_unless_excused():
    policy = make_policy(action=LeakyHead)
    key = {"trunk.word_keys.bias": "a softmax does not see what all scores share"}
    with pytest.raises(AssertionError, match=r"no gradient reaches action\.unused\.weight"):
        testing.assert_gradients_reach(policy, make_batch(policy), except_for=key)
    unused = {f"action.unused.{name}": "nothing passes through it" for name in ("weight", "bias")}
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=key | unused)
    with pytest.raises(ValueError, match=r"'action\.unsued\.bias' .* did you mean 'action\.unused\.bias'"):
        testing.assert_gradients_reach(policy, make_batch(policy), except_for={"action.unsued.bias": "a slip"})


def test_vanishing_and_frozen_gradients_are_told():
    policy = make_policy()
    with pytest.raises(AssertionError, match=r"the gradient of trunk\.word_keys\.bias vanishes"):
        testing.assert_gradients_reach(policy, make_batch(policy))
    policy.vision.requires_grad_(False)
    key = {"trunk.word_keys.bias": "a softmax does not see what all scores share"}
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=key)
    assert all(parameter.grad is None for parameter in policy.parameters())  # copies moved


def test_an_initialisation_at_zero_is_no_vanishing_gradient():
    """Nothing passes back through a layer of zeros, until one step has moved it."""
    policy = make_policy(auxiliary=None)
    policy.action.layers[4].weight.data.zero_()
    key = {"trunk.word_keys.bias": "a softmax does not see what all scores share"}
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=key)


def test_a_loss_that_is_averaged_over_the_batch_does_not_accumulate():
    policy = make_policy(dtype=torch.float64)
    testing.assert_accumulation_equivalent(policy, make_batch(policy), sizes=[3, 1])
    with pytest.raises(AssertionError, match="accumulated gradient is off"):
        policy = make_policy(action=LeakyHead)
        testing.assert_accumulation_equivalent(policy, make_batch(policy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accumulation_tolerances(dtype):
    policy = make_policy(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    testing.assert_accumulation_equivalent(policy, make_batch(policy, 8), dtype=dtype)


def test_graphs_are_found():
    policy = make_policy()
    observation = make_observation(policy)
    images, words, mask, state = policy.prepare(observation)
    testing.assert_no_graph(policy.act, observation)
    with pytest.raises(AssertionError, match="tensors were saved for backward"):
        testing.assert_no_graph(lambda: policy.predict(images, words, state, word_mask=mask))
    with pytest.raises(AssertionError, match=r"result\.1\.actions is part of a graph"):
        testing.assert_no_graph(lambda: (None, {"actions": policy.state.bias + 1}))


def test_a_loss_in_half_precision_is_refused():
    class Half(RegressionHead):
        def loss(self, context, actions, is_pad):
            return super().loss(context, actions, is_pad).to(torch.get_autocast_dtype("cpu"))

    policy = make_policy(auxiliary=None)
    testing.assert_precision_close(policy, make_batch(policy, 8))
    policy.action.__class__ = Half
    with pytest.raises(AssertionError, match=r"the loss is torch\.bfloat16"):
        testing.assert_precision_close(policy, make_batch(policy, 8))


def test_a_part_that_forgets_an_argument_does_not_come_back():
    policy = make_policy()
    testing.assert_round_trip(policy)
    policy.action.layers[1] = nn.Tanh()  # said nowhere in the description
    with pytest.raises(AssertionError, match="acts differently"):
        testing.assert_round_trip(policy)


def test_a_compiler_that_is_wrong_is_found(monkeypatch):
    policy = make_policy()
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda batch: (1.001 * call(batch)[0], {}))
    with pytest.raises(AssertionError, match=r"the compiled loss is off by 1.0e-03, relative; 1e-05 is allowed"):
        testing.assert_compiled_equal(policy, make_batch(policy, 2))


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="no part 'actoin'; did you mean 'action'"):
        make_policy(actoin=LeakyHead)
