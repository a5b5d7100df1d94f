"""A run's settings and policy -> Lightning's Trainer with its callbacks, and the module that it trains.

Also what depends on the machine: devices, precision, torch.compile, memory. Several processes: distributed.py.
"""

import ctypes
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vla_mini.finetuning.unfreezing import Unfreezing
from vla_mini.policy import Policy
from vla_mini.settings import TrainSettings
from vla_mini.training.callbacks import BestPolicy, Checkpoints, WeightAverage
from vla_mini.training.checkpoints import AtomicCheckpointIO
from vla_mini.training.distributed import ProcessShutdown, choose_strategy
from vla_mini.training.loggers import TrainingBar, build_loggers, log, print_above_bar, silence_lightning
from vla_mini.training.module import PolicyModule, Summary
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.step import OptimizerStep
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.machine import multiplies_bf16

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def build_training(
    settings: TrainSettings, policy: Policy, *, run_dir: Path, provenance: Mapping[str, Any] = {}, run: str = "", steps: int = 0
) -> tuple[Trainer, PolicyModule]:
    """What `trainer.fit(module, datamodule=...)` needs.

    - provenance: goes to the loggers beside the settings
    - run: its `fingerprint`, which its checkpoints hold
    - steps: that a resumed run has made before
    """
    keep_freed_memory()
    silence_lightning()
    if settings.trainer.precision == "64-true":  # Lightning would load a checkpoint first, into float32 weights.
        policy.double()
    average = None if settings.ema.decay is None else WeightAverage(policy, settings.ema.decay)
    if settings.compile != "none":
        compile_policy(policy, settings.compile, dynamic=settings.compile_dynamic)
    config = settings.model_dump(mode="json") | dict(provenance)
    loggers = [] if rank_zero_only.rank else build_loggers(settings.logger, run_dir=run_dir, config=config, steps=steps)
    step = OptimizerStep(
        policy,
        monitor=GradientMonitor(**settings.monitor.model_dump(exclude={"watch"})),
        clip_value=settings.trainer.gradient_clip_val,
        clip_algorithm=settings.trainer.gradient_clip_algorithm,
        patience=settings.guard.patience,
        **settings.schedule.model_dump(exclude={"multipliers"}),
    )
    module = PolicyModule(policy, step, settings.optimizer, multipliers=settings.schedule.multipliers, average=average)
    if settings.monitor.watch:  # The module, not the policy, so that W&B's names differ from the monitor's.
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.watch(module, log="gradients", log_freq=max(1, settings.monitor.every_n_steps), log_graph=False)
    callbacks = build_callbacks(settings, policy, average, run_dir=run_dir)
    plugins = [AtomicCheckpointIO(run)]
    arguments = {"logger": loggers or False, "callbacks": callbacks, "plugins": plugins, "default_root_dir": run_dir}
    return Trainer(**trainer_arguments(settings), **arguments), module


def build_callbacks(settings: TrainSettings, policy: Policy, average: WeightAverage | None, *, run_dir: Path) -> list[Callback]:
    """What happens beside the optimizer steps, in this order within each of Lightning's hooks."""
    choice = settings.evaluation.model_dump(include={"selection_episodes", "every_n_steps", "seed"})
    best = BestPolicy(run_dir / "policy", env_id=settings.env.address, **choice)
    callbacks = [
        Unfreezing(policy, settings.unfreeze_at) if settings.unfreeze_at else None,
        average,
        WarmUp() if settings.compile != "none" else None,
        best,
        ProcessShutdown() if settings.num_processes > 1 else None,
        TrainingBar() if settings.trainer.enable_progress_bar is not False else None,
        Checkpoints(run_dir / "checkpoints", **settings.checkpoint.model_dump(), best=best),  # after all whose state it saves
        Summary(),
    ]
    return [callback for callback in callbacks if callback is not None]


def trainer_arguments(settings: TrainSettings) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that are the user's choice."""
    return settings.trainer.arguments() | {
        "gradient_clip_val": None,  # clipping is a part of our own step (step.py)
        "gradient_clip_algorithm": None,
        "precision": choose_precision(settings.trainer.precision, accelerator=settings.trainer.accelerator),
        "strategy": choose_strategy(settings.trainer.strategy, num_processes=settings.num_processes),
        "deterministic": settings.deterministic,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,  # there is one of our own
    }


def check_trainer(settings: TrainSettings) -> None:
    """ValueError, before any work, for what the machine lacks or Lightning's Trainer refuses."""
    accelerator, precision = settings.trainer.accelerator, settings.trainer.precision
    if accelerator not in ("auto", "cpu") and choose_device(accelerator).type == "cpu":
        raise ValueError(f"trainer.accelerator={accelerator}: torch finds no such device here; auto uses what there is")
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if precision.startswith("16") and not on_gpu:  # Lightning would use bf16 without a word
        raise ValueError(f"trainer.precision={precision} is for GPUs; on CPUs there are bf16-mixed, 32-true and 64-true")
    if precision.startswith("bf16") and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"trainer.precision={precision}: this GPU has no bf16; auto chooses what it has")
    silence_lightning()
    with as_value_error("trainer"):  # Lightning has exceptions of its own
        lightning.Trainer(**trainer_arguments(settings), logger=False)
    check_compile(settings.compile, accelerator=accelerator)


# ---- devices and precision


def choose_device(accelerator: str) -> torch.device:
    """The device that Lightning uses for `trainer.accelerator`."""
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def choose_precision(requested: str, *, accelerator: str = "auto") -> str:
    """`requested`, or for "auto": bf16-mixed where the CPU or GPU multiplies bf16 natively, else 32-true."""
    if requested != "auto":
        return requested
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if multiplies_bf16("cuda" if on_gpu else "cpu") else "32-true"


def keep_freed_memory() -> None:
    """Keep freed memory in the process. Glibc gives blocks of some megabytes back at once, and the next step pays for each page
    again: a sixth of a step's time on toy_pick. Other C libraries are left as they are."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that is allowed


# ---- torch.compile


def check_compile(mode: str, *, accelerator: str) -> None:
    """ValueError where nothing can be compiled for `trainer.accelerator`, found by compiling a sine."""
    if mode == "none":
        return
    device = choose_device(accelerator)
    if mode != "default" and device.type != "cuda":
        where = f"trainer.accelerator={accelerator} computes on the {device}"
        raise ValueError(f"compile={mode} needs CUDA graphs, and {where} here: use compile=default")
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compilers raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"compile={mode}: nothing can be compiled for {device} here ({reason}): use compile=none") from error


def compile_policy(policy: Policy, mode: str, *, dynamic: bool | None = None) -> None:
    """From now on `policy(batch)` is compiled, at its first call: one graph from the images to the loss, and one backward.

    - dynamic: whether one graph serves all batch sizes; None = once a second size has been seen

    Only `training_step` calls the policy like this. Validation, rollouts, the search for the origin of a NaN and all analyses
    stay eager. No parameter is renamed, so checkpoints and policy/ stay the same.
    """
    # Noise is drawn as in eager mode, so that heads that sample are trained on the same.
    options = torch._inductor.list_mode_options(mode, dynamic) | {"fallback_random": True}
    policy.compile(dynamic=dynamic, options=options)


class WarmUp(Callback):
    """How long torch.compile took: by how much the first `num_batches` exceeded their median. Printed and logged once."""

    def __init__(self, *, num_batches: int = 10) -> None:
        self.num_batches = num_batches
        self.seconds: float | None = None
        self._times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.seconds is None:
            self._times.append(time.perf_counter())
        if self.seconds is None and len(self._times) > self.num_batches:
            batches = np.diff(self._times)
            self.seconds = float(batches.sum() - len(batches) * np.median(batches))
            log(trainer, {"compile/warmup_seconds": self.seconds})
            print_above_bar(trainer, f"compiling took {self.seconds:.1f} s of the first {len(batches)} batches")
