"""The tab "One step of learning": a batch and an optimizer -> what a step does to the loss and to each component's weights.

    request: Request, as JSON ──▶ one step, or ten with each of SGD, Adam and Muon ──▶ losses, clipping, updates

Optimizer, clipping and measurements are the trainer's own (training/). A step is computed as the trainer does it: gradient of
the mean loss over the batch's valid actions, check, clip, update; without its schedule, and in eval mode, without augmentation.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.nn.utils import get_total_norm

from vla_mini.autograd.batches import mean_loss, seeded, select
from vla_mini.autograd.norms import gradients_of
from vla_mini.play.backward import drawing, instruction, number, parse
from vla_mini.play.trace import SEED
from vla_mini.policy import Policy
from vla_mini.training.module import build_optimizer
from vla_mini.training.monitor import gradient_metrics, update_metrics
from vla_mini.training.muon import Muon
from vla_mini.training.step import clip
from vla_mini.types import Batch
from vla_mini.utils.schema import StrictModel, settings_model

STEPS = 10  # of the comparison
Name = Literal["sgd", "adam", "adamw", "muon"]
COMPARED: tuple[Name, ...] = ("sgd", "adam", "muon")


class Defaults(NamedTuple):
    """As in configs/optimizer/, which training uses."""

    kind: type[torch.optim.Optimizer]
    learning_rate: float
    momentum: float  # of Adam: beta1
    weight_decay: float
    rule: str


OPTIMIZERS: dict[Name, Defaults] = {
    "sgd": Defaults(
        torch.optim.SGD,
        0.1,
        0.9,
        0.0,
        "the update is the rate times the gradient, with momentum: large gradients make large updates",
    ),
    "adam": Defaults(
        torch.optim.Adam, 1e-3, 0.9, 0.0, "each weight moves by about the rate, whatever the size of its gradient"
    ),
    "adamw": Defaults(torch.optim.AdamW, 1e-3, 0.9, 0.01, "Adam, and each weight of a layer also shrinks a little"),
    "muon": Defaults(
        Muon,
        0.05,
        0.95,
        0.01,
        "the update of a matrix is made orthogonal, so that it moves alike in all directions; all else is updated by Adam",
    ),
}
BETA2, MUON_BETAS, ADAM_SHARE = 0.95, (0.9, 0.99), 0.16  # Muon's Adam takes this share of the rate: 8e-3 of 0.05


class Request(StrictModel):
    samples: list[int] | None = None  # None: all
    optimizer: Name = "muon"
    learning_rate: PositiveFloat | None = None  # None: as in configs/optimizer/, and so on
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: NonNegativeFloat | None = None
    clip_norm: PositiveFloat | None = None  # None: no clipping
    compare: bool = False
    rates: dict[Name, PositiveFloat] = Field(default={})  # of the comparison


def answer(policy: Policy, batch: Batch, request: Mapping[str, Any]) -> dict[str, Any]:
    """One step, or the comparison; the policy stays as it is. ValueError, in one line, for a request that is wrong."""
    asked, size = parse(Request, request), len(batch.actions)
    samples = list(range(size)) if asked.samples is None else asked.samples
    if wrong := [index for index in samples if not 0 <= index < size]:
        raise ValueError(f"samples: {wrong[0]} is not one of the {size} samples, 0 to {size - 1}")
    if not samples:
        raise ValueError("samples=[]: a batch needs at least one sample")
    chosen = select(batch, samples)
    if asked.compare:
        rates = {name: OPTIMIZERS[name].learning_rate for name in COMPARED} | asked.rates
        return {"steps": STEPS, "curves": [curve(policy, chosen, name, rates[name], asked.clip_norm) for name in COMPARED]}
    defaults = {name: row._asdict() | {"kind": row.kind.__name__} for name, row in OPTIMIZERS.items()}
    images = batch.observation.images[:, 0, :, ::2, ::2]  # small, to choose from
    pictures = [{"instruction": instruction(policy, batch, index), **drawing(images[index])} for index in range(size)]
    return {"samples": pictures, "chosen": samples, "optimizer": asked.optimizer, "optimizers": defaults} | one_step(
        policy, chosen, asked
    )


class Learner:
    """A copy of the policy, and an optimizer of its own."""

    def __init__(self, policy: Policy, name: Name, asked: Request) -> None:
        self.policy = copy.deepcopy(policy)
        self.policy.zero_grad(set_to_none=True)
        self.optimizer = build(self.policy, name, asked)
        self.clip_norm = asked.clip_norm

    def loss(self, batch: Batch) -> torch.Tensor:
        """With the same noise each time, so that losses can be compared."""
        with seeded(SEED, self.policy.device):
            return mean_loss(self.policy, batch)

    def step(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """The loss before the step, and the step's metrics, named as in training; {} where loss or gradient are not finite,
        and the step is skipped."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        parameters = {name: self.policy.get_parameter(name) for name in gradients_of(self.policy)}
        gradients = [parameter.grad for parameter in parameters.values()]
        norm = get_total_norm(gradients)
        if not (loss.isfinite() and norm.isfinite()):
            return loss.item(), {}
        metrics = gradient_metrics(parameters, per_parameter=False)
        before = [parameter.detach().clone() for parameter in parameters.values()]
        clip(gradients, norm, clip_norm=self.clip_norm)
        metrics["gradients/clip_factor"] = (get_total_norm(gradients) / norm).item() if norm else 1.0
        self.optimizer.step()
        return loss.item(), metrics | update_metrics(parameters, before, per_parameter=False)


def build(policy: Policy, name: Name, asked: Request) -> torch.optim.Optimizer:
    """The optimizer as training builds it: weight decay for the weights of layers alone."""
    row = OPTIMIZERS[name]
    rate = row.learning_rate if asked.learning_rate is None else asked.learning_rate
    momentum = row.momentum if asked.momentum is None else asked.momentum
    arguments: dict[str, Any] = {
        "lr": rate,
        "weight_decay": row.weight_decay if asked.weight_decay is None else asked.weight_decay,
    }
    if name == "sgd":
        arguments |= {"momentum": momentum, "nesterov": momentum > 0}
    elif name == "muon":
        arguments |= {"momentum": momentum, "adam_lr": ADAM_SHARE * rate, "betas": list(MUON_BETAS)}
    else:
        arguments |= {"betas": [momentum, BETA2]}
    target = f"{row.kind.__module__}.{row.kind.__name__}"
    return build_optimizer(
        policy, settings_model(row.kind, exclude=("params",)).model_validate({"_target_": target, **arguments})
    )


def one_step(policy: Policy, batch: Batch, asked: Request) -> dict[str, Any]:
    learner = Learner(policy, asked.optimizer, asked)
    before, metrics = learner.step(batch)
    with torch.no_grad():
        after = learner.loss(batch).item()
    rows = []
    for name in policy.components():
        weights, ratio = metrics.get(f"weights/{name}"), metrics.get(f"updates/{name}")
        row = {"name": name, "gradient": metrics.get(f"gradients/{name}"), "weights": weights, "ratio": ratio}
        rows.append(row | {"update": None if ratio is None else ratio * weights})
    return {
        "before": number(before),
        "after": number(after),
        "gradient_norm": number(metrics.get("gradients/total", math.nan)),
        "clip_factor": metrics.get("gradients/clip_factor"),
        "components": [
            {key: number(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        ],
        "words": in_words(before, after, skipped=not metrics),
    }


def curve(policy: Policy, batch: Batch, name: Name, rate: float, clip_norm: float | None) -> dict[str, Any]:
    """The losses before each of STEPS steps, and after the last."""
    learner, losses = Learner(policy, name, Request(learning_rate=rate, clip_norm=clip_norm)), []
    for _ in range(STEPS):
        loss, metrics = learner.step(batch)
        losses.append(loss)
        if not metrics:
            break
    else:
        with torch.no_grad():
            losses.append(learner.loss(batch).item())
    finite = [loss for loss in losses if math.isfinite(loss)]
    diverged = None
    if len(finite) <= STEPS:
        diverged = (
            f"not finite after {len(finite)} step{'s' if len(finite) > 1 else ''}: a learning rate of {rate:g} is too large"
        )
    elif finite[-1] > finite[0]:
        diverged = f"higher after {STEPS} steps than before: a learning rate of {rate:g} is too large here"
    return {"optimizer": name, "learning_rate": rate, "losses": finite, "words": diverged}


def in_words(before: float, after: float, *, skipped: bool) -> str:
    if skipped:
        return "The loss or its gradient is not finite before the step. The step is skipped, as in training: the weights stay."
    if not math.isfinite(after):
        return "After the step the loss is not finite: the learning rate is far too large, and the weights are lost."
    if after > before:
        return (
            "The loss rose: the step was too long. A gradient only tells the slope at one point, and a trained policy is near "
            "a minimum already. Try a smaller learning rate."
        )
    if after == before:
        return "The loss is the same, to the last bit."
    return "The loss fell, on the batch that the gradient is from. On other samples it may rise."
