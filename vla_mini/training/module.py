"""The LightningModule: batches -> loss, and the optimizer that training uses. Lightning runs the loop around it.

The loss of a batch is a sum over its valid actions. Their mean is taken once, over all micro-batches of an optimizer step and
all processes (step.py), so that N micro-batches have exactly the gradient of one large batch.
"""

import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_leaves_with_path

from vla_mini.policy import Policy
from vla_mini.training.callbacks import WeightAverage
from vla_mini.training.distributed import ShardedStrategy, shard, unsharded
from vla_mini.training.loggers import log, print_above_bar
from vla_mini.training.step import OptimizerStep, sum_losses
from vla_mini.types import Batch
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.schema import ObjectSettings


class PolicyModule(LightningModule):
    """A policy in training.

    - step: the optimizer step of `policy`
    - optimizer: its class and arguments
    - multipliers: of the learning rate, by component of the policy
    - average: the moving average of the weights, where there is one
    """

    def __init__(
        self,
        policy: Policy,
        step: OptimizerStep,
        optimizer: ObjectSettings,
        *,
        multipliers: Mapping[str, float] = {},
        average: WeightAverage | None = None,
    ):
        super().__init__()
        self.policy, self.step, self.average = policy, step, average
        self.optimizer, self.multipliers = optimizer, dict(multipliers)
        self.validation_loss: float | None = None  # of the latest validation

    @property
    def policy_for_evaluation(self) -> Policy:
        """The policy that is validated, evaluated and saved: the average of the weights where there is one."""
        return self.policy if self.average is None else self.average.policy

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            mesh = self.device_mesh["data_parallel"]
            for policy in {self.policy, self.policy_for_evaluation}:
                shard(policy, mesh)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        self.step.begin_micro_batch(self.trainer, batch)
        loss, terms = self.policy(batch)  # the only call of the policy itself, which is what `compile` compiles
        self.step.add_losses(loss, terms)
        return loss.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.step.prepare(self.trainer, optimizer)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Optimizer, optimizer_closure: Any = None) -> None:
        # The closure computes the last micro-batch of the window; then come `on_before_optimizer_step` and the update.
        optimizer.step(closure=optimizer_closure)
        self.step.finish(self.trainer)

    def on_validation_epoch_start(self) -> None:
        self._sums: Float[Tensor, " sums"] | int = 0
        self._validated = [unsharded(self.policy_for_evaluation)]  # in a list, so that it is no submodule

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, terms = self._validated[0].loss(batch)
        self._sums = self._sums + sum_losses(batch, loss, terms)
        self._terms = ("loss", *terms)

    def on_validation_epoch_end(self) -> None:
        """The mean over all valid actions of the split, in all processes."""
        count, *sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        means = {f"validation/{name}": value / count for name, value in zip(self._terms, sums, strict=True)}
        self.validation_loss = means["validation/loss"]
        log(self.trainer, means)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.policy, self.optimizer, self.multipliers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_step"] = self.step.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step.load_state_dict(checkpoint["optimizer_step"])


def build_optimizer(
    policy: nn.Module, settings: ObjectSettings, multipliers: Mapping[str, float] = {}
) -> torch.optim.Optimizer:
    """The optimizer of all parameters of `policy`.

    - settings: its class and arguments; weight decay is for the weights of layers alone
    - multipliers: of the learning rate, by component of the policy

    A group's `initial_lr` is its learning rate at the schedule's peak.
    """
    arguments = settings.arguments()
    weight_decay = arguments.pop("weight_decay", 0.0)
    groups = parameter_groups(policy, {name: policy.components()[name] for name in multipliers})
    for group in groups:
        group["weight_decay"] = weight_decay if group["layers"] else 0.0
    optimizer = pkgutil.resolve_name(settings.target)(groups, **arguments)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = group["lr"] * multipliers.get(group["component"], 1.0)
    return optimizer


def parameter_groups(policy: nn.Module, components: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """The weights of layers, and all other parameters (biases, norms, embeddings, vectors); `components` separately, last.

    Frozen parameters are included: some are unfrozen later, and the optimizer's state has one structure throughout.
    """
    layers = {module.weight for module in policy.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    separate = {name: list(component.parameters()) for name, component in components.items()}
    elsewhere = {parameter for parameters in separate.values() for parameter in parameters}
    common = [parameter for parameter in policy.parameters() if parameter not in elsewhere]
    groups = []
    for component, parameters in [(None, common), *separate.items()]:
        for is_layer in (True, False):
            chosen = [parameter for parameter in parameters if (parameter in layers) == is_layer]
            groups.append({"params": chosen, "layers": is_layer, "component": component})
    return [group for group in groups if group["params"]]


def check_optimizer(settings: ObjectSettings, *, device: torch.device) -> None:
    """ValueError, before any work, for an optimizer that cannot be built, or cannot step as training asks it to."""
    layer = nn.Linear(2, 2, device=device)
    layer(torch.ones(1, 2, device=device)).sum().backward()
    with as_value_error(f"optimizer: {settings.target.rpartition('.')[2]} cannot train like this"):
        build_optimizer(layer, settings).step()


class Summary(Callback):
    """Prints once, before the first step: precision, the tensors of a batch, the number of parameters of each component."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        # A new list: Lightning still iterates over the old one.
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]
        processes = f", processes: {trainer.world_size}" if trainer.world_size > 1 else ""
        text = [f"precision: {trainer.precision}{processes}"]
        if torch.are_deterministic_algorithms_enabled():
            text.append("deterministic=true: no cost on CPUs; on GPUs slower kernels, and an error where there is none")
        print_above_bar(trainer, "\n\n".join([*text, describe_batch(batch), describe_parameters(module.policy), ""]))


def describe_batch(batch: Batch) -> str:
    lines = [f"{'batch':<26}{'shape':<26}{'dtype':<10}device"]
    for path, tensor in tree_leaves_with_path(batch):
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"  {keystr(path)[1:]:<24}{' x '.join(map(str, tensor.shape)):<26}{dtype:<10}{tensor.device}")
    return "\n".join(lines)


def describe_parameters(policy: Policy) -> str:
    lines = [f"{'component':<26}{'parameters':>10}{'trainable':>12}"]
    for name, component in (policy.components() | {"total": policy}).items():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in component.parameters()]
        trainable = sum(size for size, requires_grad in sizes if requires_grad)
        lines.append(f"  {name:<24}{sum(size for size, _ in sizes):>10,}{trainable:>12,}")
    return "\n".join(lines)
