"""The optimizer step, from top to bottom: what the micro-batches of a window left in `.grad` -> what the optimizer gets.

    N times:  begin_micro_batch ── loss ── add_losses ── backward, which adds to the gradients
    once:     prepare: learning rate, unscale, divide, check, measure, clip or skip ── optimizer.step() ── finish: log

Lightning sets the gradients to zero before the first backward, divides each loss by N, and calls backward and the optimizer.
PolicyModule (module.py) calls the rest from Lightning's hooks; the last backward happens within the optimizer's closure.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from lightning import Trainer
from torch import Tensor, nn

from vla_mini.autograd.nonfinite import first_nonfinite
from vla_mini.autograd.norms import gradients_of
from vla_mini.policy import Policy
from vla_mini.training.distributed import average_whole, full, is_sharded, local, total_norm, unsharded
from vla_mini.training.loggers import gather, log
from vla_mini.training.monitor import GradientMonitor, due, loss_scaler
from vla_mini.types import Batch


class NonFiniteError(RuntimeError):
    """Training was stopped, since the loss or the gradients of several steps in a row were not finite."""


class MicroBatch(NamedTuple):
    """What it takes to compute the loss of a micro-batch once more: the batch and the states of the random generators."""

    batch: Batch
    cpu_rng_state: Tensor
    gpu_rng_state: Tensor | None  # where the policy is on a GPU


class Stopwatch:
    """Seconds of training since `start` was first called, without those that were `paused`."""

    def __init__(self) -> None:
        self.offset = 0.0  # seconds of the run that is resumed, minus pauses
        self._started: float | None = None

    def start(self) -> None:
        self._started = self._started or time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.offset + (time.perf_counter() - self._started if self._started else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = self.seconds
        yield
        self.offset -= self.seconds - before


class OptimizerStep:
    """The step that all micro-batches of an accumulation window make together, as if they were one large batch.

    - warmup_steps, decay: of the learning rate (`learning_rate_factor`)
    - clip_value, clip_algorithm: bound of the norm of all gradients, or of each value of them; None = no clipping
    - monitor: measures the gradients
    - patience: training stops after so many skipped steps in a row

    A step is skipped where its loss or its gradients are not finite, by all processes together: weights, momentum, running
    statistics and learning-rate schedule stay as they are. `skipped` tells whether the last step was, `num_skipped` how many
    were, `origin` what was not finite first; `window` holds the micro-batches of the step in progress.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        monitor: GradientMonitor,
        warmup_steps: int = 0,
        decay: Literal["cosine", "constant"] = "cosine",
        clip_value: float | None = None,
        clip_algorithm: Literal["norm", "value"] | None = None,
        patience: int = 5,
    ) -> None:
        self.policy, self.monitor, self.patience = policy, monitor, patience
        self.warmup_steps, self.decay = warmup_steps, decay
        self.clip_norm = None if clip_algorithm == "value" else clip_value
        self.clip_value = clip_value if clip_algorithm == "value" else None
        self.stopwatch = Stopwatch()
        self.skipped = False
        self.num_skipped = self.num_skipped_in_a_row = self.num_samples = 0
        self.origin: str | None = None
        self.loss = math.nan  # the last that was logged
        # Found once, since a walk through all modules takes longer than everything else in here.
        self._modules_with_buffers = [module for module in policy.modules() if [*module.buffers(recurse=False)]]
        self.window: list[MicroBatch] = []

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """By name; first asked for once Lightning has prepared the policy, which replaces them where it is sharded."""
        return dict(self.policy.named_parameters())

    def begin_micro_batch(self, trainer: Trainer, batch: Batch) -> None:
        """Before the loss is computed: keep what a skipped step needs."""
        if not self.window:  # A BatchNorm's running statistics take in a NaN long before there is a gradient.
            modules = [module for module in self._modules_with_buffers if module.training]
            self._buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers(recurse=False)]
            self._sums: Tensor | float = 0.0
        gpu_rng_state = torch.cuda.get_rng_state(self.policy.device) if self.policy.device.type == "cuda" else None
        self.window.append(MicroBatch(batch, torch.get_rng_state(), gpu_rng_state))
        self.num_samples += len(batch.actions) * trainer.world_size
        self.stopwatch.start()
        if trainer.accumulate_grad_batches * trainer.world_size > 1 and not is_sharded(self.policy):  # whose hooks never fire
            self.monitor.begin_micro_batch(trainer, self._parameters, batch)

    def add_losses(self, loss: Float[Tensor, "b t"], terms: Mapping[str, Float[Tensor, "b t"]]) -> None:
        self._sums = self._sums + sum_losses(self.window[-1].batch, loss, terms)
        self._terms = ("loss", *terms)

    def prepare(self, trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Everything between the last backward pass of the window and the update of the weights."""
        # 1. The schedule counts the steps that were taken.
        factor = learning_rate_factor(
            trainer.global_step - self.num_skipped, trainer.max_steps, warmup_steps=self.warmup_steps, decay=self.decay
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        # 2. Take fp16's loss scale out of the gradients. Lightning does so, except for optimizers that can do it in their step.
        scaler = loss_scaler(trainer)
        if scaler is not None and any(group.get("fused") for group in optimizer.param_groups):
            scaler.unscale_(optimizer)

        # 3. So far the gradients are those of the sum of the losses, divided by the number of micro-batches (Lightning) and
        # averaged over the processes (DistributedDataParallel). Make them those of the mean over the window's valid actions.
        self._sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        count, loss = self._sums[:2]
        parameters = {name: parameter for name, parameter in self._parameters.items() if parameter.grad is not None}
        if is_sharded(self.policy):
            average_whole((parameter.grad for parameter in parameters.values()), trainer.strategy)
        gradients = [local(parameter.grad) for parameter in parameters.values()]
        torch._foreach_mul_(gradients, trainer.accumulate_grad_batches * trainer.world_size / count)

        # 4. Are the loss and the gradients finite? One transfer to the host.
        norm = total_norm([parameter.grad for parameter in parameters.values()], trainer.strategy)
        loss_is_finite, gradients_are_finite = torch.stack([loss.isfinite(), norm.isfinite()]).tolist()
        self.skipped = not (loss_is_finite and gradients_are_finite)

        # 5. Measure the gradients before they are clipped.
        self.monitor.measure(trainer, parameters, clip_norm=self.clip_norm)

        # 6. Skip the step, or clip the gradients.
        if self.skipped:
            self._skip(trainer, may_be_overflow=loss_is_finite and scaler is not None and scaler.get_scale() > 1)
            return
        self.num_skipped_in_a_row = 0
        clip(gradients, norm, clip_norm=self.clip_norm, clip_value=self.clip_value)

    def finish(self, trainer: Trainer) -> None:
        """After the update: log what is known of the step."""
        self.window = []
        metrics = self.monitor.measure_update()
        log_due = due(trainer.global_step, trainer.log_every_n_steps)
        if log_due:
            count, *sums = self._sums.tolist()
            metrics |= {f"train/{name}": total / count for name, total in zip(self._terms, sums, strict=True)}
            metrics |= {"seconds": (seconds := self.stopwatch.seconds), "samples_per_second": self.num_samples / seconds}
            metrics |= learning_rates(trainer.optimizers[0])
            self.loss = metrics["train/loss"]
        if log_due or self.skipped:
            metrics["guard/skipped_steps"] = float(self.num_skipped)
        if metrics:
            log(trainer, metrics, step=trainer.global_step)

    def raise_if_stopped(self) -> None:
        """NonFiniteError where training has stopped, since `patience` steps in a row were skipped."""
        if self.num_skipped_in_a_row >= self.patience:
            count, origin = self.num_skipped_in_a_row, self.origin
            raise NonFiniteError(f"{count} steps in a row were not finite, the last because of {origin}")

    def state_dict(self) -> dict[str, Any]:
        skipped = {"num_skipped": self.num_skipped, "in_a_row": self.num_skipped_in_a_row, "origin": self.origin}
        return skipped | {"num_samples": self.num_samples, "seconds": self.stopwatch.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_skipped, self.num_skipped_in_a_row = state["num_skipped"], state["in_a_row"]
        self.origin, self.num_samples, self.stopwatch.offset = state["origin"], state["num_samples"], state["seconds"]

    def _skip(self, trainer: Trainer, *, may_be_overflow: bool) -> None:
        """Leave everything as the last good step left it, and find out what was not finite.

        - may_be_overflow: of fp16 at a loss scale that is too large, and that GradScaler lowers: no reason to stop training
        """
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self.num_skipped += 1
        if not may_be_overflow:
            self.num_skipped_in_a_row += 1
            self.origin = self.find_origin(trainer)
            if trainer.is_global_zero:
                counts = f"{self.num_skipped_in_a_row} in a row, {self.num_skipped} in all"
                text = f"step {trainer.global_step} skipped ({counts}): not finite is {self.origin}"
                print(text, file=sys.stderr, flush=True)
            if self.num_skipped_in_a_row >= self.patience:
                trainer.should_stop = True
        self.policy.zero_grad(set_to_none=True)  # by zero gradients, momentum and weight decay would move the weights

    def find_origin(self, trainer: Trainer) -> str:
        """What was not finite first, found by computing the micro-batches once more, with the same random numbers."""
        policy = unsharded(self.policy)
        origin = next(filter(None, (self._compute_again(trainer, policy, each) for each in self.window)), None)
        if trainer.world_size > 1:
            origin = next((f"{found} (rank {rank})" for rank, found in enumerate(gather(origin)) if found), None)
        if origin is not None:
            return origin
        bad = [name for name, gradient in gradients_of(self.policy).items() if not full(gradient).isfinite().all()]
        return f"{f'the gradient of {bad[-1]}' if bad else 'the loss'}, which was finite when computed again"

    def _compute_again(self, trainer: Trainer, policy: Policy, micro_batch: MicroBatch) -> str | None:
        device = policy.device
        devices = [] if micro_batch.gpu_rng_state is None else [device]
        with torch.random.fork_rng(devices), torch.enable_grad(), trainer.precision_plugin.forward_context():
            torch.set_rng_state(micro_batch.cpu_rng_state)
            if micro_batch.gpu_rng_state is not None:
                torch.cuda.set_rng_state(micro_batch.gpu_rng_state, device)
            return first_nonfinite(policy, micro_batch.batch)


def clip(
    gradients: Sequence[Tensor], norm: Float[Tensor, ""], *, clip_norm: float | None = None, clip_value: float | None = None
) -> None:
    """Bound the `norm` that all gradients have together, or each of their values, in place."""
    if clip_norm:
        torch._foreach_mul_(gradients, torch.clamp(clip_norm / (norm + 1e-6), max=1.0))
    elif clip_value:
        for gradient in gradients:
            gradient.clamp_(-clip_value, clip_value)


def sum_losses(batch: Batch, loss: Float[Tensor, "b t"], terms: Mapping[str, Float[Tensor, "b t"]]) -> Float[Tensor, " sums"]:
    """The number of valid actions, the sum of the loss and the sum of each term."""
    dtype = torch.float32 if loss.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return torch.stack([tensor.sum().to(dtype) for tensor in (~batch.is_pad, loss.detach(), *terms.values())])


def learning_rate_factor(step: int, max_steps: int, *, warmup_steps: int, decay: str) -> float:
    """What the learning rate of step 0, 1, ... is multiplied by: a linear rise, then a cosine that falls to 0, or 1."""
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    progress = min(1.0, step / max(1, max_steps))
    return rise if decay == "constant" else rise * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of the first group, and of the first group of each component that has a multiplier of its own."""
    first = {group["component"]: group["lr"] for group in reversed(optimizer.param_groups)}
    own = {f"learning_rate/{component}": rate for component, rate in first.items() if component}
    return {"learning_rate": optimizer.param_groups[0]["lr"]} | own
