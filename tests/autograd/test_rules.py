"""Autograd's own rules, met on the policy: what it refuses, and what it keeps."""

import ast
import re

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


# What looks like a change in place in what computes, and is none: of no tensor, that is.
HARMLESS = {
    "self._remembered[row] = self._encode_one(row, tokens.device)": "a dict of embeddings, by instruction",
}


def changes_in_place(code: str) -> list[str]:
    """`x += y`, `x[...] = y`, `x.mul_(y)` and `out=x` in functions; constructors, where weights are set up, may."""
    found = []
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef) and node.name != "__init__"]
    for node in (node for function in functions for node in ast.walk(function)):
        match node:
            case ast.AugAssign(value=ast.Dict()) | ast.Assign(targets=[ast.Subscript(slice=ast.Constant(str()))]):
                pass  # of a dict
            case ast.AugAssign() | ast.Assign(targets=[ast.Subscript()]):
                found.append(ast.unparse(node))
            case ast.Call(keywords=keywords) if any(keyword.arg == "out" for keyword in keywords):
                found.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr=name)) if name.endswith("_") and name[0] != "_" and name != "requires_grad_":
                found.append(ast.unparse(node))
    return list(dict.fromkeys(found))


def test_nothing_that_computes_changes_tensors_in_place():
    files = [path for room in COMPUTING for path in (ROOT / "vla_mini" / room).glob("*.py")]
    files += [ROOT / "vla_mini" / name for name in ("policy.py", "layers.py", "normalization.py", "geometry.py")]
    found = {change: path.name for path in files for change in changes_in_place(path.read_text())}
    assert found.keys() <= HARMLESS.keys(), {change: found[change] for change in found.keys() - HARMLESS.keys()}
    assert HARMLESS.keys() <= found.keys(), "take out what is no longer there"


def test_the_search_finds_each_kind_of_change():
    lines = ["x += y", "x[:, 0] = y", "x.mul_(y)", "torch.add(x, y, out=x)"]
    code = "def f(x, y):\n" + "".join(f"    {line}\n" for line in lines)
    assert changes_in_place(code) == lines
    harmless = ["x = x + 1", "terms['action'] = x", "names |= {'a': x}", "x.requires_grad_()"]
    assert changes_in_place("def f(x, terms, names):\n" + "".join(f"    {line}\n" for line in harmless)) == []


class InPlace(TorchFunctionMode):
    """Notes each call that changes a tensor that is part of a graph, made by us or by a library."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        changes = name == "__setitem__" or re.fullmatch(r"[a-z]\w*[a-z]_", name) or (kwargs or {}).get("inplace")
        if changes and name != "requires_grad_" and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


def test_no_variant_changes_what_is_part_of_a_graph(variant):
    policy = make_policy(**variant)
    with InPlace() as seen:
        mean_loss(policy, make_batch(policy)).backward()
    # A ResNet's own ReLUs write over their input: what is before them does not need it, and they need their output alone.
    assert set(seen.calls) == ({"relu"} if variant.get("vision") == "torchvision" else set())


def test_such_changes_are_seen():
    x = torch.ones(3, requires_grad=True) * 1
    with InPlace() as seen:
        x += 1
        x[0] = 2
        torch.relu_(x)
        nn.ReLU(inplace=True)(x)
    assert seen.calls == ["add_", "__setitem__", "relu_", "relu"]


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
