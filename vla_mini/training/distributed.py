"""Several processes that train together: the strategy by which they share gradients, and that none outlives the others."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, Strategy

from vla_mini.commands import processes

SHUTDOWN_SECONDS = 3  # that the first process has after a second signal


def choose_strategy(requested: str, *, num_processes: int) -> Strategy | str:
    """One process needs none. Several, started by the same command, average their gradients."""
    if num_processes == 1:
        return "auto"
    return DDPStrategy(
        cluster_environment=cluster_environment(),
        find_unused_parameters=requested == "ddp_find_unused_parameters_true",
        timeout=timedelta(days=1),  # the others wait while the first one writes
    )


def cluster_environment() -> ClusterEnvironment:
    """What Lightning should know of how the processes were started."""
    match processes.launcher():
        case "torchrun":
            return TorchElasticEnvironment()
        case "srun":
            return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()  # by Lightning itself, on this machine, whatever cluster it belongs to


class ProcessShutdown(Callback):
    """Ends all processes of a run when the first one ends, however it ends.

    Lightning would communicate within its handler of SIGTERM, and wait for ever for a busy process; it would also kill this one
    some seconds after another has failed. And Python runs no handler of a signal while it waits for another process: after a
    second signal, and SHUTDOWN_SECONDS, a thread ends everything.
    """

    def __init__(self) -> None:
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if trainer.is_global_zero:
            _watch_signals(trainer)
        else:  # The first process decides, so this one ignores signals; it must not outlive it.
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        signal.set_wakeup_fd(-1)  # the first process is alone from now on

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        others = list(started_by_lightning(trainer))
        started_by_lightning(trainer).clear()  # Lightning watches them
        for number, process in enumerate(others, start=1):
            if isinstance(exception, Exception) and process.poll() is not None:
                print(f"process {number} ended first, with exit code {process.returncode}", file=sys.stderr)
            process.kill()


def started_by_lightning(trainer: Trainer) -> list[Any]:
    """Lightning's own list of the further processes; it is empty where torchrun or srun started them, which end them, too."""
    launcher = trainer.strategy.launcher
    return [] if launcher is None else launcher.procs


def _watch_signals(trainer: Trainer) -> None:
    received, descriptor = os.pipe()
    os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def end() -> None:
        numbers: list[int] = []
        while len(numbers) < 2:
            numbers += [number for number in os.read(received, 1) if number in (signal.SIGINT, signal.SIGTERM)]
        time.sleep(SHUTDOWN_SECONDS)
        os.write(2, b"\nthe other processes do not answer: stopped at once\n")
        for process in started_by_lightning(trainer):
            process.kill()
        os._exit(128 + numbers[-1])

    threading.Thread(target=end, daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
