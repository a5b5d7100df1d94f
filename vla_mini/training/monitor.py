"""The gradients of a step, after accumulation and reduction over processes and before clipping -> metrics by name.

docs/monitor.md explains every name. Tensor hooks, and `wandb.watch`, get the gradients of single micro-batches instead.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from vla_mini.autograd.norms import noise_scale
from vla_mini.training.distributed import full
from vla_mini.training.loggers import gather
from vla_mini.types import Batch

Parameters = Mapping[str, nn.Parameter]


class GradientMonitor:
    """Measures the gradients of every `every_n_steps`-th optimizer step (0 = never), and what the update makes of them.

    - histograms: steps between histograms of each parameter's gradient, which only W&B gets (0 = never)
    - per_parameter: whether each parameter is measured by itself, too, besides each component
    """

    def __init__(self, *, every_n_steps: int = 20, histograms: int = 100, per_parameter: bool = True) -> None:
        self.every_n_steps, self.histograms, self.per_parameter = every_n_steps, histograms, per_parameter
        self._hooks: MicroBatchNorms | None = None
        self._metrics: dict[str, float] = {}
        self._measured: Parameters = {}
        self._weights: list[Tensor] = []  # of the measured parameters, before the update

    def begin_micro_batch(self, trainer: Trainer, parameters: Parameters, batch: Batch) -> None:
        """Before one of several micro-batches of a step: note the norm of its own gradient, where the step will be measured."""
        if due(trainer.global_step, self.every_n_steps):
            self._hooks = self._hooks or MicroBatchNorms(parameters.values())
            scaler = loss_scaler(trainer)
            scale = (scaler.get_scale() if scaler else 1.0) / trainer.accumulate_grad_batches  # as Lightning divides the loss
            self._hooks.begin_micro_batch(num_samples=float(len(batch.actions)), factor=scale * int((~batch.is_pad).sum()))

    def measure(self, trainer: Trainer, parameters: Parameters, *, clip_norm: float | None = None) -> None:
        """Measure the parameters that have a gradient, before it is clipped. `measure_update` returns the metrics."""
        if due(trainer.global_step, self.histograms):
            log_histograms(trainer, parameters)
        if due(trainer.global_step, self.every_n_steps):
            self._measured, self._weights = parameters, [full(parameter.detach()).clone() for parameter in parameters.values()]
            self._metrics = gradient_metrics(parameters, per_parameter=self.per_parameter)
            if clip_norm:  # as torch computes it
                self._metrics["gradients/clip_factor"] = min(1.0, clip_norm / (self._metrics["gradients/total"] + 1e-6))
            if self._hooks is not None:
                self._metrics |= self._noise_metrics()

    def measure_update(self) -> dict[str, float]:
        """All metrics of the step, after its update."""
        metrics, parameters, weights = self._metrics, self._measured, self._weights
        self._metrics, self._measured, self._weights = {}, {}, []
        return metrics | update_metrics(parameters, weights, per_parameter=self.per_parameter) if metrics else metrics

    def _noise_metrics(self) -> dict[str, float]:
        found = [micro_batch for rank in gather(self._hooks.remove()) for micro_batch in rank]
        self._hooks = None
        if len(found) < 2:
            return {}
        noise = noise_scale(*zip(*found, strict=True), square=self._metrics["gradients/total"] ** 2)
        return {f"gradient_noise/{name}": value for name, value in noise._asdict().items()}


class MicroBatchNorms:
    """The squared norm of each micro-batch's mean gradient, by hooks that get its gradient before it is added to `.grad`."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._micro_batches: list[tuple[float, float]] = []
        self._squares: list[Tensor | float] = []
        self._handles = [parameter.register_hook(self._add) for parameter in parameters if parameter.requires_grad]

    def begin_micro_batch(self, *, num_samples: float, factor: float) -> None:
        """`factor`: what the gradient of the micro-batch's mean loss is multiplied by in its backward pass."""
        self._micro_batches.append((num_samples, factor))
        self._squares.append(0.0)

    def _add(self, gradient: Tensor) -> None:
        self._squares[-1] = self._squares[-1] + torch.linalg.vector_norm(gradient.detach()).square()

    def remove(self) -> list[tuple[float, float]]:
        """Remove the hooks. (Squared norm, number of samples) of each micro-batch."""
        for handle in self._handles:
            handle.remove()
        pairs = zip(self._squares, self._micro_batches, strict=True)
        return [(float(square) / factor**2, num_samples) for square, (num_samples, factor) in pairs]


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """The GradScaler of precision=16-mixed; None in all other precisions."""
    return trainer.precision_plugin.scaler if isinstance(trainer.precision_plugin, MixedPrecision) else None


def due(step: int, every_n_steps: int) -> bool:
    """Whether the optimizer step 0, 1, ... is one of every N: the N-th, the 2N-th ... if one counts from 1."""
    return every_n_steps > 0 and (step + 1) % every_n_steps == 0


def gradient_metrics(parameters: Parameters, *, per_parameter: bool = True) -> dict[str, float]:
    """`gradients/<component>` (the norm), `/largest`, `/zeros` (a share), `/nonfinite` (a number), and `gradients/total`.

    With `per_parameter` the same for each parameter, whose norm is `gradients/<parameter>/norm`.
    """
    gradients = [full(parameter.grad) for parameter in parameters.values()]
    norms, largest = (norms_of(gradients, order) for order in (2.0, math.inf))
    sizes = np.array([gradient.numel() for gradient in gradients])
    zeros = sizes - np.array(torch.stack([torch.count_nonzero(gradient) for gradient in gradients]).tolist())
    # Where the norm is finite all values are, so that they are rarely counted.
    nonfinite = np.array([0 if np.isfinite(n) else int((~g.isfinite()).sum()) for g, n in zip(gradients, norms, strict=True)])
    metrics = {"gradients/total": float(np.linalg.norm(norms))}
    for name, rows in groups(parameters, per_parameter=per_parameter):
        metrics[f"gradients/{name}/norm" if name in parameters else f"gradients/{name}"] = float(np.linalg.norm(norms[rows]))
        metrics[f"gradients/{name}/largest"] = float(largest[rows].max())
        metrics[f"gradients/{name}/zeros"] = float(zeros[rows].sum() / sizes[rows].sum())
        metrics[f"gradients/{name}/nonfinite"] = float(nonfinite[rows].sum())
    return metrics


def update_metrics(parameters: Parameters, before: Sequence[Tensor], *, per_parameter: bool = True) -> dict[str, float]:
    """`weights/<name>`, the norm before the update, and `updates/<name>`, the norm of the update by that of the weights."""
    moved = torch._foreach_sub([full(parameter.detach()) for parameter in parameters.values()], list(before))
    weights, updates, metrics = norms_of(before), norms_of(moved), {}
    for name, rows in groups(parameters, per_parameter=per_parameter):
        metrics[f"weights/{name}"] = weight = float(np.linalg.norm(weights[rows]))
        if weight:
            metrics[f"updates/{name}"] = float(np.linalg.norm(updates[rows])) / weight
    return metrics


def norms_of(tensors: Sequence[Tensor], order: float = 2.0) -> np.ndarray:
    """The norm of each tensor, in one fused pass and one transfer to the host."""
    return np.array(torch.stack(torch._foreach_norm(tensors, order)).tolist())


def groups(parameters: Parameters, *, per_parameter: bool) -> Iterator[tuple[str, list[int]]]:
    """The indices of each component's parameters, by the first part of their names; and of each parameter, by its name."""
    components: dict[str, list[int]] = {}
    for index, name in enumerate(parameters):
        components.setdefault(name.partition(".")[0], []).append(index)
    yield from components.items()
    yield from ((name, [index]) for index, name in enumerate(parameters) if per_parameter)


def log_histograms(trainer: Trainer, parameters: Parameters) -> None:
    """`gradients/<parameter>` for W&B: 64 bins between the smallest and the largest finite value."""
    gradients = {name: full(parameter.grad) for name, parameter in parameters.items()}  # in all processes
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        return
    import wandb

    counts = {f"gradients/{name}": histogram(gradient) for name, gradient in gradients.items()}
    histograms = {name: wandb.Histogram(np_histogram=found) for name, found in counts.items()}
    for logger in loggers:
        logger.experiment.log(histograms | {"trainer/global_step": trainer.global_step})


def histogram(gradient: Tensor, *, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges between the smallest and the largest finite value, as `np.histogram` gives them, but faster."""
    values = gradient.detach().float().flatten()
    values = values[values.isfinite()]
    if not len(values):
        return np.zeros(bins, dtype=np.int64), np.linspace(0, 1, bins + 1)
    low, high = torch.aminmax(values)
    if low == high:  # as NumPy widens an empty range
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, bins=bins, min=low.item(), max=high.item())
    return counts.long().cpu().numpy(), np.linspace(low.item(), high.item(), bins + 1)
