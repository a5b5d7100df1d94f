"""Gradients by parameter, and their noise scale."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn


def gradients_of(policy: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its gradient, for the parameters that have one. A frozen parameter with a gradient is our mistake."""
    gradients = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert parameter.requires_grad, f"{name} is frozen, yet it has a gradient"
            gradients[name] = parameter.grad
    return gradients


class NoiseScale(NamedTuple):
    """How noisy gradients are. The estimate of one step is noisy itself: average `trace` and `signal`, then divide."""

    scale: float  # trace / signal: the batch size, in samples, beyond which larger batches help little
    trace: float  # of the covariance of one sample's gradient
    signal: float  # squared norm of the true gradient; the estimate may be negative


def noise_scale(squares: Sequence[float], sizes: Sequence[float], *, square: float) -> NoiseScale:
    """The simple noise scale of gradients.

    - squares, sizes: squared norm of each micro-batch's mean gradient, and the micro-batch's number of samples
    - square: squared norm of the mean gradient over all samples

    McCandlish et al. 2018, An Empirical Model of Large-Batch Training (arXiv:1812.06162), appendix A.1: the squared norm of a
    mean over b samples has the expectation signal + trace / b. Two sizes of b give both unknowns, without bias. Raises
    ValueError for fewer than two micro-batches.
    """
    if len(sizes) < 2:
        raise ValueError(f"a noise scale needs two or more micro-batches, not {len(sizes)}")
    small, large = float(np.mean(squares)), square
    noise_small, noise_large = float(np.mean(1 / np.asarray(sizes))), 1 / sum(sizes)
    trace = (small - large) / (noise_small - noise_large)
    signal = large - trace * noise_large
    return NoiseScale(trace / signal if signal else math.inf, trace, signal)
