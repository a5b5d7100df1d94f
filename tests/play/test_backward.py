"""The tab "Backward": what it shows is what `backward()` computed, bit by bit, in the order in which autograd ran it."""

import base64
import copy
import json
import math

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.factory import make_batch, make_policy, mean_loss, spec
from vla_mini.autograd.batches import NoiseSlice, select
from vla_mini.play.backward import answer
from vla_mini.play.rules import RULES
from vla_mini.play.trace import PIXELS, SEED, STATE, Switches, trace_backward
from vla_mini.testing import as_float64

VARIANTS = {  # small, since each test computes several backward passes
    "default": {"action": spec("action", "regression") | {"hidden": 32}, "vision": spec("vision", "conv") | {"width": 16}},
    "flow, patch, joint": {
        "action": spec("action", "flow") | {"hidden": 32, "depth": 1},
        "vision": spec("vision", "patch") | {"depth": 1},
        "trunk": spec("trunk", "joint") | {"depth": 1},
        "auxiliary": "none",
    },
}
CUT_OFF = {  # by detach: the components that then get no gradient
    "image tokens": {"vision", "projection.vision", PIXELS},
    "words": {"language", "projection.language"},
    "state": {"state", STATE},
}
SWITCHES = [
    *({"detach": name} for name in ("context", *CUT_OFF)),
    {"freeze": ["vision"]},
    {"freeze": ["trunk", "projection.language"], "inputs": False},
    *({"no_grad": name} for name in ("everything", "vision", "language", "trunk")),
    {"bf16": True},
    {"accumulate": True},
]


@pytest.fixture(params=VARIANTS, scope="module")
def exact(request):
    """A policy and a batch of 16 in float64, which no test changes."""
    policy = make_policy(**VARIANTS[request.param])
    return as_float64(policy, make_batch(policy, 16))


def plain_gradients(policy, batch, *, autocast=False):
    """What a plain backward pass of the mean loss leaves in `.grad`. The policy is a copy of its own."""
    torch.manual_seed(SEED)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = mean_loss(policy, batch)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, gradient in expected.items() if not torch.equal(found[name], gradient)] == []


def of_parameters(trace):
    return {name: gradient for name, gradient in trace.gradients.items() if name not in (PIXELS, STATE)}


def component(name):
    first, second, *_ = [*name.split("."), ""]
    return f"{first}.{second}" if first in ("projection", "auxiliary") else first


# ---- the pass without switches


def test_the_gradients_are_those_of_backward(exact):
    policy, batch = exact
    loss, expected = plain_gradients(copy.deepcopy(policy), select(batch, [5]))
    trace = trace_backward(policy, [select(batch, [5])], Switches())
    assert trace.loss == loss
    assert_same(of_parameters(trace), expected)
    assert_same({step.parameter: step.gradients[0] for step in trace.steps if step.parameter}, expected)


def test_the_page_shows_these_numbers(exact):
    policy, batch = exact
    loss, expected = plain_gradients(copy.deepcopy(policy), select(batch, [5]))
    shown = answer(policy, batch, {"sample": 5})
    assert shown["loss"] == loss and shown["dtype"] == "float64"
    norms = {step["parameter"]: step["norm"] for step in shown["steps"] if step["parameter"]}
    assert norms == {name: gradient.norm().item() for name, gradient in expected.items()}
    for row in shown["components"]:
        own = [gradient.norm().item() for name, gradient in expected.items() if component(name) == row["name"]]
        if own:
            assert row["norm"] == math.hypot(*own) and row["difference"] == 0
            assert row["parameters"] == sum(g.numel() for name, g in expected.items() if component(name) == row["name"])


def test_the_order_and_each_gradient_are_those_of_a_plain_backward(exact):
    policy, batch = exact
    own = copy.deepcopy(policy)
    torch.manual_seed(SEED)
    loss = mean_loss(own, select(batch, [0]))
    ran, nodes, waiting = [], [], [loss.grad_fn]
    for node in waiting:  # a walk of its own; hooks that run after each node, where the package's run before
        if node not in nodes:
            nodes.append(node)
            node.register_hook(lambda _, outputs, node=node: ran.append((node.name(), [*outputs])))
            waiting += [following for following, _ in node.next_functions if following is not None]
    loss.backward()
    steps = trace_backward(policy, [select(batch, [0])], Switches(inputs=False)).steps
    assert [step.node for step in steps] == [name for name, _ in ran]
    for step, (_, gradients) in zip(steps, ran, strict=True):
        if step.parameter is None:  # what AccumulateGrad puts out is nothing
            assert all(map(equal_or_none, step.gradients, gradients)), step


def equal_or_none(found, expected):
    return found is expected is None or torch.equal(found, expected)


def test_gradients_reach_the_pixels_and_the_state(exact):
    policy, batch = exact
    own, inputs = copy.deepcopy(policy), {}

    def leaf(name):
        def make(_module, args):
            inputs[name] = args[0].detach().requires_grad_()
            return (inputs[name],)

        return make

    own.vision.register_forward_pre_hook(leaf("images"))
    own.state.register_forward_pre_hook(leaf("state"))
    plain_gradients(own, select(batch, [3]))
    trace = trace_backward(policy, [select(batch, [3])], Switches())
    assert torch.equal(trace.gradients[PIXELS][0], inputs["images"].grad)
    assert trace.gradients[STATE].shape == inputs["state"].grad.shape  # in raw units
    assert trace.steps[-1].component == "language" and {step.component for step in trace.steps} >= {PIXELS, STATE}


def test_following_steps_come_later_and_all_are_reached(exact):
    policy, batch = exact
    steps = answer(policy, batch, {})["steps"]
    assert all(later > index for index, step in enumerate(steps) for later in step["following"])
    assert {later for step in steps for later in step["following"]} == set(range(1, len(steps)))


def test_segments_are_runs_of_one_component(exact):
    policy, batch = exact
    shown = answer(policy, batch, {"accumulate": True})
    covered = [index for run in shown["segments"] for index in range(run["first"], run["last"] + 1)]
    assert covered == [*range(len(shown["steps"]))]
    for run in shown["segments"]:
        assert {step["component"] for step in shown["steps"][run["first"] : run["last"] + 1]} == {run["component"]}
    assert {"loss", "action", "trunk", "vision", "language", PIXELS} <= {name for edge in shown["edges"] for name in edge}


# ---- switches


def test_a_detached_context_insulates_the_backbone_from_the_head(exact):
    policy, batch = exact
    own, one = copy.deepcopy(policy), select(batch, [0])
    torch.manual_seed(SEED)
    images, words, mask, state = own.prepare(one.observation)
    context = own.context(images, words, state, mask)
    detached = tree_map_only(torch.Tensor, torch.Tensor.detach, context)
    loss = own.action.loss(detached, own.normalization.action(one.actions, state), one.is_pad) * ~one.is_pad
    for auxiliary in own.auxiliary.values():
        loss = loss + auxiliary.weight * (auxiliary.loss(context, one)[:, None] * ~one.is_pad)
    (loss.sum() / (~one.is_pad).sum()).backward()
    expected = {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}
    trace = trace_backward(policy, [one], Switches(detach="context"))
    assert_same(of_parameters(trace), expected)
    assert ("trunk" in {step.component for step in trace.steps}) == bool(policy.auxiliary)


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_detached_input_of_the_trunk_ends_the_flow_there(exact, name):
    policy, batch = exact
    _, expected = plain_gradients(copy.deepcopy(policy), select(batch, [0]))
    trace = trace_backward(policy, [select(batch, [0])], Switches(detach=name))
    kept = {key: value for key, value in expected.items() if component(key) not in CUT_OFF[name]}
    assert len(kept) < len(expected)
    assert_same(of_parameters(trace), kept)
    shown = answer(policy, batch, {"detach": name})
    assert {row["name"] for row in shown["components"] if row["had_gradient"] and not row["has_gradient"]} == CUT_OFF[name]
    assert all(part in shown["notes"][0] for part in CUT_OFF[name])


@pytest.mark.parametrize("inputs", [True, False])
def test_frozen_parameters_get_no_gradient_and_all_others_the_same(exact, inputs):
    policy, batch = exact
    own = copy.deepcopy(policy)
    own.vision.requires_grad_(False)
    _, expected = plain_gradients(own, select(batch, [0]))
    switches = Switches(freeze=["vision"], inputs=inputs)
    trace = trace_backward(policy, [select(batch, [0])], switches)
    assert_same(of_parameters(trace), expected)
    passed = {step.component for step in trace.steps}
    assert ("vision" in passed, PIXELS in passed) == (inputs, inputs)  # it is gone through where something behind it asks
    words = "goes through vision" if inputs else "ends before vision"
    assert words in answer(policy, batch, switches.model_dump())["notes"][0]


@pytest.mark.parametrize("name", ["vision", "language", "trunk"])
def test_no_grad_within_a_part(exact, name):
    policy, batch = exact
    own = copy.deepcopy(policy)
    own.get_submodule(name).register_forward_hook(
        lambda _m, _a, output: tree_map_only(torch.Tensor, torch.Tensor.detach, output)
    )
    _, expected = plain_gradients(own, select(batch, [0]))
    trace = trace_backward(policy, [select(batch, [0])], Switches(no_grad=name))
    assert_same(of_parameters(trace), expected)
    assert name not in {step.component for step in trace.steps}


def test_no_grad_around_everything_is_torchs_own_error(exact):
    policy, batch = exact
    with torch.no_grad():
        loss = mean_loss(policy, batch)
    with pytest.raises(RuntimeError) as error:
        loss.backward()
    shown = answer(policy, batch, {"no_grad": "everything"})
    assert shown["error"] == str(error.value) and shown["steps"] == []
    assert shown["error"] in shown["notes"][0] and shown["loss"] == shown["plain_loss"]


@pytest.mark.parametrize("parts", VARIANTS.values(), ids=VARIANTS)
def test_bf16_is_autocast_and_is_compared_with_fp32(parts):
    policy = make_policy(**parts)
    batch = make_batch(policy, 16)
    _, rounded = plain_gradients(copy.deepcopy(policy), select(batch, [0]), autocast=True)
    _, single = plain_gradients(copy.deepcopy(policy), select(batch, [0]))
    shown = answer(policy, batch, {"bf16": True})
    assert_same(of_parameters(trace_backward(policy, [select(batch, [0])], Switches(bf16=True))), rounded)
    for row in shown["components"]:
        own = [name for name in rounded if component(name) == row["name"]]
        if own:
            apart = math.hypot(*((rounded[name] - single[name]).norm().item() for name in own))
            assert row["difference"] == apart / math.hypot(*(single[name].norm().item() for name in own))
            assert row["difference"] > 0
    assert {"bfloat16", "float32"} <= {step["dtype"] for step in shown["steps"]}


def test_two_micro_batches_add_up_in_grad(exact):
    policy, batch = exact
    own, total = copy.deepcopy(policy), int((~select(batch, [3, 4]).is_pad).sum())
    for index, sample in enumerate([3, 4]):
        torch.manual_seed(SEED)
        with NoiseSlice(index, 2):
            (own.loss(select(batch, [sample]))[0].sum() / total).backward()
    expected = {name: parameter.grad for name, parameter in own.named_parameters()}
    trace = trace_backward(policy, [select(batch, [3]), select(batch, [4])], Switches(accumulate=True))
    assert_same(of_parameters(trace), expected)
    assert [step.micro_batch for step in trace.steps] == sorted(step.micro_batch for step in trace.steps)
    shown = answer(policy, batch, {"sample": 3, "accumulate": True})
    assert max(row["difference"] for row in shown["components"] if row["difference"] is not None) < 1e-12  # of one batch of two
    assert len(shown["cameras"]) == 2


# ---- pictures and words


def decoded(drawn):
    values = np.frombuffer(base64.b64decode(drawn["data"]), np.int8).astype(float) / 127 * drawn["largest"]
    return torch.from_numpy(values).reshape(-1, drawn["rows"], drawn["columns"])


def test_pictures_show_the_gradient_where_it_belongs():
    policy = make_policy()
    batch = make_batch(policy, 16)
    trace, shown = trace_backward(policy, [select(batch, [0])], Switches()), answer(policy, batch, {})
    drawn = {index: step["picture"] for index, step in enumerate(shown["steps"]) if step["picture"]}
    pixels = next(
        index for index, step in enumerate(trace.steps) if step.component == PIXELS and step.operation == "AccumulateGrad"
    )
    expected = trace.gradients[PIXELS][0].abs().sum(dim=1)
    assert (decoded(drawn[pixels]) - expected).abs().max() <= expected.max() / 250
    attention = next(index for index, step in enumerate(trace.steps) if step.attention)
    expected = trace.steps[attention].gradients[0][0].unflatten(1, policy.vision.grid).abs()
    assert (decoded(drawn[attention]) - expected).abs().max() <= expected.max() / 250
    words = next(index for index, step in enumerate(trace.steps) if step.component == "language")
    assert drawn[words]["labels"][1:] == ["pick", "up", "the", "red", "cube"]
    assert drawn[words]["values"] == trace.steps[words].gradients[0][0].norm(dim=1).tolist()
    table = next(index for index, step in enumerate(trace.steps) if step.parameter == "language.table.weight")
    assert set(drawn[table]["labels"]) == set(drawn[words]["labels"])


def test_a_large_matrix_shows_the_largest_value_of_each_cell():
    policy = make_policy()
    batch = make_batch(policy, 16)
    step = next(step for step in answer(policy, batch, {})["steps"] if step["parameter"] == "action.layers.2.weight")
    _, gradients = plain_gradients(policy, select(batch, [0]))
    gradient = gradients["action.layers.2.weight"]  # 256 x 256
    cells = gradient.unflatten(0, (32, 8)).unflatten(2, (64, 4)).permute(0, 2, 1, 3).flatten(2)
    expected = cells.gather(2, cells.abs().argmax(dim=2, keepdim=True))[..., 0]
    assert (decoded(step["picture"])[0] - expected).abs().max() <= gradient.abs().max() / 250


@pytest.mark.parametrize("parts", [{"action": "bins"}, {"action": "diffusion"}, *VARIANTS.values()])
def test_every_operation_has_its_derivative_in_words(parts):
    policy = make_policy(**parts)
    shown = answer(policy, make_batch(policy, 2), {"bf16": True})
    assert {step["operation"] for step in shown["steps"]} - RULES.keys() == set()
    json.dumps(shown, allow_nan=False)


def test_an_unknown_operation_gets_a_general_sentence():
    policy = make_policy(auxiliary="none")
    forward = policy.trunk.forward
    policy.trunk.forward = lambda *args: (lambda context: context._replace(tokens=torch.erf(context.tokens)))(forward(*args))
    (step,) = [step for step in answer(policy, make_batch(policy, 2), {})["steps"] if step["operation"] == "Erf"]
    assert "Jacobian of Erf" in step["rule"]


def test_gradients_that_are_not_finite_are_said_in_words():
    policy = make_policy()
    with torch.no_grad():
        policy.state.weight.fill_(math.inf)
    shown = answer(policy, make_batch(policy, 2), {})
    json.dumps(shown, allow_nan=False)
    assert "not finite" in [step["norm"] for step in shown["steps"]]


# ---- what it leaves alone, and what it refuses


@pytest.mark.parametrize("request_", SWITCHES, ids=str)
def test_the_policy_and_the_batch_stay_as_they_are(request_):
    policy = make_policy(action=VARIANTS["flow, patch, joint"]["action"])
    batch = make_batch(policy, 16)
    policy.state.requires_grad_(False)
    mean_loss(policy, batch).backward()
    before, samples = copy.deepcopy(policy), copy.deepcopy(batch)
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}
    attributes = {name: sorted(vars(module)) for name, module in policy.named_modules()}
    state = torch.get_rng_state()
    answer(policy, batch, request_)
    trace_backward(policy, [batch], Switches())  # which gets the caller's own tensors
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(policy.state_dict(), before.state_dict())
    assert_same({name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, gradients)
    for (name, parameter), other in zip(policy.named_parameters(), before.parameters(), strict=True):
        assert (parameter.requires_grad, parameter.dtype) == (other.requires_grad, other.dtype), name
    assert {name: sorted(vars(module)) for name, module in policy.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())
    assert all(map(torch.equal, tree_leaves(batch), tree_leaves(samples)))
    assert not any(tensor.requires_grad for tensor in tree_leaves(batch))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"sample": 16}, "sample=16 is not one of the 16 samples, 0 to 15"),
        ({"sample": "1"}, "sample='1' is not an integer"),
        ({"detach": "contxt"}, "did you mean 'context'"),
        ({"dtach": "context"}, "unknown key 'dtach'"),
        ({"freeze": ["visn"]}, "the policy has no part 'visn'; did you mean 'vision'"),
        (
            {"freeze": ["vision", "language", "trunk", "action", "state", "projection", "auxiliary"]},
            "nothing trainable is left",
        ),
    ],
)
def test_wrong_requests_get_one_line(request_, message):
    policy = make_policy()
    with pytest.raises(ValueError) as error:
        answer(policy, make_batch(policy, 16), request_)
    assert message in str(error.value) and "\n" not in str(error.value)
