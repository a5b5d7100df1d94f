"""Several processes that train one policy together, on one machine: trainer.devices=N.

The first is the one that the user started. When training begins, Lightning starts the same command again for each further
device; each process takes its part of every global batch, and their gradients are averaged (DistributedDataParallel), of
which `WindowMean` makes the mean of the global batch.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.accelerators import XLAAccelerator
from lightning.pytorch.strategies import DDPStrategy, Strategy

PATIENCE = 3  # seconds that the first process has to end by itself


def check_devices(accelerator: str, devices: int) -> None:
    """ValueError for devices that are not there, before any work."""
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    there = {"gpu": gpus or mps, "cuda": gpus, "mps": mps, "tpu": XLAAccelerator.is_available()}
    if not there.get(accelerator, True):
        raise ValueError(f"trainer.accelerator={accelerator}: torch sees no such device here; auto takes what there is")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not gpus and not mps)
    if devices > max(gpus, 1) and not on_cpu:
        raise ValueError(
            f"trainer.devices={devices}: torch sees {gpus} CUDA devices here; trainer.accelerator=cpu takes as many as you say"
        )


def choose_strategy(requested: str, *, devices: int) -> Strategy | str:
    """One process needs none; several share their gradients."""
    if devices == 1:
        return "auto"
    return DDPStrategy(
        cluster_environment=LightningEnvironment(),  # whatever else started this process: one machine, its devices
        find_unused_parameters=requested == "ddp_find_unused_parameters_true",
        timeout=timedelta(days=1),  # the others wait while the first one plays the selection scenes
    )


class EndTogether(Callback):
    """However training ends in the first process, by an error or a signal, the others end with it, without a word.

    Lightning would talk to them from within its handler of SIGTERM, and wait for ever where they are busy with something else.
    It also kills this process, some seconds after another one has ended other than well.

    And a process that waits for another one hears no signal, since Python hears them between two steps of its own: a second
    signal ends all, where the first process has not done so itself after some `PATIENCE`.
    """

    def __init__(self) -> None:
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
            if trainer.world_size > 1 and trainer.is_global_zero:
                self._watch(trainer.strategy.launcher)
            elif trainer.world_size > 1:  # deaf to signals, so that the first one decides; not to outlive it
                threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def _watch(self, launcher: Any) -> None:
        heard, number = os.pipe()
        os.set_blocking(number, False)
        signal.set_wakeup_fd(number, warn_on_full_buffer=False)

        def end() -> None:
            numbers: list[int] = []
            while len(numbers) < 2:
                numbers += [number for number in os.read(heard, 1) if number in (signal.SIGINT, signal.SIGTERM)]
            time.sleep(PATIENCE)
            os.write(2, b"\nthe other processes do not answer: stopped at once\n")
            for process in launcher.procs:
                process.kill()
            os._exit(128 + numbers[-1])

        threading.Thread(target=end, daemon=True).start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)  # what comes now is of this process alone

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        launcher: Any = trainer.strategy.launcher  # None where there is one process
        if launcher is None:
            return
        others, launcher.procs[:] = list(launcher.procs), []  # the list by which Lightning watches them
        for number, process in enumerate(others, start=1):
            if isinstance(exception, Exception) and process.poll() is not None:
                print(f"process {number} ended first, with exit code {process.returncode}", file=sys.stderr)
            process.kill()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
