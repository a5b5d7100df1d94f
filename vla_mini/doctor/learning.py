"""Checks that let the policy learn: one small batch, by heart, with the run's own optimizer and precision.

Half of the batch has twins: the same image and state, but the words, and the actions, of another sample. They can be told
apart by the words alone, so that a policy that has learned the batch has to have used them.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vla_mini.doctor.finding import Finding
from vla_mini.policy import Policy
from vla_mini.training.module import PolicyModule
from vla_mini.training.precision import choose_precision
from vla_mini.training.selection import evaluating
from vla_mini.types import Batch, Observation

# The loss of the batch, at the end beside the beginning: what a healthy policy stays below, and what none exceeds.
LEARNED, UNLEARNED = 0.6, 0.9
LEAST_STEPS = 20


class Learned(NamedTuple):
    """A policy that has learned a batch by heart, and how its action loss fell, step by step."""

    policy: Policy
    batch: Batch
    losses: list[float]
    seconds: float


class Stepper:
    """Optimizer steps as training makes them, without Lightning around: same loss, optimizer, precision and clipping."""

    def __init__(self, policy: Policy, settings: Mapping[str, Any], *, warmup_steps: int = 0) -> None:
        trainer = settings["trainer"]
        self.policy, self.clip = policy, trainer.get("gradient_clip_val")
        multipliers = settings["schedule"]["multipliers"]
        how = {"warmup_steps": warmup_steps, "decay": "constant", "multipliers": multipliers}
        module = PolicyModule(policy, optimizer=settings["optimizer"], **how)
        made = module.configure_optimizers()
        self.optimizer, self.schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        self.bf16 = "bf16" in choose_precision(trainer["precision"], accelerator=trainer["accelerator"])

    def step(self, batch: Batch) -> Tensor:
        """One step; the mean action loss before it."""
        valid = (~batch.is_pad).sum()
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.bf16):
            loss, terms = self.policy.loss(batch)
        self.optimizer.zero_grad()
        (loss.sum() / valid).backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step()
        return terms["action"].sum() / valid


def learn(policy: Policy, batch: Batch, settings: Mapping[str, Any], *, steps: int = 80, seconds: float = 15.0) -> Learned:
    """A copy of the policy after `steps` on `batch` and its twins; fewer, but LEAST_STEPS, where they would take longer."""
    policy, batch = copy.deepcopy(policy), with_twins(batch)
    stepper = Stepper(policy, settings, warmup_steps=min(settings["schedule"]["warmup_steps"], steps // 4))
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < LEAST_STEPS or (len(losses) < steps and time.perf_counter() - start < seconds):
        losses.append(float(stepper.step(batch)))
    return Learned(policy, batch, losses, time.perf_counter() - start)


def with_twins(batch: Batch) -> Batch:
    """The batch, and its first half once more with the words and actions of the next sample that is told something else."""
    observation, size = batch.observation, len(batch.actions)
    told = [tuple(row[mask].tolist()) for row, mask in zip(observation.tokens, observation.token_mask, strict=True)]
    ordered = [[(i + k) % size for k in range(1, size)] for i in range(size // 2)]
    partners = [next((j for j in order if told[j] != told[i]), None) for i, order in enumerate(ordered)]
    own = [i for i, partner in enumerate(partners) if partner is not None]
    other = [partner for partner in partners if partner is not None]
    twins = Observation(
        observation.images[own], observation.tokens[other], observation.token_mask[other], observation.state[own]
    )
    # No keyframe: it would ask the attention of two samples that look alike to be at the place of a third.
    fields = (batch.actions[other], batch.is_pad[other], batch.keyframe[other], torch.zeros_like(batch.has_keyframe[other]))
    pairs = zip((*observation, *batch[1:]), (*twins, *fields), strict=True)
    joined = [torch.cat(pair) for pair in pairs]
    return Batch(Observation(*joined[:4]), *joined[4:])


def one_batch(learned: Learned) -> Finding:
    """Does the loss of one batch fall, when training sees nothing else?"""
    losses = learned.losses
    last = sum(losses[-5:]) / 5
    ratio = last / losses[0] if math.isfinite(last) else math.inf
    measured = f"loss {losses[0]:.3f} to {last:.3f} ({ratio:.0%}) in {len(losses)} steps"
    status = "pass" if ratio <= LEARNED else "warn" if ratio <= UNLEARNED else "fail"
    advice = "try other learning rates, and look at the checks above: what cannot learn one batch by heart learns nothing"
    return Finding("one batch", status, measured, f"at most {LEARNED:.0%} of the first loss", advice, ratio)


def acting(learned: Learned) -> Finding:
    """Does it act as it was shown, once it knows the batch by heart?"""
    policy, batch = learned.policy, learned.batch
    valid = ~batch.is_pad
    with evaluating(policy):
        acted = policy.normalization.action(policy.act(batch.observation, _generator(policy)))
    wanted = policy.normalization.action(batch.actions)
    constant = float((wanted[valid] - wanted[valid].mean(dim=0)).abs().mean())
    error = float((acted - wanted)[valid].abs().mean()) / constant
    measured = f"{error:.2f} of the error of always acting the mean action"
    whole = valid.all(dim=1)  # where nothing is padded, in whatever order it comes
    half = (acted - wanted)[whole].abs().mean().clamp(max=constant) / 2
    reason = next((name for name, turned in _otherwise(acted) if (turned - wanted)[whole].abs().mean() < half), None)
    if reason:
        advice = "what loss is given and what predict returns must be in one order, one sign and one scale"
        return Finding("acting", "fail", f"{measured}; {reason}", "below 0.8", advice, error)
    advice = "acting does not follow the loss yet: give the head more steps, or compare its loss with its predict"
    status = "pass" if error < 0.8 else "warn" if math.isfinite(error) else "fail"
    return Finding("acting", status, measured, "below 0.8", advice, error)


def inputs(learned: Learned) -> Finding:
    """Which inputs does it use? Words say nothing where all samples are told the same."""
    policy, observation = learned.policy, learned.batch.observation
    whole, acted = _loss_and_actions(learned, observation)
    rise, unused, hardly = [], [], []
    for name, blanked in blank(policy, observation).items():
        loss, without = _loss_and_actions(learned, blanked)
        rise.append(f"{loss / whole:,.1f}x without {name}")
        if name == "words" and bool((observation.tokens == observation.tokens[0]).all()):
            continue
        if float((without - acted).abs().max()) < 1e-4:
            unused.append(name)
        elif loss < 1.05 * whole:
            hardly.append(name)
    measured, expected = f"loss {', '.join(rise)}", "each input is worth something: 1.05x or more"
    if unused:
        advice = "follow that input through Policy.context and the trunk: it does not arrive"
        return Finding("inputs", "fail", f"{measured}; {', '.join(unused)} not used at all", expected, advice)
    if hardly:
        advice = "such an input learns slowly or not at all: watch `swapped` and `blank` of the evaluation"
        return Finding("inputs", "warn", f"{measured}; {', '.join(hardly)} hardly used", expected, advice)
    return Finding("inputs", "pass", measured, expected)


def blank(policy: Policy, observation: Observation) -> dict[str, Observation]:
    """The observation without its images (all show their mean), without words (nothing is said), without state (its mean)."""
    size = len(observation.state)
    mean = observation.images.float().mean(dim=0, keepdim=True).to(torch.uint8)
    tokens, mask = (tensor.to(policy.device) for tensor in policy.tokenize([""] * size))
    state = policy.normalization.state_mean.to(observation.state.dtype)
    return {
        "images": observation._replace(images=mean.expand_as(observation.images).contiguous()),
        "words": observation._replace(tokens=tokens, token_mask=mask),
        "state": observation._replace(state=state.expand_as(observation.state).contiguous()),
    }


def _loss_and_actions(learned: Learned, observation: Observation) -> tuple[float, Tensor]:
    """The mean action loss, and the actions in normalised units, with the same noise each time."""
    policy, batch = learned.policy, learned.batch
    with evaluating(policy), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        _, terms = policy.loss(batch._replace(observation=observation))
        acted = policy.act(observation, _generator(policy))
    return float(terms["action"].sum() / (~batch.is_pad).sum()), policy.normalization.action(acted)


def _otherwise(acted: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The chunks b t a as they would be without one of the usual mistakes, with its name."""
    yield "the chunk's actions come in reverse order", acted.flip(1)
    yield "the actions come with the wrong sign", -acted
    yield "the actions come in reverse dimensions", acted.flip(2)
    yield "the actions come one step too late", acted.roll(-1, 1)
    yield "the actions come one step too early", acted.roll(1, 1)
    for factor in (2, 0.5, 255, 1 / 255):
        yield f"the actions come {1 / factor:g} times too large", factor * acted


def _generator(policy: Policy) -> torch.Generator:
    return torch.Generator(policy.device).manual_seed(0)
