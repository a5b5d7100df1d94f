"""One backward pass, node by node, as autograd ran it: policy, micro-batches, switches -> Trace.

A prehook on each node of the graph notes the gradients that arrive there, in the order in which autograd runs the nodes. The
pass itself is that of a plain `backward()`. All of it happens on a copy of the policy.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map_only

from vla_mini.autograd.batches import NoiseSlice, seeded
from vla_mini.autograd.graph import LOSS, component_of, find_owners, operation, reachable, recorded_calls
from vla_mini.autograd.norms import gradients_of
from vla_mini.finetuning.freezing import freeze
from vla_mini.policy import Policy
from vla_mini.types import Batch, Context, Observation
from vla_mini.utils.schema import StrictModel

PIXELS, STATE = "pixels", "state values"  # the inputs that a gradient can arrive at; words are looked up, not computed with
SEED = 0  # of the noise that sampling heads draw


class Switches(StrictModel):
    """What changes the backward pass."""

    detach: Literal["context", "image tokens", "words", "state"] | None = None  # the head's, or one of the trunk's inputs
    freeze: list[str] = Field(default=[], max_length=16)  # submodules whose parameters require no gradient
    no_grad: Literal["everything", "vision", "language", "trunk"] | None = None  # what is computed without a graph
    bf16: bool = False  # the forward pass under autocast
    accumulate: bool = False  # two micro-batches instead of one
    inputs: bool = True  # whether pixels and state require a gradient, as for a saliency map; in training they do not


class Step(NamedTuple):
    """A node of the graph, at the moment when autograd runs it."""

    operation: str
    node: str  # the class that torch gives it
    component: str  # of the policy; the inputs and the loss count as such, too
    module: str  # the innermost, which may be the component itself
    parameter: str | None  # of an AccumulateGrad
    gradients: tuple[Tensor | None, ...]  # by the outputs of the operation; None where an output was not used
    following: tuple[int, ...]  # the steps that get gradients from here
    attention: bool  # whether its output is the trunk's attention
    micro_batch: int


class Trace(NamedTuple):
    steps: list[Step]
    loss: float
    gradients: dict[str, Tensor]  # by parameter, and by input: what is in `.grad` at the end
    error: str | None  # torch's own message, where there is no graph to go through


def trace_backward(policy: Policy, batches: Sequence[Batch], switches: Switches) -> Trace:
    """The backward passes of the mean loss over the valid actions of all `batches`, one after another.

    Raises ValueError for a part that the policy does not have, and where nothing trainable is left.
    """
    policy = _switched(policy, switches)
    total, size = sum(int((~batch.is_pad).sum()) for batch in batches), sum(len(batch.actions) for batch in batches)
    steps, loss, inputs, first = [], 0.0, {PIXELS: [], STATE: []}, 0
    for index, batch in enumerate(batches):
        leaves: dict[str, Tensor] = {}
        with (
            seeded(SEED, policy.device),
            NoiseSlice(first, size),
            torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=switches.bf16),
            torch.set_grad_enabled(switches.no_grad != "everything"),
            _input_leaves(policy, leaves, enabled=switches.inputs),
            recorded_calls(policy) as calls,
            _attention(policy) as attention,
        ):
            part = policy.loss(batch)[0].sum() / total
        loss, first = loss + part.item(), first + len(batch.actions)
        if part.grad_fn is None:
            return Trace([], loss, {}, _error_of_backward(part))
        nodes = list(reachable([part.grad_fn]))
        ran = run_backward(part, nodes)
        owners = find_owners(policy, nodes, calls)
        owners |= {node: name for node in nodes for name, leaf in leaves.items() if _variable(node) is leaf}
        steps += _steps(policy, ran, owners, attention, start=len(steps), micro_batch=index)
        for name, leaf in leaves.items():
            inputs[name] += [] if leaf.grad is None else [leaf.grad]
    return Trace(steps, loss, gradients_of(policy) | {name: torch.cat(found) for name, found in inputs.items() if found}, None)


def run_backward(loss: Tensor, nodes: Collection[Node]) -> list[tuple[Node, tuple[Tensor | None, ...]]]:
    """`loss.backward()`, and each of the `nodes` with the gradients that arrive there, in the order in which they run."""
    ran: list[tuple[Node, tuple[Tensor | None, ...]]] = []

    def note(node: Node, gradients: tuple[Tensor | None, ...]) -> None:
        # Copies, since autograd adds to some of these tensors later.
        ran.append((node, tuple(None if gradient is None else gradient.detach().clone() for gradient in gradients)))

    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.register_prehook(partial(note, node)).remove)
        loss.backward()
    return ran


def _steps(
    policy: Policy,
    ran: list[tuple[Node, tuple[Tensor | None, ...]]],
    owners: dict[Node, str],
    attention: Collection[Node],
    *,
    start: int,
    micro_batch: int,
) -> Iterator[Step]:
    """The first nodes are the loss's; one between two modules counts to the component that it leads to."""
    order = {node: start + index for index, (node, _) in enumerate(ran)}
    parameters = {parameter: name for name, parameter in policy.named_parameters()}
    of_loss = set(reachable([ran[0][0]], until=owners))
    components: dict[Node, str] = {}
    for node, _ in reversed(ran):  # those that a gradient leads to run later
        owner = owners.get(node)
        if owner is None:
            leads_to = next((components[other] for other, _ in node.next_functions if other in components), LOSS)
            components[node] = LOSS if node in of_loss else leads_to
        else:
            components[node] = owner if owner in (PIXELS, STATE) else component_of(policy, owner)
    for node, gradients in ran:
        yield Step(
            operation(node),
            node.name(),
            components[node],
            owners.get(node, components[node]),
            parameters.get(_variable(node)),
            gradients,
            tuple(order[other] for other, _ in node.next_functions if other in order),
            node in attention,
            micro_batch,
        )


def _variable(node: Node) -> Tensor | None:
    return node.variable if operation(node) == "AccumulateGrad" else None


def _error_of_backward(loss: Tensor) -> str:
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("a loss without a graph went through backward")


# ---- the copy


def _switched(policy: Policy, switches: Switches) -> Policy:
    """A copy without gradients, with the switches that concern its modules."""
    policy = copy.deepcopy(policy)
    policy.zero_grad(set_to_none=True)
    if switches.freeze:
        freeze(policy, switches.freeze)
    if switches.no_grad in ("vision", "language", "trunk"):
        module = policy.get_submodule(switches.no_grad)
        module.forward = torch.no_grad()(module.forward)
    if switches.detach == "context":
        policy.action.loss = partial(_detached_context, policy.action.loss)
    elif switches.detach:
        position = {"image tokens": 0, "words": 1, "state": 3}[switches.detach]
        policy.trunk.register_forward_pre_hook(partial(_detached_argument, position))
    return policy


def _detached_context(loss: Callable[..., Tensor], context: Context, *args: Any) -> Tensor:
    """As `Policy.loss` does it for knowledge insulation."""
    return loss(tree_map_only(Tensor, Tensor.detach, context), *args)


def _detached_argument(position: int, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*args[:position], args[position].detach(), *args[position + 1 :])


@contextmanager
def _input_leaves(policy: Policy, leaves: dict[str, Tensor], *, enabled: bool) -> Iterator[None]:
    """Inside, images and state are leaves that require a gradient; `leaves` gets them."""

    def prepare(observation: Observation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, words, mask, state = Policy.prepare(policy, observation)
        for name, tensor, source in ((PIXELS, images, "images"), (STATE, state, "state")):
            leaves[name] = tensor.detach().clone().requires_grad_(enabled and source not in policy.ablate)
        return leaves[PIXELS], words, mask, leaves[STATE]

    policy.prepare = prepare
    yield
    del policy.prepare


@contextmanager
def _attention(policy: Policy) -> Iterator[list[Node]]:
    """Yields a list that gets the node whose output is the trunk's attention, if it has one."""
    nodes: list[Node] = []

    def note(_module: nn.Module, _args: Any, context: Context) -> None:
        if context.attention is not None and context.attention.grad_fn is not None:
            nodes.append(context.attention.grad_fn)

    with policy.trunk.register_forward_hook(note):
        yield nodes
