"""The Lightning module: batch -> loss; what Lightning does with it (device, precision, accumulation, step) is its affair.

The loss is summed over the valid actions, not averaged: the mean is taken once, over the whole accumulation window and all
ranks, by `WindowMean` just before the optimizer step. So the gradient of N micro-batches is that of the one big batch, exactly.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import nn

from vla_mini.autograd.norms import components
from vla_mini.policy import Policy
from vla_mini.training.average import judged
from vla_mini.training.loggers import log
from vla_mini.types import Batch


class PolicyModule(LightningModule):
    """A policy in training.

    - optimizer: {"_target_": "torch.optim.AdamW", "lr": ..., ...}
    - warmup_steps: optimizer steps in which the learning rate rises linearly
    - decay: how it falls afterwards, over `max_steps` of the trainer
    - multipliers: of the learning rate, for some of the policy's components

    `skip_step` is the guard's mark on the step in progress: it is to leave everything as it was.
    """

    skip_step = False

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: Mapping[str, Any],
        warmup_steps: int = 0,
        decay: Literal["cosine", "constant"] = "cosine",
        multipliers: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.policy, self.multipliers = policy, dict(multipliers or {})
        self.optimizer, self.warmup_steps, self.decay = dict(optimizer), warmup_steps, decay

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        loss, terms = self.policy(batch)  # the one place where the policy is called, and so compiled where it is to be
        # Lightning divides each micro-batch by their number; undone here, since WindowMean divides by what was counted.
        return {
            "loss": loss.sum() * self.trainer.accumulate_grad_batches,
            "sums": {"loss": loss.detach().sum()} | {name: term.sum() for name, term in terms.items()},
        }

    def on_validation_epoch_start(self) -> None:
        self._validation = defaultdict(float)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, terms = judged(self.trainer, self).loss(batch)
        for name, term in ({"loss": loss} | terms).items():
            self._validation[name] += term.sum()
        self._validation["count"] += (~batch.is_pad).sum()

    def on_validation_epoch_end(self) -> None:
        """The mean over all valid actions of the split, of all ranks: one denominator, as in training."""
        sums = self.trainer.strategy.reduce(torch.stack(list(self._validation.values())), reduce_op="sum")
        *means, _ = (sums / sums[-1]).tolist()
        figures = {f"validation/{name}": mean for name, mean in zip(self._validation, means, strict=False)}
        log(self.trainer, figures)
        self.log_dict(figures, logger=False, sync_dist=True)  # for Lightning's callbacks that wait for a figure

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.optimizer, self._parameter_groups())
        for group in optimizer.param_groups:  # before the schedule, which takes this as the rate to begin with
            group["lr"] *= self.multipliers.get(group["component"], 1.0)
        # A plain function, which checkpoints leave out: they hold tensors and numbers alone.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._learning_rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # After all callbacks. None, not zero: by a zero gradient momentum and weight decay would still move the weights.
        if self.skip_step:
            self.zero_grad(set_to_none=True)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's own refuses fused optimizers under mixed precision.
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        if gradient_clip_val:
            clip(self.parameters(), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: torch.optim.lr_scheduler.LRScheduler, metric: Any) -> None:
        if not self.skip_step:
            scheduler.step()

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """The weights of layers decay; biases, norms, embeddings and single vectors do not. Components with a learning rate of
        their own come after all others.

        Frozen parameters are in, too: some learn later, and the optimizer's state has one shape throughout.
        """
        layers = {module.weight for module in self.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
        parts = components(self.policy)
        apart = {name: list(parts[name].parameters()) for name in self.multipliers}
        elsewhere = {parameter for parameters in apart.values() for parameter in parameters}
        common = [parameter for parameter in self.parameters() if parameter not in elsewhere]
        groups = []
        for component, parameters in [(None, common), *apart.items()]:
            ours = [parameter for parameter in parameters if parameter in layers]
            rest = [parameter for parameter in parameters if parameter not in layers]
            groups += [
                {"params": ours, "layers": True, "component": component},
                {"params": rest, "layers": False, "component": component},
            ]
        return [group for group in groups if group["params"]]

    def _learning_rate_factor(self, step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay == "constant":
            return rise
        progress = min(1.0, step / max(1, self.trainer.max_steps))
        return rise * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(spec: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that `spec` describes, over `groups` of parameters, of which those of `layers` decay."""
    # YAML knows lists where constructors take tuples (betas).
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
    module, _, name = arguments.pop("_target_").rpartition(".")
    decay = arguments.pop("weight_decay", 0.0)
    decaying = [{**group, "weight_decay": decay if group["layers"] else 0.0} for group in groups]
    return getattr(import_module(module), name)(decaying, **arguments)


def check_optimizer(spec: Mapping[str, Any], *, device: torch.device) -> None:
    """ValueError, before any work, for an optimizer that cannot be made, or cannot step as training asks it to."""
    layer = nn.Linear(2, 2, device=device)
    layer(torch.ones(1, 2, device=device)).sum().backward()
    groups = [{"params": [weight], "layers": layers} for weight, layers in ((layer.weight, True), (layer.bias, False))]
    try:
        build_optimizer(spec, groups).step()
    except Exception as error:  # whatever the libraries raise
        name = spec["_target_"].rpartition(".")[2]
        raise ValueError(f"optimizer: {name} cannot train so: {' '.join(str(error).split())[:200]}") from error
