"""The numbers that the monitor computes from gradients, against NumPy and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.factory import make_batch, make_policy, mean_loss
from vla_mini.training.monitor import MicroBatchNorms, gradient_metrics, histogram


def parameter(gradient: list) -> nn.Parameter:
    found = nn.Parameter(torch.zeros_like(torch.tensor(gradient)))
    found.grad = torch.tensor(gradient)
    return found


def test_metrics_by_hand():
    """Of one component with two parameters; a NaN in the first or last place is not lost."""
    good = {"head.weight": parameter([[3.0, 0.0], [-4.0, 0.0]]), "head.bias": parameter([12.0, 0.0, 0.0, 0.0])}
    metrics = gradient_metrics(good)
    assert metrics["gradients/head.weight/norm"] == 5 and metrics["gradients/head.weight/largest"] == 4
    assert metrics["gradients/head"] == metrics["gradients/total"] == 13 and metrics["gradients/head/largest"] == 12
    assert metrics["gradients/head/zeros"] == 5 / 8 and metrics["gradients/head/nonfinite"] == 0
    bad = parameter([math.nan, math.inf, 1.0, 0.0])
    for broken in (good | {"head.last": bad}, {"head.first": bad} | good):
        metrics = gradient_metrics(broken)
        assert metrics["gradients/head/nonfinite"] == 2 and metrics["gradients/head/zeros"] == 6 / 12
        assert math.isnan(metrics["gradients/head"]) and math.isnan(metrics["gradients/head/largest"])


def test_histograms_equal_numpys():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    counts, edges = histogram(values)
    expected, expected_edges = np.histogram(values.numpy(), bins=64)
    np.testing.assert_allclose(edges, expected_edges, rtol=1e-6, atol=1e-6)
    assert counts.sum() == 10_000 and np.abs(counts - expected).max() <= 2
    for odd in (torch.zeros(5), torch.tensor([math.nan, 2.0, 2.0, math.inf]), torch.full((3,), math.nan), torch.zeros(0)):
        counts, edges = histogram(odd)
        assert counts.sum() == int(odd.isfinite().sum()) and (np.diff(edges) > 0).all()


def test_micro_batch_norms_are_those_of_each_backward_alone():
    policy = make_policy(dtype=torch.float64)
    hooks = MicroBatchNorms(policy.parameters())
    for seed in range(2):  # gradients accumulate, but the hooks get each one alone
        hooks.begin_micro_batch(num_samples=4.0, factor=3.0)
        (3 * mean_loss(policy, make_batch(policy, seed=seed))).backward()
    squares = hooks.remove()
    for seed, (square, num_samples) in enumerate(squares):
        policy.zero_grad()
        mean_loss(policy, make_batch(policy, seed=seed)).backward()
        assert square == pytest.approx(sum(p.grad.square().sum().item() for p in policy.parameters()), rel=1e-9)
        assert num_samples == 4
    assert len(squares) == 2 and not any(p._backward_hooks for p in policy.parameters())
