"""Training in stages: parts that are frozen until an optimizer step, such as an encoder until the head has settled."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vla_mini.finetuning.freezing import TrainableParameters, submodules
from vla_mini.policy import Policy


class Unfreezing(Callback):
    """Freezes each part named in `steps`, and trains it, as it would have been without, once that many steps are done.

    What is frozen follows from the step alone, so a resumed run needs no further state. The optimizer holds all parameters from
    the start: one without a gradient is not changed, and its state begins with its first gradient.
    """

    def __init__(self, policy: Policy, steps: Mapping[str, int]) -> None:
        self.policy, self.steps = policy, dict(steps)
        self._original = TrainableParameters(policy)
        self._freeze_until(0)
        self._from_the_start = {parameter for parameter in policy.parameters() if parameter.requires_grad}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if any(step <= trainer.global_step for step in self._frozen.values()):
            self._freeze_until(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        if trainer.world_size == 1:
            return
        for parameter in self.policy.parameters():  # DistributedDataParallel averages what was trainable when it was made
            if parameter.grad is not None and parameter not in self._from_the_start:
                parameter.grad.copy_(trainer.strategy.reduce(parameter.grad, reduce_op="mean"))

    def _freeze_until(self, done: int) -> None:
        """Everything as it has to be after so many optimizer steps."""
        self._frozen = {name: step for name, step in self.steps.items() if step > done}
        for module in submodules(self.policy, self.steps, setting="unfreeze_at"):
            self._original.restore(module)
        for module in submodules(self.policy, self._frozen, setting="unfreeze_at"):
            module.requires_grad_(False).eval()
