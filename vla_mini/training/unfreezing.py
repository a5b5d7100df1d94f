"""Training in stages: parts that are frozen until an optimizer step, such as an encoder until the head has settled."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vla_mini.training.freezing import Learning, parts


class Unfreezing(Callback):
    """Freezes each part named in `steps` and lets it learn, as it would have without, once so many steps are done.

    What is frozen follows from the step alone, so that a resumed run needs no more. The optimizer holds all parameters from
    the start: one without a gradient stays where it is, and its state begins with its first gradient. The first of the
    callbacks: whatever looks at parameters sees those that learn.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self.steps = dict(steps)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._before = Learning(module.policy)
        self._freeze_until(module, 0)
        self._from_the_start = {parameter for parameter in module.policy.parameters() if parameter.requires_grad}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if any(step <= trainer.global_step for step in self._waiting.values()):
            self._freeze_until(module, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if trainer.world_size == 1:
            return
        for parameter in module.policy.parameters():  # DistributedDataParallel averages what learnt when it was made
            if parameter.grad is not None and parameter not in self._from_the_start:
                parameter.grad.copy_(trainer.strategy.reduce(parameter.grad, reduce_op="mean"))

    def _freeze_until(self, module: LightningModule, done: int) -> None:
        """Everything as it would be after so many optimizer steps."""
        self._waiting = {name: step for name, step in self.steps.items() if step > done}
        for part in parts(module.policy, self.steps, setting="unfreeze_at"):
            self._before.restore(part)
        for part in parts(module.policy, self._waiting, setting="unfreeze_at"):
            part.requires_grad_(False).eval()
