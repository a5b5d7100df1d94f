"""Checks of an untrained policy on one batch of its training data: policy and batch -> findings. Neither is changed."""

import copy
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vla_mini.autograd.batches import mean_loss, seeded
from vla_mini.autograd.flow import GradientFlow, gradient_flow, recorded_outputs
from vla_mini.commands import command_line
from vla_mini.data.chunks import relative_statistics
from vla_mini.data.reader import Demonstrations
from vla_mini.data.statistics import training_statistics
from vla_mini.doctor.finding import CannotCheckError, Finding
from vla_mini.envs import get_spec
from vla_mini.evaluation.rollout import rollout
from vla_mini.normalization import Normalization, relative_sources
from vla_mini.policy import Policy
from vla_mini.training.callbacks import evaluating
from vla_mini.types import Batch, Context

# A parameter whose gradient norm is a smaller share of the largest component's does not learn.
MIN_GRADIENT = 1e-7
# How far the first loss may exceed the expected one where the actions, and with them the expected loss, are small.
INITIAL_LOSS_MARGIN = 0.2
RELUS = (torch.relu, torch.relu_, nn.functional.relu, Tensor.relu)


def normalization(policy: Policy, demonstrations: Demonstrations) -> Finding:
    """Does the policy hold the statistics of its training data?"""
    first, last = demonstrations.splits["train"]
    frames = slice(demonstrations.episode_starts[first], demonstrations.episode_ends[last - 1])
    found, features = policy.normalization, demonstrations.features
    statistics = training_statistics(demonstrations.states[frames], demonstrations.actions[frames])
    if relative := found.settings.relative:
        sources = relative_sources(features, relative)
        statistics = relative_statistics(demonstrations._replace(statistics=statistics), policy.horizon, sources)
    right = Normalization(statistics, history=policy.history, settings=found.settings, features=features).to(policy.device)
    state_scale, action_scale = (scale.where(scale > 0, 1) for scale in (right.state_std, right.action_scale))
    errors = {
        "state mean": (found.state_mean - right.state_mean) / state_scale,
        "state std": (found.state_std - right.state_std) / state_scale,
        "action offset": (found.action_offset - right.action_offset) / action_scale,
        "action scale": (found.action_scale - right.action_scale) / action_scale,
    }
    largest = {name: float(error.abs().max()) for name, error in errors.items()}
    measured = f"relative errors: {', '.join(f'{name} {error:.1g}' for name, error in largest.items())}"
    status = "pass" if max(largest.values()) < 0.05 else "fail"
    advice = "compute the policy's statistics from the dataset's training split"
    return Finding(status, measured, "below 0.05", advice, max(largest.values()))


def vision_input(policy: Policy, batch: Batch) -> Finding:
    """Does the first layer of the vision part get values of the order of one?"""
    inputs: list[Tensor] = []
    layers = [module for module in policy.vision.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers or [policy.vision]]
    with evaluating(policy):
        policy.act(batch.observation)
    for handle in handles:
        handle.remove()
    std = float(inputs[0].float().std())
    measured = f"the standard deviation of the first layer's input is {std:.2g}"
    advice = (
        "Policy.prepare alone divides pixels by 255, once, so that images lie in [0, 1]; a vision part shifts and scales them"
    )
    return Finding("pass" if 0.01 < std < 10 else "fail", measured, "0.01 to 10", advice, std)


def acting_path(policy: Policy, batch: Batch) -> Finding:
    """Does `act` return what the head predicts from the context that training computes?"""
    contexts: list[Context] = []
    with evaluating(policy), torch.no_grad():
        with policy.trunk.register_forward_hook(lambda _module, _inputs, output: contexts.append(output)):
            policy.loss(batch)
        with seeded(0, policy.device):
            predicted = policy.action.predict(contexts[0], policy.draw_noise(len(batch.actions)))
        with seeded(0, policy.device):
            raw = policy.act(batch.observation)
        acted = policy.normalization.action(raw, batch.observation.state)
    moving = policy.normalization.action_scale > 0  # the others are what they were in the data, whatever is predicted
    rounding = 4 * torch.finfo(torch.float32).eps * raw.abs() / policy.normalization.action_scale
    differences = ((acted - predicted).abs() - rounding)[..., moving].clamp(min=0)
    difference = float(differences.max()) if moving.any() else 0.0
    measured = f"act differs by {difference:.1g} from what the head predicts in training"
    advice = "act must prepare observations, normalise and order actions as loss does: look at Policy.prepare, act and predict"
    return Finding("pass" if difference < 1e-4 else "fail", measured, "below 1e-4", advice, difference)


def padding(policy: Policy, batch: Batch) -> Finding:
    """Is the loss of actions past the end of the episode zero?"""
    padded = int(batch.is_pad.sum())
    if not padded:
        return Finding("skip", "no action of the batch lies past the end of its episode")
    with evaluating(policy), torch.no_grad():
        loss, terms = policy.loss(batch)
    largest = max(float(term[batch.is_pad].abs().max()) for term in (loss, *terms.values()))
    measured = f"{padded} of {batch.is_pad.numel()} actions are padding, and the largest loss of one is {largest:.2g}"
    advice = "multiply the loss by ~is_pad: what follows the end of an episode was not demonstrated"
    return Finding("fail" if largest else "pass", measured, "0", advice, largest)


def first_loss(policy: Policy, batch: Batch) -> Finding:
    """Is the action loss of the untrained head the loss of an output without information?"""
    expected = policy.action.expected_initial_loss(
        policy.normalization.action(batch.actions, batch.observation.state)[~batch.is_pad]
    )
    if expected is None:
        return Finding("skip", f"{type(policy.action).__name__} does not define expected_initial_loss")
    with evaluating(policy), torch.no_grad(), seeded(0, policy.device):
        _, terms = policy.loss(batch)
    found = float(terms["action"].sum() / (~batch.is_pad).sum())
    low, high = 0.7 * expected, 1.4 * expected + INITIAL_LOSS_MARGIN
    measured = f"{found:.3f}, {found / expected:.2f} of the expected {expected:.3f}"
    status = "pass" if low <= found <= high else "warn" if low / 2 <= found <= 2 * high else "fail"
    advice = "is the target normalised, is the loss averaged over the action's size, does the head's output begin near zero?"
    return Finding(status, measured, f"{low:.3f} to {high:.3f}", advice, found / expected)


def gradients(policy: Policy, batch: Batch, *, frozen: Sequence[str] = ()) -> Finding:
    """Does a gradient reach each component? It is measured after one step, when weights that begin at zero have changed.

    - frozen: names of modules that the settings freeze
    """
    moved = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW([parameter for parameter in moved.parameters() if parameter.requires_grad], lr=1e-3)
    mean_loss(moved, batch).backward()
    optimizer.step()
    flows, layers = gradient_flow(moved, batch)
    largest = max(flow.grad_norm for flow in flows.values())

    def arrives(flow: GradientFlow) -> bool:
        return MIN_GRADIENT * largest < flow.grad_norm < math.inf

    intended = {name.partition(".")[0] for name in frozen} - {"action"}  # an untrained head has to learn
    problems = [f"{name} is frozen" for name in policy.components() if name not in flows and name not in intended]
    problems += [f"no finite gradient reaches {name}" for name, flow in flows.items() if not arrives(flow)]
    warnings = [f"no finite gradient reaches {layer.name}" for layer in layers if not arrives(layer.flow)]
    warnings += [f"the gradient explodes in {layer.name}" for layer in layers if layer.flow.exploding]
    weakest = min(flows, key=lambda name: flows[name].grad_norm)
    share = flows[weakest].grad_norm / largest
    measured = f"{len(flows)} components learn; the smallest gradient norm, {weakest}'s, is {share:.1g} of the largest"
    advice = f"look for detach, no_grad and unused parts; {command_line('gradients')} experiment=... draws the gradient flow"
    status = "fail" if problems else "warn" if warnings else "pass"
    shown = "; ".join(problems or warnings[:3]) or measured
    return Finding(status, shown, f"every component above {MIN_GRADIENT:g} of the largest", advice, share)


def dead_units(policy: Policy, batch: Batch) -> Finding:
    """Are there many units behind ReLUs that are zero for every sample, at every position? They pass on no gradient."""
    shares: dict[str, float] = {}
    with evaluating(policy), torch.no_grad(), recorded_outputs(policy) as outputs:

        class WatchReLUs(TorchFunctionMode):
            """Notes the share of units that are zero throughout, by the layer before the ReLU."""

            def __torch_function__(self, function, types, args=(), kwargs=None):
                output = function(*args, **(kwargs or {}))
                if function in RELUS:
                    units = rearrange(output, "b d ... -> d (b ...)" if output.ndim == 4 else "... d -> d (...)")
                    shares[next(reversed(outputs), "the input")] = float((units == 0).all(dim=1).float().mean())
                return output

        with WatchReLUs():
            policy.loss(batch)
    if not shares:
        return Finding("skip", "the policy has no ReLU")
    worst = max(shares, key=shares.__getitem__)
    measured = f"{shares[worst]:.0%} of the units behind {worst} are zero for all samples, the most of {len(shares)} layers"
    status = "fail" if shares[worst] > 0.95 else "warn" if shares[worst] > 0.8 else "pass"
    advice = "look at the biases of that layer and at the learning rate: units that are always zero do not learn"
    return Finding(status, measured, "at most 80 %", advice, shares[worst])


def closed_loop(policy: Policy, env_id: str | None, *, episodes: int = 2) -> Finding:
    """Can the policy act in the environment that it will be evaluated in? Where it cannot, an exception tells why."""
    if env_id is None:
        raise CannotCheckError("env=none: there is no environment to act in")
    options = {"purpose": "selection", "seed": 0, "split": next(iter(get_spec(env_id).splits))}  # as during training
    with evaluating(policy):
        results = rollout(policy, env_id, episodes=range(episodes), options=options)
    steps = sum(result.steps for result in results)
    return Finding("pass", f"{len(results)} episodes, {steps} steps in {env_id}")
