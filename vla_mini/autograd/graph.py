"""The computational graph: loss.grad_fn -> every node behind it, by kind and by the module that made it.

The graph knows no modules. So while the loss is computed, forward hooks remember the nodes that enter and leave each module:
what lies between them is its own. Nodes that belong to none, such as a loss computed outside of any forward, go with the
parameters that they use, or stay between the modules.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from vla_mini.autograd.flow import mean_loss
from vla_mini.policy import Policy
from vla_mini.types import Batch

LOSS = "loss"  # what comes after the last module


class Graph(NamedTuple):
    num_nodes: int
    by_kind: dict[str, int]  # the commonest first
    modules: dict[str, int]  # nodes of each module, but not of those inside it, in the order of the forward pass
    components: dict[str, int]  # nodes of each component, of what lies within it, and of the loss
    edges: list[tuple[str, str]]  # component -> component, the way that the data flows


class _Call(NamedTuple):
    """One call of a module."""

    name: str
    entering: list[Node]
    leaving: list[Node]


def trace_graph(policy: Policy, batch: Batch) -> Graph:
    """The graph of the batch's mean loss."""
    with _recorded_calls(policy) as calls:
        loss = mean_loss(policy, batch)
    nodes = list(_behind([loss.grad_fn]))
    owners = _owners(policy, nodes, calls)
    modules = Counter(owners.values())
    order = dict.fromkeys([*(call.name for call in calls), *modules])
    components = {node: component(policy, name) for node, name in owners.items()}
    sizes = Counter(components.values())
    return Graph(
        num_nodes=len(nodes),
        by_kind=dict(Counter(map(kind, nodes)).most_common()),
        modules={name: modules[name] for name in order if modules[name]},
        components={name: sizes[name] for name in dict.fromkeys(component(policy, name) for name in order) if sizes[name]}
        | {LOSS: sum(1 for _ in _behind([loss.grad_fn], until=components))},
        edges=_edges(loss.grad_fn, nodes, components),
    )


def kind(node: Node) -> str:
    """`AddmmBackward0` -> `Addmm`: which operation it is the backward of. `AccumulateGrad` is a parameter's leaf."""
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def component(policy: nn.Module, name: str) -> str:
    """The part of the policy that a module lies in: `vision`, `projection.language`, `action` ... Mere lists and mappings of
    modules are no parts, but those in them are."""
    first, *rest = name.split(".")
    while rest and isinstance(policy.get_submodule(first), nn.ModuleList | nn.ModuleDict):
        first = f"{first}.{rest.pop(0)}"
    return first


def _owners(policy: nn.Module, nodes: list[Node], calls: list[_Call]) -> dict[Node, str]:
    """node -> the innermost module that made it, for the nodes that any made."""
    owners: dict[Node, str] = {}
    for call in sorted(calls, key=lambda call: call.name.count(".")):  # those inside take from those around them
        owners |= {node: call.name for node in _behind(call.leaving, until=set(call.entering))}
    modules = {parameter: name.rpartition(".")[0] or name for name, parameter in policy.named_parameters()}
    leaves = {node: modules[node.variable] for node in nodes if kind(node) == "AccumulateGrad"}
    for node in nodes:  # what uses a parameter outside of any module's forward
        for leaf in _next(node):
            if leaf in leaves:
                owners.setdefault(node, leaves[leaf])
    return owners | leaves


def _edges(root: Node, nodes: list[Node], components: dict[Node, str]) -> list[tuple[str, str]]:
    """Which component's output enters which, whatever lies between them."""
    found: dict[tuple[str, str], None] = {}
    for node in nodes:
        if node in components or node is root:
            between = _behind(_next(node), until=components)
            for behind in (behind for inner in (node, *between) for behind in _next(inner) if behind in components):
                found[components[behind], components.get(node, LOSS)] = None
    return [(source, target) for source, target in found if source != target]


def _behind(start: Iterable[Node], until: Container[Node] = ()) -> Iterator[Node]:
    """All nodes that can be reached from `start` against the flow of the data, up to but without `until`."""
    seen: set[Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in seen and node not in until:
            seen.add(node)
            yield node
            waiting += _next(node)


def _next(node: Node) -> list[Node]:
    return [behind for behind, _ in node.next_functions if behind is not None]


@contextmanager
def _recorded_calls(policy: nn.Module) -> Iterator[list[_Call]]:
    """Fills, while the policy computes, with the calls of its modules, the innermost first."""
    calls: list[_Call] = []

    def record(name: str, inputs: Any, output: Any) -> None:
        calls.append(_Call(name, _grad_fns(inputs), _grad_fns(output)))

    handles = [
        module.register_forward_hook(
            lambda _module, args, kwargs, output, name=name: record(name, (args, kwargs), output), with_kwargs=True
        )
        for name, module in policy.named_modules()
        if name
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _grad_fns(values: Any) -> list[Node]:
    return [leaf.grad_fn for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
