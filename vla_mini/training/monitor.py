"""Writes down what gradients are like: after accumulation and reduction over ranks, before clipping.

`on_before_optimizer_step` is the one place where that holds; tensor hooks, and `wandb.watch`, see single micro-batches.
docs/monitor.md explains every name that is logged.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from vla_mini.autograd import norms
from vla_mini.training.window import loss_scaler
from vla_mini.types import Batch


class GradientMonitor(Callback):
    """Looks at the gradients of every `every_n_steps`-th optimizer step (0 = never) and tells every logger.

    - histograms: steps between histograms of each parameter's gradient, which W&B alone gets (0 = never)
    - per_parameter: whether loggers get the scalars of each parameter, besides those of each component
    - watch: whether `wandb.watch` is switched on, too
    """

    def __init__(
        self, *, every_n_steps: int = 20, histograms: int = 100, per_parameter: bool = True, watch: bool = False
    ) -> None:
        self.every_n_steps, self.histograms, self.per_parameter, self.watch = every_n_steps, histograms, per_parameter, watch
        self._hooks: norms.MicroBatchNorms | None = None
        self._forget()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        for logger in wandb_loggers(trainer) if self.watch else ():
            # The whole module, so that its names, gradients/policy.<parameter>, are not those of our own histograms.
            logger.watch(module, log="gradients", log_freq=max(1, self.every_n_steps), log_graph=False)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        several = trainer.accumulate_grad_batches * trainer.world_size > 1
        if several and self._hooks is None and due(trainer, self.every_n_steps):
            self._hooks = norms.MicroBatchNorms(module.policy.parameters())
        self._samples, self._count = float(len(batch.actions)), (~batch.is_pad).sum()

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if self._hooks is not None:  # they saw the gradient of a sum over valid actions, scaled under fp16
            scaler = loss_scaler(trainer)
            divisor = float(self._count) * (scaler.get_scale() if scaler else 1.0)
            self._micro_batches.append((self._hooks.take() / divisor**2, self._samples))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if not (due(trainer, self.histograms) or due(trainer, self.every_n_steps)):
            return
        gradients = norms.gradients_of(module.policy)
        if due(trainer, self.histograms):
            for logger in wandb_loggers(trainer):
                log_histograms(logger, gradients, step=trainer.global_step)
        if not due(trainer, self.every_n_steps):
            return
        measures = norms.measure(gradients)
        parts = {name: norms.combine(part) for name, part in norms.by_component(measures).items()}
        total = norms.combine(list(parts.values())).norm if parts else 0.0
        self._scalars = scalars(parts) | {"gradients/total": total}
        if self.per_parameter:
            self._scalars |= scalars(measures, norm="/norm")  # a parameter's plain name is that of its histogram
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm != "value":
            self._scalars["gradients/clip_factor"] = min(1.0, trainer.gradient_clip_val / (total + 1e-6))  # as torch does
        micro_batches = self._gather(trainer)
        if len(micro_batches) > 1:
            noise = norms.noise_scale(*zip(*micro_batches, strict=True), square=total**2)
            self._scalars |= {f"gradient_noise/{name}": value for name, value in noise._asdict().items()}
        self._weights = {name: module.policy.get_parameter(name).detach().clone() for name in gradients}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self._weights is None:
            return
        self._scalars |= updates(module.policy, self._weights, per_parameter=self.per_parameter)
        for logger in trainer.loggers:
            logger.log_metrics(self._scalars, step=trainer.global_step - 1)  # Lightning counts from 0
        self._forget()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._forget()

    def _gather(self, trainer: Trainer) -> list[tuple[float, float]]:
        """The (squared norm, samples) of the window's micro-batches, of all ranks."""
        if trainer.world_size == 1:
            return self._micro_batches
        ranks: list[list[tuple[float, float]]] = [[]] * trainer.world_size
        torch.distributed.all_gather_object(ranks, self._micro_batches)
        return [micro_batch for rank in ranks for micro_batch in rank]

    def _forget(self) -> None:
        """Nothing is kept from one look to the next."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        self._micro_batches: list[tuple[float, float]] = []
        self._scalars: dict[str, float] = {}
        self._weights: dict[str, Tensor] | None = None


def due(trainer: Trainer, every_n_steps: int) -> bool:
    """Whether the optimizer step to come is one of every N. The same on all ranks."""
    return every_n_steps > 0 and (trainer.global_step + 1) % every_n_steps == 0


def scalars(measures: Mapping[str, norms.Measure], *, norm: str = "") -> dict[str, float]:
    """Measures under the names that they are logged by; `norm` is what is appended for the norm itself."""
    named: dict[str, float] = {}
    for name, measured in measures.items():
        named[f"gradients/{name}{norm}"] = measured.norm
        named[f"gradients/{name}/largest"] = measured.largest
        named[f"gradients/{name}/zeros"] = measured.zeros
        named[f"gradients/{name}/nonfinite"] = float(measured.nonfinite)
    return named


def updates(policy: nn.Module, before: Mapping[str, Tensor], *, per_parameter: bool) -> dict[str, float]:
    """The norm of the weights as they were, and the ratio to it of what the optimizer made of the gradients."""
    moved = torch._foreach_sub([policy.get_parameter(name).detach() for name in before], list(before.values()))
    weights, steps = (
        norms.combined_norms(dict(zip(before, norms.norms(tensors), strict=True)), per_parameter=per_parameter)
        for tensors in (before.values(), moved)
    )
    ratios = {f"updates/{name}": steps[name] / weights[name] for name in weights if weights[name]}
    return {f"weights/{name}": weight for name, weight in weights.items()} | ratios


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


@rank_zero_only
def log_histograms(logger: WandbLogger, gradients: Mapping[str, Tensor], *, step: int) -> None:
    """`gradients/<parameter>`: 64 bins between the smallest and the largest finite value."""
    import wandb

    histograms = {
        f"gradients/{name}": wandb.Histogram(np_histogram=norms.histogram(gradient)) for name, gradient in gradients.items()
    }
    logger.experiment.log(histograms | {"trainer/global_step": step})
