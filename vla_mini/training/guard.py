"""A non-finite loss or gradient never reaches the weights: its step is skipped, on all ranks together, and its origin named.

Without this, training goes on silently: one NaN in one gradient, and after the step every weight is NaN.
"""

import sys
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase as Running

from vla_mini.autograd.nonfinite import first_nonfinite
from vla_mini.autograd.norms import gradients_of, total_norm
from vla_mini.training.loggers import log
from vla_mini.training.window import loss_scaler
from vla_mini.types import Batch


class NonFiniteError(RuntimeError):
    """Training was stopped, since one step after another was not finite."""


class MicroBatch(NamedTuple):
    """What it takes to compute a micro-batch again: its tensors and the state of the random numbers before it."""

    batch: Batch
    host: Tensor
    device: Tensor | None  # CUDA's, where the policy is on a GPU


class NonFiniteGuard(Callback):
    """Comes second, after `WindowMean`, and judges a window by its loss and by the norm of its gradient.

    A window that is not finite is marked (`module.skip_step`): the module discards its gradients and holds the schedule, and
    whoever averages weights is to look at the mark, too. After `patience` such windows in a row training ends with
    everything as the last good step left it; `raise_if_stopped` then says why.

    Under fp16 a gradient that overflows is no failure: GradScaler skips the step and halves its scale. Such steps are skipped
    here all the same, but counted against the patience only once the scale cannot be lowered further.
    """

    def __init__(self, *, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f"guard.patience={patience}: at least one step has to fail before training stops")
        self.patience = patience
        self.skipped = self.in_a_row = 0
        self.origin: str | None = None  # of the latest skipped step
        self._loss: Tensor | float = 0.0
        self._window: list[MicroBatch] = []
        self._running: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if not self._window:  # BatchNorm takes a NaN into its running statistics long before there is a gradient
            parts = [part for part in module.policy.modules() if isinstance(part, Running) and part.training]
            self._running = [(buffer, buffer.clone()) for part in parts for buffer in part.buffers()]
        device = torch.cuda.get_rng_state(module.device) if module.device.type == "cuda" else None
        self._window.append(MicroBatch(batch, torch.get_rng_state(), device))

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self._loss = self._loss + loss.detach()  # a NaN or an infinity stays one, whatever is added

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        norm = total_norm(gradients_of(module.policy).values())
        bad = torch.stack([~self._loss.isfinite(), ~norm.isfinite()]).float()
        bad_loss, bad_gradient = (trainer.strategy.reduce(bad, reduce_op="sum") > 0).tolist()
        module.skip_step = bad_loss or bad_gradient
        if not module.skip_step:
            self.in_a_row = 0
        elif bad_loss or not _overflowed(trainer):
            self._report(trainer, module)
        for buffer, before in self._running if module.skip_step else ():
            buffer.copy_(before)
        self.skipped += module.skip_step
        if module.skip_step or (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            log(trainer, {"guard/skipped_steps": float(self.skipped)}, step=trainer.global_step)
        self._loss, self._window, self._running = 0.0, [], []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "origin": self.origin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row, self.origin = state["skipped"], state["in_a_row"], state["origin"]

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        self.in_a_row += 1
        self.origin = self._find_origin(trainer, module)
        if trainer.is_global_zero:
            counts = f"{self.in_a_row} in a row, {self.skipped + 1} in all"
            print(f"step {trainer.global_step} skipped ({counts}): not finite is {self.origin}", file=sys.stderr, flush=True)
        if self.in_a_row >= self.patience:
            trainer.should_stop = True

    def _find_origin(self, trainer: Trainer, module: LightningModule) -> str:
        """The window's micro-batches are computed again, with the random numbers as they were."""
        place = next(filter(None, (_replay(trainer, module, micro_batch) for micro_batch in self._window)), None)
        if trainer.world_size > 1:
            places: list[str | None] = [None] * trainer.world_size
            torch.distributed.all_gather_object(places, place)
            place = next((f"{found} (rank {rank})" for rank, found in enumerate(places) if found), None)
        if place is None:
            bad = [name for name, gradient in gradients_of(module.policy).items() if not total_norm([gradient]).isfinite()]
            place = f"{f'the gradient of {bad[-1]}' if bad else 'the loss'}, which was finite when computed again"
        return place


def raise_if_stopped(trainer: Trainer) -> None:
    """NonFiniteError, if a guard ended the training."""
    for guard in trainer.callbacks:
        if isinstance(guard, NonFiniteGuard) and guard.in_a_row >= guard.patience:
            raise NonFiniteError(f"{guard.in_a_row} steps in a row were not finite, the last because of {guard.origin}")


def _replay(trainer: Trainer, module: LightningModule, micro_batch: MicroBatch) -> str | None:
    devices = [] if micro_batch.device is None else [module.device]
    with torch.random.fork_rng(devices), torch.enable_grad(), trainer.precision_plugin.forward_context():
        torch.set_rng_state(micro_batch.host)
        if micro_batch.device is not None:
            torch.cuda.set_rng_state(micro_batch.device, module.device)
        return first_nonfinite(module.policy, micro_batch.batch)


def _overflowed(trainer: Trainer) -> bool:
    """Whether a non-finite gradient may be no more than fp16 at too large a loss scale."""
    scaler = loss_scaler(trainer)
    return scaler is not None and scaler.get_scale() > 1
