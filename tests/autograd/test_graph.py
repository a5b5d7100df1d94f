"""The computational graph: every node counted once, and each with the module that made it."""

import pytest
import torch
from torch import nn

from tests.factory import make_batch, make_policy
from vla_mini.autograd.batches import mean_loss
from vla_mini.autograd.graph import component_of, trace_graph

JOIN = {
    ("vision", "projection.vision"),
    ("language", "projection.language"),
    ("projection.vision", "trunk"),
    ("projection.language", "trunk"),
    ("state", "trunk"),
}
HEADS = {
    ("trunk", "action"),
    ("trunk", "auxiliary.keyframe"),
    ("action", "loss"),
    ("auxiliary.keyframe", "loss"),
}


def count(root) -> int:
    """The number of nodes behind `root`, counted by another algorithm than the package's."""
    seen, level = set(), {root}
    while level:
        seen |= level
        level = {behind for node in level for behind, _ in node.next_functions if behind is not None} - seen
    return len(seen)


def test_edges_lead_from_the_encoders_through_the_trunk_to_the_heads_and_the_loss():
    policy = make_policy()
    assert set(trace_graph(policy, make_batch(policy)).edges) == JOIN | HEADS


def test_every_node_is_counted_once():
    policy = make_policy(vision="patch", action="bins")
    batch = make_batch(policy)
    graph = trace_graph(policy, batch)
    assert graph.num_nodes == count(mean_loss(policy, batch).grad_fn) == sum(graph.by_kind.values())
    assert graph.by_kind["AccumulateGrad"] == len(list(policy.parameters()))
    assert list(graph.by_kind.values()) == sorted(graph.by_kind.values(), reverse=True)
    assert sum(graph.modules.values()) == sum(n for name, n in graph.components.items() if name != "loss")
    assert sum(graph.components.values()) <= graph.num_nodes  # the others belong to no component


def test_nodes_belong_to_the_layer_whose_forward_made_them():
    policy = make_policy()
    modules = trace_graph(policy, make_batch(policy)).modules
    assert modules["state"] == 4  # addmm, the transposed weight, and the leaves of weight and bias
    assert modules["action.layers.1"] == 1  # relu
    assert modules["vision.stem"] == 3  # convolution, weight, bias
    assert list(modules).index("vision.stem") < list(modules).index("vision.blocks.0") < list(modules).index("action.layers.0")


def test_a_frozen_part_is_not_in_the_graph():
    policy = make_policy()
    policy.vision.requires_grad_(False)
    graph = trace_graph(policy, make_batch(policy))
    assert set(graph.edges) == (JOIN | HEADS) - {("vision", "projection.vision")}
    assert "vision" not in graph.components


def test_a_detached_context_has_no_edge_to_the_head():
    policy = make_policy(auxiliary="none", backbone_action={"_target_": "vla_mini.action.bins.BinsHead"})
    edges = set(trace_graph(policy, make_batch(policy)).edges)
    assert ("trunk", "backbone_action") in edges and ("action", "loss") in edges
    assert ("trunk", "action") not in edges


def test_parameters_used_outside_of_a_forward_belong_to_their_component():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

    policy = make_policy(auxiliary="none")
    policy.scale = Scale()
    loss = policy.loss
    policy.loss = lambda batch: (loss(batch)[0] * policy.scale.factor, {})
    graph = trace_graph(policy, make_batch(policy))
    assert graph.components["scale"] == 2  # the factor, and the product with it
    assert {("action", "scale"), ("scale", "loss")} <= set(graph.edges)


def test_hooks_are_removed():
    policy = make_policy()
    trace_graph(policy, make_batch(policy))
    assert not any(module._forward_hooks or "loss" in vars(module) for module in policy.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vision.blocks.0", "vision"), ("projection.vision", "projection.vision"), ("state", "state"), ("trunk", "trunk")],
)
def test_components(name, expected):
    assert component_of(make_policy(), name) == expected
