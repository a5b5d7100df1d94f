"""torch.compile in training: `compile` and `compile_dynamic` of the settings -> a policy whose call is compiled.

What is compiled is the call, `policy(batch)`: the loss, from the bytes of the images to its last term. That is one graph
forward and one backward for every variant (but for a frozen language model, which looks up what it said before in Python, and
action=fast, which spells actions there).
Only `training_step` calls the policy. All else says `policy.loss`, `act` or `predict` and stays eager: validation, closed
loops, the guard's replay with its hooks on submodules, every analysis. To compile the parts one by one instead would compile
acting, too, anew for each number of environments that still run, and would leave out the heads, whose `loss` is no call.

`nn.Module.compile` renames no parameter: checkpoints and policy/ are the same with and without.
"""

import time
from statistics import median_low
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer

from vla_mini.policy import Policy
from vla_mini.training.loggers import log

Mode = Literal["default", "reduce-overhead", "max-autotune"]


def check_compile(mode: str, *, accelerator: str) -> None:
    """ValueError, before any work, where nothing can be compiled for `trainer.accelerator`, found by compiling a sine."""
    if mode == "none":
        return
    device = device_of(accelerator)
    if mode != "default" and device.type != "cuda":
        where = f"trainer.accelerator={accelerator} computes on the {device}"
        raise ValueError(f"compile={mode} needs CUDA graphs, and {where} here: say compile=default")
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compilers raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"compile={mode}: nothing can be compiled for {device} here ({reason}): say compile=none") from error


def device_of(accelerator: str) -> torch.device:
    """What Lightning makes of `trainer.accelerator`."""
    found = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def compile_policy(policy: Policy, mode: Mode, *, dynamic: bool | None = None) -> None:
    """From now on `policy(batch)` is compiled, at its first call.

    - dynamic: whether one graph serves all sizes of batches; None: only once a second size has come by
    """
    # Noise is drawn as eager mode draws it, so that heads that sample learn the same, and the guard's replay meets it again.
    options = torch._inductor.list_mode_options(mode, dynamic) | {"fallback_random": True}
    policy.compile(dynamic=dynamic, options=options)


class WarmUp(Callback):
    """Says once, and logs as `compile/warmup_seconds`, how much longer the first `num_batches` took than if each had taken
    their median.

    The stopwatch counts these `seconds`: whoever compiles waits for it.
    """

    def __init__(self, *, num_batches: int = 10) -> None:
        self.num_batches = num_batches
        self.seconds: float | None = None
        self._batches: list[float] = []  # seconds of each

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.seconds is None:
            self._batches.append(time.perf_counter() - self._started)
            if len(self._batches) == self.num_batches:
                self._report(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.seconds is None and len(self._batches) > 1:  # a short run
            self._report(trainer, module)

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        self.seconds = sum(self._batches) - len(self._batches) * median_low(self._batches)
        log(trainer, {"compile/warmup_seconds": self.seconds})
        module.print(f"compiling took {self.seconds:.1f} s of the first {len(self._batches)} batches")
