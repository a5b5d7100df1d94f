"""Checks of the policy that training begins with, on one batch of its data; nothing that is handed over is changed."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vla_mini.action.bins import BinsHead
from vla_mini.action.diffusion import DiffusionHead
from vla_mini.action.fast import FastHead
from vla_mini.action.flow import FlowHead
from vla_mini.action.regression import DISTANCES, RegressionHead
from vla_mini.autograd.flow import gradient_flow, mean_loss
from vla_mini.autograd.norms import by_component, components, gradients_of, norms
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding
from vla_mini.normalization import LEAST_SPREAD
from vla_mini.policy import Policy
from vla_mini.training.selection import evaluating
from vla_mini.types import Batch

# Of the largest component's gradient norm: what is smaller does not learn.
LEAST_GRADIENT = 1e-7
# Of the output of an untrained denoiser, whose last layer is a plain nn.Linear over normalised values: a third.
DENOISER_VARIANCE = 1 / 3
# What an untrained output that is not quite zero may add to a loss, where the actions themselves are small.
BEGINNING = 0.2


def normalization(policy: Policy, demonstrations: Demonstrations) -> Finding:
    """Are the statistics in the policy those of its training data, and does the way back undo the way there?"""
    first, last = demonstrations.splits["train"]
    frames = slice(int(demonstrations.episode_starts[first]), int(demonstrations.episode_ends[last - 1]))
    states = torch.from_numpy(demonstrations.states[frames]).repeat(1, policy.history).to(policy.device)
    actions = torch.from_numpy(demonstrations.actions[frames]).to(policy.device)
    norm = policy.normalization
    state, action = norm.state(states), norm.action(actions)
    varied = states.std(dim=0) > LEAST_SPREAD
    moved = actions.amax(dim=0) - actions.amin(dim=0) > 2 * LEAST_SPREAD
    centre = float((state.mean(dim=0).abs() * varied).max())
    scale = float(((state.std(dim=0) - 1).abs() * varied).max())
    reach = float(((action.abs().amax(dim=0) - 1).abs() * moved).max())
    back = float(((norm.raw_action(action) - actions).abs() / norm.action_reach).max())
    measured = f"off by: state mean {centre:.1g}, state std {scale:.1g}, action range {reach:.1g}, there and back {back:.1g}"
    good = centre < 0.05 and scale < 0.05 and reach < 0.01 and back < 1e-4
    advice = "the policy's statistics are not this dataset's: compute them anew from its training split"
    if back >= 1e-4:
        advice = "raw_action must undo action: see vla_mini/normalization.py"
    expected = "states of mean 0 (0.05) and std 1 (0.05), actions reaching 1 (0.01), back to the same (1e-4)"
    return Finding("normalization", "pass" if good else "fail", measured, expected, advice, max(centre, scale, reach, back))


def vision_input(policy: Policy, batch: Batch) -> Finding:
    """Do pixels come to vision's first layer as numbers of the order of one?"""
    images = policy.prepare(batch.observation)[0]
    low, high = float(images.min()), float(images.max())
    seen: list[Tensor] = []
    first = next(module for module in policy.vision.modules() if any(True for _ in module.parameters(recurse=False)))
    layers = [m for m in policy.vision.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for m in layers or [first]]
    with evaluating(policy), torch.no_grad():
        policy.act(batch.observation)
    for handle in handles:
        handle.remove()
    std = float(seen[0].float().std())
    measured = f"images in {low:.3g} to {high:.3g}; the first layer sees a deviation of {std:.2g}"
    good = low >= 0 and high <= 1 and 0.01 < std < 10
    if high < 0.02 or std < 0.01:
        advice = "are they divided by 255 twice? The policy does it, in prepare"
    else:
        advice = (
            "images are to be in [0, 1]: the policy divides the bytes by 255, in prepare; a vision part only shifts and scales"
        )
    return Finding("vision input", "pass" if good else "fail", measured, "in [0, 1]; deviation 0.01 to 10", advice, std)


def paths(policy: Policy, batch: Batch) -> Finding:
    """Do training and acting see the same context, and does `act` say what the head predicts from it?"""
    contexts: list[Any] = []
    handle = policy.trunk.register_forward_hook(lambda _module, _inputs, output: contexts.append(output))
    with evaluating(policy), torch.no_grad():
        policy.loss(batch)
        acted = policy.act(batch.observation, _generator(policy))
        predicted = policy.action.predict(contexts[0], _generator(policy))
    handle.remove()
    expected = policy.normalization.raw_action(predicted.to(policy.normalization.action_centre.dtype))
    context = max(_difference(a, b) for a, b in zip(contexts[0], contexts[-1], strict=True))
    action = _difference(acted / policy.normalization.action_reach, expected / policy.normalization.action_reach)
    measured = f"context differs by {context:.1g}, act from the head's prediction by {action:.1g}"
    if max(context, action) < 1e-4:
        return Finding("acting path", "pass", measured, "below 1e-4", value=max(context, action))
    advice = "act must prepare, normalise and order actions as loss does"
    advice += ": see Policy.act and predict" if context < 1e-4 else ": inputs reach the trunk differently, see Policy.prepare"
    return Finding("acting path", "fail", measured, "below 1e-4", advice, max(context, action))


def padding(policy: Policy, batch: Batch) -> Finding:
    """Do actions past the episode's end cost nothing?"""
    with evaluating(policy), torch.no_grad():
        loss, terms = policy.loss(batch)
    padded = int(batch.is_pad.sum())
    if not padded:
        return Finding("padding", "skip", "no action of the batch lies past its episode's end")
    counted = {name: float(term[batch.is_pad].abs().max()) for name, term in ({"loss": loss} | terms).items()}
    worst = max(counted, key=counted.get)
    measured = f"{padded} of {batch.is_pad.numel()} actions are padding; the largest loss of one is {counted[worst]:.2g}"
    advice = "multiply the loss by ~is_pad: what repeats past the end is no demonstration"
    return Finding("padding", "fail" if counted[worst] else "pass", measured, "0", advice, counted[worst])


def first_loss(policy: Policy, batch: Batch) -> Finding:
    """Is the action loss of the untrained head what an output that knows nothing costs?"""
    expected = expected_loss(policy.action, policy.normalization.action(batch.actions)[~batch.is_pad])
    if expected is None:
        return Finding("first loss", "skip", f"no expectation is known for {type(policy.action).__name__}")
    with evaluating(policy), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        _, terms = policy.loss(batch)
    found = float(terms["action"].sum() / (~batch.is_pad).sum())
    low, high = 0.7 * expected, 1.4 * expected + BEGINNING
    measured = f"{found:.3f}, {found / expected:.2f} of the expected {expected:.3f}"
    status = "pass" if low <= found <= high else "warn" if low / 2 <= found <= 2 * high else "fail"
    advice = "is the target normalised, is the loss averaged over the action's size, does the head begin near zero?"
    return Finding("first loss", status, measured, f"{low:.3f} to {high:.3f}", advice, found / expected)


def expected_loss(head: nn.Module, actions: Tensor) -> float | None:
    """What the valid `actions` (n, a), normalised, cost a head whose output says nothing yet. None for heads unknown here."""
    square = float(actions.square().mean())
    match head:
        case BinsHead():
            return math.log(head.bins)
        case FastHead():
            return math.log(len(head.lengths))
        case RegressionHead():
            return float(DISTANCES[head.distance](torch.zeros_like(actions), actions))
        case FlowHead():  # of the velocity, action - noise
            return square + 1 + DENOISER_VARIANCE
        case DiffusionHead():
            return (square if head.target == "action" else 1) + DENOISER_VARIANCE
    return None


def gradients(policy: Policy, batch: Batch, *, frozen: Sequence[str] = ()) -> Finding:
    """Does a gradient reach each component that is to learn? `frozen`: names of modules that are meant not to."""
    moved = copy.deepcopy(policy)
    learns = [parameter for parameter in moved.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-3)
    mean_loss(moved, batch).backward()
    optimizer.step()  # when zero initialisations have moved
    optimizer.zero_grad()
    mean_loss(moved, batch).backward()
    found = gradients_of(moved)
    size = dict(zip(found, norms(found.values()), strict=True))
    parts = {name: math.hypot(*values) for name, values in by_component(size).items()}
    largest = max(parts.values())
    still = [n for n, part in components(policy).items() if not any(p.requires_grad for p in part.parameters())]
    meant = {name.partition(".")[0] for name in frozen} - {"action"}  # a head drawn at random has to learn
    problems = [f"{name} is frozen" for name in still if name not in meant]
    problems += [f"no gradient reaches {n}" for n in components(policy) if n not in still and not parts.get(n, 0.0)]
    problems += [f"the gradient of {n} vanishes" for n, norm in parts.items() if 0 < norm <= LEAST_GRADIENT * largest]
    problems += [f"the gradient of {n} is not finite" for n, norm in parts.items() if not math.isfinite(norm)]
    # A key's bias adds the same score to every token, which a softmax does not see: so biases are left out.
    named = dict(moved.named_parameters())
    weights = [name for name, p in named.items() if p.requires_grad and not name.endswith("bias")]
    silent = [name for name in weights if size.get(name, 0.0) <= LEAST_GRADIENT * largest]
    flagged = [layer.name for layer in gradient_flow(policy, batch)[1] if layer.flow.exploding]
    least = min(parts, key=parts.get)
    measured = f"{len(parts)} components learn; the least gradient, {least}'s, is {parts[least] / largest:.1g} of the largest"
    expected = f"every component above {LEAST_GRADIENT:g} of the largest"
    advice = "look for detach, no_grad, a part left out of forward; python scripts/gradients.py experiment=... draws the flow"
    if problems:
        return Finding("gradients", "fail", "; ".join(problems), expected, advice, parts[least] / largest)
    if silent or flagged:
        said = [f"no gradient reaches {_some(silent)}"] * bool(silent) + [f"it explodes in {_some(flagged)}"] * bool(flagged)
        return Finding("gradients", "warn", "; ".join(said), expected, advice, parts[least] / largest)
    return Finding("gradients", "pass", measured, expected, value=parts[least] / largest)


def units(policy: Policy, batch: Batch) -> Finding:
    """Do ReLUs fire? A unit that is zero for every sample, at every place, passes no gradient on."""
    with evaluating(policy), torch.no_grad(), _relus(policy) as shares:
        policy.loss(batch)
    if not shares:
        return Finding("units", "skip", "the policy has no ReLU")
    worst = max(shares, key=shares.get)
    measured = f"of the ReLUs behind {worst} {shares[worst]:.0%} never fire, of {len(shares)} layers the most"
    status = "fail" if shares[worst] > 0.95 else "warn" if shares[worst] > 0.8 else "pass"
    advice = "look at that layer's biases, and at the learning rate: units that never fire do not learn"
    return Finding("units", status, measured, "at most 80 %", advice, shares[worst])


@contextmanager
def _relus(policy: nn.Module) -> Iterator[dict[str, float]]:
    """Fills with the share of units that are zero throughout, by the layer that comes before the ReLU."""
    shares: dict[str, float] = {}
    last = ""

    def passed(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            nonlocal last
            last = name

        return note

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if function in (torch.relu, torch.relu_, nn.functional.relu, Tensor.relu):
                units = rearrange(output, "b d ... -> d (b ...)" if output.ndim == 4 else "... d -> d (...)")
                shares[last] = float((units == 0).all(dim=1).float().mean())
            return output

    holders = [(n, m) for n, m in policy.named_modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [module.register_forward_hook(passed(name)) for name, module in holders]
    try:
        with Watch():
            yield shares
    finally:
        for handle in handles:
            handle.remove()


def _generator(policy: Policy) -> torch.Generator:
    return torch.Generator(policy.device).manual_seed(0)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest; infinite for other shapes, and where one alone is no number."""
    if one.shape != other.shape:
        return math.inf
    apart = torch.where(one == other, 0.0, (one.double() - other.double()).abs())  # -inf, of an attention, equals -inf
    return float(apart.nan_to_num(nan=math.inf).max()) if apart.numel() else 0.0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def frozen_by_choice(settings: Mapping[str, Any]) -> list[str]:
    """The parts that a run's settings freeze: those of `freeze`, and those that say of themselves that they stay."""
    return [*settings["freeze"], *(name for name in ("vision", "language") if settings[name].get("frozen"))]
