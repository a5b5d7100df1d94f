"""What a run shows before its first step: every tensor of a batch, and where the parameters are."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from vla_mini.autograd.norms import components
from vla_mini.types import Batch

DETERMINISTIC = """\
deterministic=true: no cost on CPUs; on GPUs slower kernels, and an operation that has only others ends the run
"""


class Summary(Callback):
    """Prints, once, the precision, each tensor of the first batch and how many parameters each component has."""

    def __init__(self) -> None:
        self._done = False

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if not self._done and trainer.is_global_zero:
            several = f", processes: {trainer.world_size}" if trainer.world_size > 1 else ""
            module.print(f"precision: {trainer.precision}{several}\n")  # above the progress bar
            if torch.are_deterministic_algorithms_enabled():
                module.print(DETERMINISTIC)
            module.print(f"{describe_batch(batch)}\n\n{describe_parameters(module.policy)}\n")
        self._done = True


def describe_batch(batch: Batch) -> str:
    lines = [f"{'batch':<26}{'shape':<22}{'dtype':<10}device"]
    for name, tensor in _tensors(batch):
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"  {name:<24}{' x '.join(map(str, tensor.shape)):<22}{dtype:<10}{tensor.device}")
    return "\n".join(lines)


def describe_parameters(policy: nn.Module) -> str:
    lines = [f"{'component':<26}{'parameters':>10}{'learning':>12}"]
    for name, part in components(policy).items():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
        lines.append(f"  {name:<24}{sum(n for n, _ in sizes):>10,}{sum(n for n, learns in sizes if learns):>12,}")
    total = sum(parameter.numel() for parameter in policy.parameters())
    learning = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    return "\n".join([*lines, f"  {'total':<24}{total:>10,}{learning:>12,}"])


def _tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, field in value._asdict().items():
        if isinstance(field, Tensor):
            yield prefix + name, field
        else:
            yield from _tensors(field, f"{prefix}{name}.")
