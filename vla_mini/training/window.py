"""The accumulation window: N micro-batches and one optimizer step, treated as the one big batch that they stand for.

Gradients arrive here as sums over valid actions; they leave divided by the window's number of valid actions, over all
ranks. Lightning's own division by N is not that: it is wrong for unequal masks and for a short last window.

The order of the callbacks is part of the design, since each sees what the one before it left:

    WindowMean (divide) -> NonFiniteGuard (judge) -> GradientMonitor (look) -> the module: discard or clip -> optimizer
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from vla_mini.training.loggers import log
from vla_mini.types import Batch


class Stopwatch:
    """Seconds of training, with what is not training left out."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._paused = 0.0

    def start(self) -> None:
        self._started = self._started or time.perf_counter()

    @property
    def seconds(self) -> float:
        return -self._paused if self._started is None else time.perf_counter() - self._started - self._paused

    def add(self, seconds: float) -> None:
        """Count these, too: those of a run that is resumed."""
        self._paused -= seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._paused += time.perf_counter() - before


class WindowMean(Callback):
    """Turns summed gradients into those of the window's mean, and logs the window's mean loss. The first of the callbacks:
    whatever looks at gradients afterwards sees the true ones."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self._samples = 0
        self._begin()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.stopwatch.start()
        self._count = self._count + (~batch.is_pad).sum()
        self._samples += len(batch.actions) * trainer.world_size

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        unscale(trainer, optimizer)
        # Over all ranks, since DistributedDataParallel has averaged the gradients over them.
        self._count = trainer.strategy.reduce(self._count.to(finest(self._count.device)), reduce_op="sum")
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, trainer.world_size / self._count)  # by a tensor: the device need not be waited for

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: dict[str, Any], batch: Batch, batch_idx: int
    ) -> None:
        for name, value in outputs["sums"].items():
            self._sums[name] = self._sums.get(name, 0) + value
        if trainer.global_step == self._step:
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:
            sums = trainer.strategy.reduce(torch.stack(list(self._sums.values())), reduce_op="sum")
            means = dict(zip(self._sums, sums / self._count, strict=True))
            module.log("train/loss", means["loss"], prog_bar=True, logger=False)
            seconds = self.stopwatch.seconds
            rate = {"seconds": seconds, "samples_per_second": self._samples / seconds}
            rate |= learning_rates(trainer.optimizers[0])
            log(trainer, {f"train/{name}": mean for name, mean in means.items()} | rate)
        self._begin(trainer.global_step)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._begin(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "seconds": self.stopwatch.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples = state["samples"]
        self.stopwatch.add(state["seconds"])

    def _begin(self, step: int = 0) -> None:
        self._step = step
        self._count: Tensor | int = 0
        self._sums: dict[str, Tensor] = {}


def finest(device: torch.device) -> torch.dtype:
    """Of floats: float64, since 1e-12 is promised, but where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Of the first group, and of the first of each component that has its own."""
    first = {group.get("component"): group["lr"] for group in reversed(optimizer.param_groups)}
    own = {f"learning_rate/{component}": rate for component, rate in first.items() if component}
    return {"learning_rate": optimizer.param_groups[0]["lr"]} | own


def unscale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
    """Take fp16's loss scale out of the gradients, where that is still to be done.

    Lightning leaves it to optimizers that can do so within their step (the fused ones), so that norms would be reported, and
    gradients clipped, as multiples of the scale. GradScaler allows to do it earlier for these, too.
    """
    scaler = loss_scaler(trainer)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):  # as GradScaler itself asks
        scaler.unscale_(optimizer)


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """The GradScaler of precision=16-mixed; None in all other precisions."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None
