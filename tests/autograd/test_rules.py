"""Autograd's own rules, met on the policy: what it refuses, and what it keeps."""

import ast

import pytest
import torch

from tests.factory import ROOT, make_batch, make_policy, mean_loss

COMPUTING = ("vision", "language", "trunk", "action", "auxiliary")


def test_an_in_place_change_of_a_saved_tensor_is_caught():
    policy = make_policy()
    batch = make_batch(policy)
    images, words, mask, state = policy.prepare(batch.observation)
    tokens = policy.projection["vision"](policy.vision(images[:, 0]))
    context = policy.trunk(tokens, policy.projection["language"](words), mask, policy.state(policy.normalization.state(state)))
    loss = policy.action.loss(context, batch.actions, batch.is_pad).sum()
    with torch.no_grad():
        context.tokens.mul_(2)
        policy.action.layers[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_that_computes_changes_tensors_in_place():
    """A method whose name ends in one underscore changes its tensor. Under no_grad, where weights are set up, it may."""
    files = [path for room in COMPUTING for path in (ROOT / "vla_mini" / room).glob("*.py")]
    files += [ROOT / "vla_mini" / name for name in ("policy.py", "layers.py", "normalization.py", "geometry.py")]
    for path in files:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                names = [
                    node.func.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                ]
                changing = [
                    name for name in names if name.endswith("_") and not name.startswith("_") and name != "requires_grad_"
                ]
                assert not changing, f"{path.name}: {function.name} calls {changing}"


def test_backward_of_a_vector_needs_a_vector():
    policy = make_policy()
    loss, _ = policy.loss(make_batch(policy))
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        loss.backward()
    loss.backward(torch.ones_like(loss))


def test_a_graph_is_freed_after_backward_unless_kept():
    policy = make_policy()
    loss = mean_loss(policy, make_batch(policy))
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_losses_are_finite_at_extreme_activations(scale):
    policy = make_policy(action="bins")
    policy.action.layers[4].weight.data *= scale * 100
    loss = mean_loss(policy, make_batch(policy))
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in policy.parameters())
