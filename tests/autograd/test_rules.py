"""Autograd's rules on in-place changes, on backward and on the graph, tested on the policy."""

import ast
import re

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tests.factory import ROOT, make_batch, make_policy, mean_loss
from vla_mini.parts import KINDS

FILES = [path for kind in KINDS for path in (ROOT / "vla_mini" / kind).glob("*.py")]
FILES += [ROOT / "vla_mini" / name for name in ("policy.py", "utils/layers.py", "normalization.py")]


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


# Code that looks like an in-place change of a tensor and is none, and why.
HARMLESS = {
    "self._cache[row] = self._encode_one(row, tokens.device)": "a dict of embeddings, by instruction",
    "terms[name] = auxiliary.loss(context, batch)[:, None] * valid": "a dict of loss terms, by name",
    "targets |= found": "a dict of arrays, before training",
    "closes[data.episode_starts] = closed[data.episode_starts]": "a NumPy array, before training",
}
SETUP = ("__init__", "fit", "load_assets", "_build")


def changes_in_place(code: str) -> list[str]:
    """`x += y`, `x[...] = y`, `x.mul_(y)` and `out=x` in functions other than those that set up weights."""
    found = []
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef) and node.name not in SETUP]
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


def test_no_part_changes_tensors_in_place():
    found = {change: path.name for path in FILES for change in changes_in_place(path.read_text())}
    assert found.keys() <= HARMLESS.keys(), {change: found[change] for change in found.keys() - HARMLESS.keys()}
    assert HARMLESS.keys() <= found.keys(), "an entry of HARMLESS is no longer in the code"


def test_the_search_finds_every_kind_of_in_place_change():
    lines = ["x += y", "x[:, 0] = y", "x.mul_(y)", "torch.add(x, y, out=x)"]
    code = "def f(x, y):\n" + "".join(f"    {line}\n" for line in lines)
    assert changes_in_place(code) == lines
    harmless = ["x = x + 1", "terms['action'] = x", "names |= {'a': x}", "x.requires_grad_()"]
    assert changes_in_place("def f(x, terms, names):\n" + "".join(f"    {line}\n" for line in harmless)) == []


class InPlace(TorchFunctionMode):
    """Records each call, ours or a library's, that changes a tensor of a graph in place."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        changes = name == "__setitem__" or re.fullmatch(r"[a-z]\w*[a-z]_", name) or (kwargs or {}).get("inplace")
        if changes and name != "requires_grad_" and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


def test_no_variant_changes_a_tensor_of_the_graph(variant):
    policy = make_policy(**variant)
    with InPlace() as changes:
        mean_loss(policy, make_batch(policy)).backward()
    # The ReLUs of a ResNet overwrite their input, which no backward needs.
    assert set(changes.calls) == ({"relu"} if variant.get("vision") == "torchvision" else set())


def test_in_place_calls_are_recorded():
    x = torch.ones(3, requires_grad=True) * 1
    with InPlace() as changes:
        x += 1
        x[0] = 2
        torch.relu_(x)
        nn.ReLU(inplace=True)(x)
    assert changes.calls == ["add_", "__setitem__", "relu_", "relu"]


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
