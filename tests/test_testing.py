"""The assertions of vla_mini.testing: wrong parts fail here; that right ones pass is tested in tests/test_variants.py."""

import pytest
import torch
from pydantic import PositiveInt
from torch import nn

from vla_mini import testing
from vla_mini.action.regression import RegressionHead
from vla_mini.language.table import TableLanguage
from vla_mini.parts import KINDS, ActionHead, AuxiliaryLoss, AuxiliarySpec, HeadSpec
from vla_mini.testing import make_batch, make_observation, make_policy
from vla_mini.trunk.query import QueryTrunk
from vla_mini.utils.layers import flatten_tokens, mlp
from vla_mini.vision.conv import ConvVision

KEY_BIAS = {"trunk.word_keys.bias": "a key's bias adds the same score to every token, which the softmax cancels"}


class WrongSquare(torch.autograd.Function):
    """The square, with a gradient that is wrong by one part in ten thousand."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2.0002 * ctx.saved_tensors[0] * gradient


class PlainHead(ActionHead):
    """A head with nothing wrong."""

    def __init__(self, spec: HeadSpec, *, hidden: PositiveInt = 8):
        super().__init__()
        self.layers = mlp(spec.num_tokens * spec.context_width, hidden, spec.horizon * spec.action_size)

    def predict(self, context, noise=None):
        output = self.layers(flatten_tokens(context.tokens, context.mask))
        return output.unflatten(-1, (self.spec.horizon, self.spec.action_size))

    def loss(self, context, actions, is_pad):
        return (self.predict(context) - actions).abs().mean(dim=-1)


class WrongHead(PlainHead):
    """Averages its loss over the batch, and has a layer that is not used."""

    def __init__(self, spec: HeadSpec, *, hidden: PositiveInt = 8):
        super().__init__(spec, hidden=hidden)
        self.unused = nn.Linear(2, 2)

    def loss(self, context, actions, is_pad):
        return super().loss(context, actions, is_pad) / len(actions)


def test_a_slightly_wrong_gradient_is_found():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    testing.assert_matches_central_differences(lambda: x.square().sum(), {"x": x})
    with pytest.raises(AssertionError, match=r"x: autograd gives .* central differences"):
        testing.assert_matches_central_differences(lambda: WrongSquare.apply(x).sum(), {"x": x})
    with pytest.raises(AssertionError, match="x: autograd gives 0, central"):  # detached on the way
        testing.assert_matches_central_differences(lambda: (x.detach().square() + 0 * x).sum(), {"x": x})
    with pytest.raises(ValueError, match=r"x is torch.float32: only float64"):
        testing.assert_matches_central_differences(lambda: x.sum(), {"x": x.detach().float()})


def test_kinks_are_stepped_over():
    """|x| near its kink: the largest step crosses the kink, the smallest does not."""
    x = torch.tensor([3e-6], dtype=torch.float64, requires_grad=True)
    testing.assert_matches_central_differences(lambda: x.abs().sum(), {"x": x})


def test_unreached_parameters_are_named_unless_excepted():
    policy = make_policy(action=WrongHead)
    with pytest.raises(AssertionError, match=r"no gradient reaches action\.unused\.weight"):
        testing.assert_gradients_reach(policy, make_batch(policy), except_for=KEY_BIAS)
    unused = {f"action.unused.{name}": "the layer is not used" for name in ("weight", "bias")}
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=KEY_BIAS | unused)
    with pytest.raises(ValueError, match=r"'action\.unsued\.bias' .* did you mean 'action\.unused\.bias'"):
        testing.assert_gradients_reach(policy, make_batch(policy), except_for={"action.unsued.bias": "a typo"})


def test_vanishing_gradients_are_named_and_frozen_parameters_are_not():
    policy = make_policy()
    with pytest.raises(AssertionError, match=r"the gradient of trunk\.word_keys\.bias vanishes"):
        testing.assert_gradients_reach(policy, make_batch(policy))
    policy.vision.requires_grad_(False)
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=KEY_BIAS)
    assert all(parameter.grad is None for parameter in policy.parameters())  # the policy itself is not changed


def test_an_initialisation_at_zero_is_no_vanishing_gradient():
    """Behind a layer of zeros there is no gradient until the first optimizer step has changed the layer."""
    policy = make_policy(auxiliary={})
    policy.action.layers[4].weight.data.zero_()
    testing.assert_gradients_reach(policy, make_batch(policy), except_for=KEY_BIAS)


def test_a_loss_that_is_averaged_over_the_batch_does_not_accumulate():
    policy = make_policy(dtype=torch.float64)
    testing.assert_accumulation_equivalent(policy, make_batch(policy), sizes=[3, 1])
    with pytest.raises(AssertionError, match="the accumulated gradient has a relative error"):
        policy = make_policy(action=WrongHead)
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
    with pytest.raises(AssertionError, match=r"result\[1\]\['actions'\] is part of a graph"):
        testing.assert_no_graph(lambda: (None, {"actions": policy.state.bias + 1}))


def test_a_loss_in_half_precision_is_refused():
    class HalfHead(RegressionHead):
        def loss(self, context, actions, is_pad):
            return super().loss(context, actions, is_pad).to(torch.get_autocast_dtype("cpu"))

    policy = make_policy(auxiliary={})
    testing.assert_precision_close(policy, make_batch(policy, 8))
    policy.action.__class__ = HalfHead
    with pytest.raises(AssertionError, match=r"the loss is torch\.bfloat16"):
        testing.assert_precision_close(policy, make_batch(policy, 8))


def test_a_part_that_is_more_than_its_settings_does_not_come_back():
    policy = make_policy()
    testing.assert_round_trip(policy)
    policy.action.layers[1] = nn.Tanh()
    with pytest.raises(AssertionError, match="acts differently"):
        testing.assert_round_trip(policy)


def test_a_wrong_compiler_is_found(monkeypatch):
    policy = make_policy()
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda batch: (1.001 * call(batch)[0], {}))
    with pytest.raises(AssertionError, match=r"the compiled loss has a relative error of 1.0e-03, above 1e-05"):
        testing.assert_compiled_equal(policy, make_batch(policy, 2))


def without_loss():
    class NoLossHead(ActionHead):
        def __init__(self, spec: HeadSpec, *, hidden: int = 8):
            super().__init__()

        def predict(self, context, noise=None):
            return context.tokens

    return NoLossHead


def with_setting_of_the_spec():
    class HorizonHead(PlainHead):
        def __init__(self, spec: HeadSpec, *, hidden: PositiveInt = 8, horizon: PositiveInt = 8):
            super().__init__(spec, hidden=hidden)

    return HorizonHead


def without_annotation():
    class UntypedHead(PlainHead):
        def __init__(self, spec: HeadSpec, *, hidden=8):
            super().__init__(spec, hidden=hidden)

    return UntypedHead


def without_spec():
    class SpeclessHead(PlainHead):
        def __init__(self, *, hidden: PositiveInt = 8):
            super().__init__(None, hidden=hidden)

    return SpeclessHead


@pytest.mark.parametrize(
    ("make_class", "message"),
    [
        (without_loss, r"NoLossHead does not define loss"),
        (with_setting_of_the_spec, r"HorizonHead: the setting 'horizon' is named like a field of HeadSpec"),
        (without_annotation, r"UntypedHead: 'hidden' has to be .* with a type"),
        (without_spec, r"SpeclessHead.__init__ takes no spec"),
    ],
)
def test_a_head_that_breaks_the_contract_is_refused_where_it_is_built(make_class, message):
    make_policy(action=PlainHead)
    with pytest.raises(ValueError, match=message) as refused:
        make_policy(action=make_class())
    assert "\n" not in str(refused.value)


class WeightlessLoss(AuxiliaryLoss):
    def __init__(self, spec: AuxiliarySpec):
        super().__init__()
        self.weight = 1.0

    def loss(self, context, batch):
        return context.tokens.mean(dim=(1, 2))


@pytest.mark.parametrize(
    ("kind", "base", "attributes"),
    [
        ("vision", ConvVision, ["width", "grid"]),
        ("language", TableLanguage, ["width", "tokenizer"]),
        ("trunk", QueryTrunk, ["width", "num_tokens", "num_queries"]),
        ("auxiliary", WeightlessLoss, ["weight"]),
    ],
)
def test_a_part_without_an_attribute_of_its_contract_is_refused_where_it_is_built(kind, base, attributes):
    for attribute in attributes:

        class Forgetful(base):
            def fit(self, data, attribute=attribute):
                super().fit(data)
                delattr(self, attribute)

        message = rf"Forgetful does not set {attribute}, which vla_mini\.parts\.{KINDS[kind].__name__} asks for"
        with pytest.raises(ValueError, match=message) as refused:
            make_policy(**{kind: {"extra": Forgetful} if kind == "auxiliary" else Forgetful})
        assert "\n" not in str(refused.value)


def test_unknown_parts_and_settings_are_refused():
    with pytest.raises(ValueError, match="no part 'actoin'; did you mean 'action'"):
        make_policy(actoin=WrongHead)
    with pytest.raises(ValueError, match=r"hiden.*did you mean '.*hidden'"):
        make_policy(action={"_target_": "vla_mini.action.regression.RegressionHead", "hiden": 3})
