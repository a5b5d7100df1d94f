"""Logs the gradients of each component: after accumulation and reduction over ranks, before clipping.

`on_before_optimizer_step` is the one place where that holds; tensor hooks, and `wandb.watch`, see single micro-batches.
"""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vla_mini.autograd.norms import gradient_norms


class GradientMonitor(Callback):
    """Norms as `gradients/<component>` to every logger, every `log_every_n_steps` of the trainer; histograms of each
    parameter's gradient as `gradients/<parameter>` to W&B."""

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        policy = module.policy
        module.log_dict({f"gradients/{name}": norm for name, norm in gradient_norms(policy).items()})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._log_histograms(logger, policy, step=trainer.global_step)

    @rank_zero_only
    def _log_histograms(self, logger: WandbLogger, policy: Any, *, step: int) -> None:
        import wandb

        histograms = {
            f"gradients/{name}": wandb.Histogram(parameter.grad.float().flatten().tolist())
            for name, parameter in policy.named_parameters()
            if parameter.grad is not None
        }
        logger.experiment.log(histograms | {"trainer/global_step": step})
