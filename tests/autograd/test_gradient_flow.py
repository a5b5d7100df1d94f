"""Gradient flow: norms by component and by layer, and what is flagged as vanishing or exploding."""

import math

import pytest
import torch

from tests.factory import make_batch, make_policy
from vla_mini.autograd.batches import mean_loss
from vla_mini.autograd.flow import EXPLODING, MIN_WEIGHT, VANISHING, classify, gradient_flow


def test_norms_are_those_that_backward_leaves():
    policy = make_policy(dtype=torch.float64)
    batch = make_batch(policy, 6)
    components, layers = gradient_flow(policy, batch)
    assert all(parameter.grad is None for parameter in policy.parameters()), "the policy was changed"
    mean_loss(policy, batch).backward()
    for name, flow in components.items():
        parameters = list(getattr(policy, name).parameters())
        assert flow.grad_norm == pytest.approx(math.hypot(*(float(p.grad.norm()) for p in parameters)), rel=1e-12)
        assert flow.weight_norm == pytest.approx(math.hypot(*(float(p.detach().norm()) for p in parameters)), rel=1e-12)
        assert flow.ratio == pytest.approx(flow.grad_norm / flow.weight_norm)
    for layer in layers:
        own = policy.get_submodule(layer.name).parameters(recurse=False)
        assert layer.flow.grad_norm == pytest.approx(math.hypot(*(float(p.grad.norm()) for p in own)), rel=1e-12)


def test_layers_come_in_the_order_of_the_forward_pass():
    policy = make_policy()
    names = [layer.name for layer in gradient_flow(policy, make_batch(policy))[1]]
    order = [
        "vision.stem",
        "vision.blocks.0",
        "vision.blocks.1",
        "projection.vision",
        "trunk.values",
        "trunk",
        "action.layers.0",
    ]
    assert [name for name in names if name in order] == order
    assert len(names) == len(set(names)) == sum(1 for m in policy.modules() if list(m.parameters(recurse=False)))


def test_the_gradient_by_a_layers_output_is_that_of_autograd():
    policy = make_policy(dtype=torch.float64)
    batch = make_batch(policy)
    kept = []
    handle = policy.vision.stem.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (expected,) = torch.autograd.grad(mean_loss(policy, batch), kept)
    handle.remove()
    layers = {layer.name: layer for layer in gradient_flow(policy, batch)[1]}
    assert layers["vision.stem"].output_grad_norm == pytest.approx(expected.norm().item(), rel=1e-12)
    assert layers["trunk"].output_grad_norm is None  # its output is a Context


def test_behind_a_tiny_weight_the_gradient_vanishes():
    policy = make_policy(auxiliary="none")
    with torch.no_grad():
        policy.action.layers[4].weight.mul_(1e-9)
    components, layers = gradient_flow(policy, make_batch(policy))
    flagged = {layer.name: layer.flow.vanishing for layer in layers}
    assert flagged["vision.stem"] and flagged["trunk.queries"] and flagged["action.layers.2"]
    assert not flagged["action.layers.4"]
    assert components["vision"].vanishing and not components["action"].vanishing
    assert not any(layer.flow.exploding for layer in layers)


def test_behind_a_huge_weight_the_gradient_explodes():
    policy = make_policy(auxiliary="none")
    with torch.no_grad():
        policy.action.layers[4].weight.mul_(1e9)
    components, layers = gradient_flow(policy, make_batch(policy))
    flagged = {layer.name: layer.flow.exploding for layer in layers}
    assert flagged["vision.stem"] and flagged["action.layers.2"]
    assert not flagged["action.layers.4"]
    assert components["vision"].exploding and not components["vision"].vanishing


def test_nothing_is_flagged_in_the_default_policy():
    policy = make_policy()
    assert not any(layer.flow.vanishing or layer.flow.exploding for layer in gradient_flow(policy, make_batch(policy))[1])


def test_frozen_parts_are_omitted():
    policy = make_policy()
    policy.vision.requires_grad_(False)
    components, layers = gradient_flow(policy, make_batch(policy))
    assert "vision" not in components and "trunk" in components
    assert not any(layer.name.startswith("vision") for layer in layers)


def test_thresholds():
    weight = torch.tensor(1.0)
    assert weight - 1e-3 * torch.tensor(0.49 * VANISHING) == weight  # float32 rounds this step to nothing
    assert weight - 1e-3 * torch.tensor(2.1 * VANISHING) != weight
    assert classify(0.99 * VANISHING, 1.0, size=1).vanishing and not classify(1.01 * VANISHING, 1.0, size=1).vanishing
    assert classify(1.01 * EXPLODING, 1.0, size=1).exploding and not classify(0.99 * EXPLODING, 1.0, size=1).exploding
    assert classify(math.nan, 1.0, size=1).exploding and classify(math.inf, 1.0, size=1).exploding
    assert classify(1.0, 0.0, size=4).ratio == 1 / (2 * MIN_WEIGHT)  # weights that start at zero
