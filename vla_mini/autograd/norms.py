"""Gradients in numbers: parameters after backward -> norms, magnitudes, zeros, non-finite values; and how noisy they are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Value = TypeVar("Value")


class Measure(NamedTuple):
    """Of one gradient, or of several taken as one long vector."""

    norm: float  # Euclidean
    largest: float  # magnitude of a value
    zeros: float  # share of the values that are exactly zero
    nonfinite: int  # number of values that are NaN or infinite
    size: int  # number of values


def components(policy: nn.Module) -> dict[str, nn.Module]:
    """The parts of a policy that hold parameters, by name: vision, language, trunk, action, state, projection ..."""
    return {name: part for name, part in policy.named_children() if any(True for _ in part.parameters())}


def gradients_of(policy: nn.Module) -> dict[str, Tensor]:
    """The gradients at hand, by the name of their parameter. A frozen parameter with one is our mistake: it would move."""
    gradients = {}
    for name, parameter in policy.named_parameters():  # one walk: it is taken at every step
        if parameter.grad is not None:
            assert parameter.requires_grad, f"{name} is frozen, yet it has a gradient"
            gradients[name] = parameter.grad
    return gradients


def gradient_norms(policy: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of each component; a component without any gradient is left out."""
    gradients = gradients_of(policy)
    return combined_norms(dict(zip(gradients, norms(gradients.values()), strict=True)))


def combined_norms(values: Mapping[str, float], *, per_parameter: bool = False) -> dict[str, float]:
    """Norms by parameter -> norms by component, followed by those by parameter if asked for."""
    parts = {name: math.hypot(*part) for name, part in by_component(values).items()}
    return parts | dict(values) if per_parameter else parts


def norms(tensors: Iterable[Tensor]) -> list[float]:
    """Their Euclidean norms: one fused pass and one transfer to the host."""
    tensors = list(tensors)
    return torch.stack(torch._foreach_norm(tensors)).tolist() if tensors else []


def total_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The norm of all of them as one vector, left on the device. Finite only if each value is."""
    tensors = list(tensors)
    return torch.stack(torch._foreach_norm(tensors)).norm() if tensors else torch.zeros(())


def measure(gradients: Mapping[str, Tensor]) -> dict[str, Measure]:
    """Each gradient measured, in a few passes and two transfers to the host."""
    if not gradients:
        return {}
    tensors = [gradient.detach() for gradient in gradients.values()]
    sizes = [torch._foreach_norm(tensors), torch._foreach_norm(tensors, math.inf)]
    rows = torch.stack([torch.stack(row) for row in sizes]).tolist()
    filled = torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).tolist()
    return {
        # A finite norm has finite values under it, so that there is seldom anything to count.
        name: Measure(norm, largest, 1 - n / tensor.numel(), 0 if math.isfinite(norm) else count(tensor), tensor.numel())
        for name, tensor, norm, largest, n in zip(gradients, tensors, *rows, filled, strict=True)
    }


def count(tensor: Tensor) -> int:
    """The number of values that are NaN or infinite."""
    return int((~tensor.isfinite()).sum())


def combine(measures: Sequence[Measure]) -> Measure:
    """The measure of several gradients as one long vector."""
    norm, largest, zeros, nonfinite, size = zip(*measures, strict=True)
    return Measure(
        norm=math.hypot(*norm),
        largest=float(np.max(largest)),  # NumPy's, since Python's depends on where a NaN stands
        zeros=float(np.average(zeros, weights=size)),
        nonfinite=sum(nonfinite),
        size=sum(size),
    )


def by_component(values: Mapping[str, Value]) -> dict[str, list[Value]]:
    """Values by parameter -> lists of values by component, the first part of a parameter's name."""
    grouped: dict[str, list[Value]] = {}
    for name, value in values.items():
        grouped.setdefault(name.partition(".")[0], []).append(value)
    return grouped


def histogram(gradient: Tensor, *, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges between the smallest and the largest finite value, as `np.histogram` gives them, but much sooner."""
    values = gradient.detach().float().flatten()
    values = values[values.isfinite()]
    if not len(values):
        return np.zeros(bins, dtype=np.int64), np.linspace(0, 1, bins + 1)
    low, high = torch.aminmax(values)
    if low == high:  # as NumPy widens an empty range
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, bins=bins, min=low.item(), max=high.item())
    return counts.long().cpu().numpy(), np.linspace(low.item(), high.item(), bins + 1)


class MicroBatchNorms:
    """The squared norm of each backward pass's own gradient, by hooks that see it before it is added to what is there."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._square: Tensor | float = 0.0
        self._handles = [p.register_hook(self._add) for p in parameters if p.requires_grad]

    def _add(self, gradient: Tensor) -> None:
        self._square = self._square + torch.linalg.vector_norm(gradient.detach()).square()

    def take(self) -> float:
        """The squared norm since it was last taken, of all parameters together."""
        square, self._square = float(self._square), 0.0
        return square

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class NoiseScale(NamedTuple):
    """How noisy gradients are. Of one window the estimate is itself noisy; average `trace` and `signal`, then divide."""

    scale: float  # trace / signal: the batch size, in samples, beyond which larger batches help little
    trace: float  # of the covariance of one sample's gradient
    signal: float  # squared norm of the true gradient; an estimate, that may come out negative


def noise_scale(squares: Sequence[float], sizes: Sequence[float], *, square: float) -> NoiseScale:
    """The simple noise scale from micro-batches of `sizes` samples, the squared norms of whose mean gradients are `squares`,
    and `square`, that of the mean gradient of all of them.

    McCandlish et al. 2018, An Empirical Model of Large-Batch Training (arXiv:1812.06162), appendix A.1: a mean over b samples
    has the expected squared norm signal + trace / b. Two sizes of b give both unknowns, without bias.
    """
    if len(sizes) < 2:
        raise ValueError(f"a noise scale needs two micro-batches or more; there is {len(sizes)}")
    small, large = float(np.mean(squares)), square
    noise_small, noise_large = float(np.mean(1 / np.asarray(sizes))), 1 / sum(sizes)
    trace = (small - large) / (noise_small - noise_large)
    signal = large - trace * noise_large
    return NoiseScale(trace / signal if signal else math.inf, trace, signal)
