"""The computational graph: loss.grad_fn -> all nodes behind it, counted by operation, by module and by component.

The graph has no information about modules. So, while the loss is computed, forward hooks record the nodes at the input and at
the output of each module: the nodes between them belong to it. A node outside of every forward pass, such as a loss function's,
belongs to the module whose parameter it uses, or to none.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from vla_mini.autograd.batches import forward_hooks, mean_loss
from vla_mini.parts import ActionHead, AuxiliaryLoss
from vla_mini.policy import Policy
from vla_mini.types import Batch, Context

LOSS = "loss"  # the component of the nodes after the last module


class Graph(NamedTuple):
    num_nodes: int
    by_kind: dict[str, int]  # nodes of each operation, the most frequent first
    modules: dict[str, int]  # nodes of each module, without those of modules inside it, in the order of the forward pass
    components: dict[str, int]  # nodes of each component, with all modules inside it, and of the loss
    edges: list[tuple[str, str]]  # component -> component, in the direction of the data


class Call(NamedTuple):
    """One call of a module, and the graph's nodes at its inputs and outputs."""

    name: str
    inputs: list[Node]
    outputs: list[Node]


def trace_graph(policy: Policy, batch: Batch) -> Graph:
    """The graph of the batch's mean loss."""
    with recorded_calls(policy) as calls:
        loss = mean_loss(policy, batch)
    nodes = list(reachable([loss.grad_fn]))
    owners = find_owners(policy, nodes, calls)
    modules = Counter(owners.values())
    order = dict.fromkeys([*(call.name for call in calls), *modules])
    components = {node: component_of(policy, name) for node, name in owners.items()}
    sizes = Counter(components.values())
    return Graph(
        num_nodes=len(nodes),
        by_kind=dict(Counter(map(operation, nodes)).most_common()),
        modules={name: modules[name] for name in order if modules[name]},
        components={name: sizes[name] for name in dict.fromkeys(component_of(policy, name) for name in order) if sizes[name]}
        | {LOSS: sum(1 for _ in reachable([loss.grad_fn], until=components))},
        edges=_edges(loss.grad_fn, nodes, components),
    )


def operation(node: Node) -> str:
    """The operation whose backward a node is: `AddmmBackward0` -> `Addmm`. `AccumulateGrad` is a parameter's leaf."""
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def component_of(policy: nn.Module, name: str) -> str:
    """The component that a module lies in: `vision`, `projection.language`, `action` ... A ModuleList or ModuleDict is no
    component itself; each of its entries is one."""
    first, *rest = name.split(".")
    while rest and isinstance(policy.get_submodule(first), nn.ModuleList | nn.ModuleDict):
        first = f"{first}.{rest.pop(0)}"
    return first


def find_owners(policy: nn.Module, nodes: list[Node], calls: list[Call]) -> dict[Node, str]:
    """node -> the innermost module that it belongs to; nodes that belong to none are left out."""
    owners: dict[Node, str] = {}
    for call in sorted(calls, key=lambda call: call.name.count(".")):  # inner modules overwrite the modules around them
        owners |= {node: call.name for node in reachable(call.outputs, until=set(call.inputs))}
    modules = {parameter: name.rpartition(".")[0] or name for name, parameter in policy.named_parameters()}
    accumulators = [node for node in nodes if operation(node) == "AccumulateGrad"]
    leaves = {node: modules[node.variable] for node in accumulators if node.variable in modules}  # not those of inputs
    for node in nodes:  # a node outside of every forward pass that uses a parameter
        for leaf in _next(node):
            if leaf in leaves:
                owners.setdefault(node, leaves[leaf])
    return owners | leaves


def _edges(root: Node, nodes: list[Node], components: dict[Node, str]) -> list[tuple[str, str]]:
    """Which component's output is an input of which other, directly or through nodes that belong to no component."""
    found: dict[tuple[str, str], None] = {}
    for node in nodes:
        if node in components or node is root:
            between = reachable(_next(node), until=components)
            for source in (source for inner in (node, *between) for source in _next(inner) if source in components):
                found[components[source], components.get(node, LOSS)] = None
    return [(source, target) for source, target in found if source != target]


def reachable(start: Iterable[Node], until: Container[Node] = ()) -> Iterator[Node]:
    """All nodes that can be reached from `start` in the direction of the backward pass, up to but without `until`."""
    visited: set[Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in visited and node not in until:
            visited.add(node)
            yield node
            waiting += _next(node)


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


@contextmanager
def recorded_calls(policy: Policy) -> Iterator[list[Call]]:
    """Yields a list that gets the calls of all modules, and of `loss` of heads and auxiliary losses, inner modules first."""
    calls: list[Call] = []

    def record(name: str, inputs: Any, output: Any) -> None:
        calls.append(Call(name, _grad_fns(inputs), _grad_fns(output)))

    def record_loss(name: str, loss: Callable[..., Tensor], context: Context, *args: Any) -> Tensor:
        output = loss(context, *args)
        record(name, context, output)
        return output

    heads = [(name, head) for name, head in policy.parts() if isinstance(head, ActionHead | AuxiliaryLoss)]
    with ExitStack() as stack, forward_hooks(policy, record):
        for name, head in heads:  # `loss` is not a forward pass, so it has no hooks
            head.loss = partial(record_loss, name, head.loss)
            stack.callback(delattr, head, "loss")
        yield calls


def _grad_fns(values: Any) -> list[Node]:
    return [leaf.grad_fn for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
