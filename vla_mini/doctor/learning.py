"""Checks of what a policy learns: it overfits one small batch, with the run's own optimizer and precision.

Half of the samples get a counterfactual: the same images and state with the instruction and the actions of another sample. Only
the instruction tells the two apart, so a policy that has learned the batch has to use it.
"""

import copy
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vla_mini.autograd.batches import seeded, select
from vla_mini.doctor.finding import Finding
from vla_mini.policy import Policy
from vla_mini.settings import TrainSettings
from vla_mini.training.callbacks import evaluating
from vla_mini.training.module import build_optimizer
from vla_mini.training.trainer import choose_precision
from vla_mini.types import Batch, Observation

# The last loss as a share of the first one: what a healthy policy stays below, and what no learning policy exceeds.
LEARNED, NOT_LEARNED = 0.6, 0.9
# Steps on the batch: as many as MAX_SECONDS allow.
MIN_STEPS, MAX_STEPS, MAX_SECONDS = 20, 80, 15.0


class Overfitted(NamedTuple):
    """A policy that was trained on one batch, and its action loss before each step."""

    policy: Policy
    batch: Batch
    losses: list[float]


class Steps:
    """Optimizer steps as training makes them, but without Lightning: the same loss, optimizer, precision and clipping."""

    def __init__(self, policy: Policy, settings: TrainSettings, *, warmup_steps: int = 0) -> None:
        self.policy, self.clip_value = policy, settings.trainer.gradient_clip_val
        by_value = settings.trainer.gradient_clip_algorithm == "value"
        self.clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        self.optimizer = build_optimizer(policy, settings.optimizer, settings.schedule.multipliers)
        self.bf16 = "bf16" in choose_precision(settings.trainer.precision, accelerator=settings.trainer.accelerator)
        self.warmup_steps, self.num_steps = warmup_steps, 0

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """One step. Returns the mean action loss before it."""
        valid, self.num_steps = (~batch.is_pad).sum(), self.num_steps + 1
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.bf16):
            loss, terms = self.policy.loss(batch)
        self.optimizer.zero_grad()
        (loss.sum() / valid).backward()
        if self.clip_value:
            self.clip(self.policy.parameters(), self.clip_value)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, self.num_steps / max(1, self.warmup_steps))
        self.optimizer.step()
        return terms["action"].sum() / valid


def overfit(policy: Policy, batch: Batch, settings: TrainSettings) -> Overfitted:
    """A copy of the policy, trained on `batch` with its counterfactuals."""
    policy, batch = copy.deepcopy(policy), with_counterfactuals(batch)
    training = Steps(policy, settings, warmup_steps=min(settings.schedule.warmup_steps, MAX_STEPS // 4))
    losses: list[float] = []
    end = time.perf_counter() + MAX_SECONDS
    while len(losses) < MIN_STEPS or (len(losses) < MAX_STEPS and time.perf_counter() < end):
        losses.append(float(training.step(batch)))
    return Overfitted(policy, batch, losses)


def with_counterfactuals(batch: Batch) -> Batch:
    """The batch and, added to it, its first half with the instruction and actions of the next sample of another instruction."""
    size, observation = len(batch.actions), batch.observation
    instructions = [tuple(row[mask].tolist()) for row, mask in zip(observation.tokens, observation.token_mask, strict=True)]
    pairs = []
    for own in range(size // 2):
        others = (other % size for other in range(own + 1, own + size))
        pairs += [(own, other) for other in others if instructions[other] != instructions[own]][:1]
    own, partner = (select(batch, [pair[i] for pair in pairs]) for i in (0, 1))
    observation = own.observation._replace(tokens=partner.observation.tokens, token_mask=partner.observation.token_mask)
    # No auxiliary targets: it would be the partner's target for another image.
    targets = {name: torch.zeros_like(target) for name, target in partner.targets.items()}
    return tree_map(lambda *both: torch.cat(both), batch, partner._replace(observation=observation, targets=targets))


def one_batch(overfitted: Overfitted) -> Finding:
    """Does the loss of one batch fall when the policy is trained on it alone?"""
    losses = overfitted.losses
    last = sum(losses[-5:]) / 5
    ratio = last / losses[0] if math.isfinite(last) else math.inf
    measured = f"the loss went from {losses[0]:.3f} to {last:.3f} ({ratio:.0%}) in {len(losses)} steps"
    status = "pass" if ratio <= LEARNED else "warn" if ratio <= NOT_LEARNED else "fail"
    advice = "try other learning rates, and look at the checks above: a policy that cannot overfit one batch learns nothing"
    return Finding(status, measured, f"at most {LEARNED:.0%} of the first loss", advice, ratio)


def acting(overfitted: Overfitted) -> Finding:
    """Does the policy act as demonstrated, once it has overfitted the batch?"""
    policy, batch = overfitted.policy, overfitted.batch
    valid, complete = ~batch.is_pad, ~batch.is_pad.any(dim=1)
    _, acted = _loss_and_actions(overfitted, batch.observation)
    wanted = policy.normalization.action(batch.actions, batch.observation.state)
    error_of_mean = float((wanted[valid] - wanted[valid].mean(dim=0)).abs().mean())
    error = float((acted - wanted)[valid].abs().mean()) / error_of_mean
    half = (acted - wanted)[complete].abs().mean().clamp(max=error_of_mean) / 2
    corrected = ((name, (actions - wanted)[complete].abs().mean()) for name, actions in _corrected_actions(acted))
    mistake = next((f"; {name}" for name, corrected_error in corrected if corrected_error < half), "")
    measured = f"{error:.2f} of the error of the constant mean action{mistake}"
    status = "fail" if mistake or not math.isfinite(error) else "warn" if error >= 0.8 else "pass"
    advice = "loss and predict of the head must agree in order, sign and scale of the actions; or give it more steps"
    return Finding(status, measured, "below 0.8", advice, error)


def inputs(overfitted: Overfitted) -> Finding:
    """Which inputs does the policy use? The loss has to rise when one of them is removed."""
    observation = overfitted.batch.observation
    loss, acted = _loss_and_actions(overfitted, observation)
    ratios, unused, weak = [], [], []
    for name, ablated in _ablations(overfitted.policy, observation).items():
        ablated_loss, ablated_acted = _loss_and_actions(overfitted, ablated)
        ratios.append(f"{ablated_loss / loss:,.1f}x without {name}")
        if name == "instruction" and bool((observation.tokens == observation.tokens[0]).all()):
            continue  # All samples have the same instruction, which then carries no information.
        if float((ablated_acted - acted).abs().max()) < 1e-4:
            unused.append(name)
        elif ablated_loss < 1.05 * loss:
            weak.append(name)
    problems = {"not used at all": unused, "hardly used": weak}
    parts = [f"the loss is {', '.join(ratios)}", *(f"{text}: {', '.join(names)}" for text, names in problems.items() if names)]
    status = "fail" if unused else "warn" if weak else "pass"
    advice = "follow an unused input through Policy.context and the trunk; one that is hardly used is learned slowly or never"
    return Finding(status, "; ".join(parts), "at least 1.05x without each input", advice)


def _ablations(policy: Policy, observation: Observation) -> dict[str, Observation]:
    """The observation without one input: mean images, an empty instruction, the mean state."""
    mean = observation.images.float().mean(dim=0, keepdim=True).to(torch.uint8)
    tokens, mask = (tensor.to(policy.device) for tensor in policy.tokenize([""] * len(observation.state)))
    state = policy.normalization.state_mean.to(observation.state.dtype)
    return {
        "images": observation._replace(images=mean.expand_as(observation.images).contiguous()),
        "instruction": observation._replace(tokens=tokens, token_mask=mask),
        "state": observation._replace(state=state.expand_as(observation.state).contiguous()),
    }


def _loss_and_actions(overfitted: Overfitted, observation: Observation) -> tuple[float, Float[Tensor, "b t a"]]:
    """The mean action loss, and the actions in normalised units, with the same noise each time."""
    policy, batch = overfitted.policy, overfitted.batch
    with evaluating(policy), torch.no_grad(), seeded(0, policy.device):
        _, terms = policy.loss(batch._replace(observation=observation))
        actions = policy.act(observation, torch.Generator(policy.device).manual_seed(0))
    return float(terms["action"].sum() / (~batch.is_pad).sum()), policy.normalization.action(actions, observation.state)


def _corrected_actions(acted: Float[Tensor, "b t a"]) -> Iterator[tuple[str, Float[Tensor, "b t a"]]]:
    """Each usual mistake by name, with the actions as they are without it."""
    yield "the actions of a chunk are in reverse order", acted.flip(1)
    yield "the actions have the wrong sign", -acted
    yield "the dimensions of the actions are in reverse order", acted.flip(2)
    yield "the actions are one step too late", acted.roll(-1, 1)
    yield "the actions are one step too early", acted.roll(1, 1)
    for factor in (2, 0.5, 255, 1 / 255):
        yield f"the actions are {1 / factor:g} times too large", factor * acted
