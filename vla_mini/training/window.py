"""The accumulation window: N micro-batches and one optimizer step, treated as the one big batch that they stand for.

Gradients arrive here as sums over valid actions; they leave divided by the window's number of valid actions, over all
ranks. Lightning's own division by N is not that: it is wrong for unequal masks and for a short last window.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

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
        return 0.0 if self._started is None else time.perf_counter() - self._started - self._paused

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

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        # Over all ranks, since DistributedDataParallel has averaged the gradients over them.
        count = trainer.strategy.reduce(self._count, reduce_op="sum")
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, trainer.world_size / int(count))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: dict[str, Any], batch: Batch, batch_idx: int
    ) -> None:
        for name, value in outputs["sums"].items():
            self._sums[name] = self._sums.get(name, 0) + value
        if trainer.global_step == self._step:
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:
            module.log("train/loss", self._sums.pop("loss") / self._count, prog_bar=True)
            module.log_dict({f"train/{name}": value / self._count for name, value in self._sums.items()})
            seconds = self.stopwatch.seconds
            rate = {"seconds": seconds, "samples_per_second": self._samples / seconds}
            module.log_dict(rate | {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"]})
        self._begin(trainer.global_step)

    def _begin(self, step: int = 0) -> None:
        self._step = step
        self._count: Tensor | int = 0
        self._sums: dict[str, Tensor] = {}
