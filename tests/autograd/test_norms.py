"""Gradients in numbers: measures against NumPy, and the noise scale of gradients whose noise is known."""

import math

import numpy as np
import pytest
import torch

from tests.factory import make_batch, make_policy, mean_loss
from vla_mini.autograd.norms import (
    MicroBatchNorms,
    combine,
    gradient_norms,
    gradients_of,
    histogram,
    measure,
    noise_scale,
    total_norm,
)


def test_a_measure_counts_what_is_there():
    gradient = torch.tensor([[3.0, 0.0], [-4.0, 0.0]])
    broken = torch.tensor([math.nan, math.inf, 1.0, 0.0])
    found = measure({"fine": gradient, "broken": broken})
    assert found["fine"] == (5.0, 4.0, 0.5, 0, 4)
    assert found["broken"].nonfinite == 2 and found["broken"].zeros == 0.25 and math.isnan(found["broken"].largest)
    both = combine(list(found.values()))
    assert both.nonfinite == 2 and both.size == 8 and both.zeros == 0.375 and math.isnan(both.norm)
    for order in ([1.0, math.nan], [math.nan, 1.0]):  # a NaN is not lost, wherever it stands
        assert math.isnan(combine(list(measure({str(i): torch.tensor([v]) for i, v in enumerate(order)}).values())).largest)


def test_the_total_norm_is_that_of_one_long_vector():
    policy = make_policy()
    assert gradient_norms(policy) == {} and total_norm([]) == 0
    mean_loss(policy, make_batch(policy)).backward()
    vector = torch.cat([gradient.flatten() for gradient in gradients_of(policy).values()])
    assert total_norm(gradients_of(policy).values()).item() == pytest.approx(vector.double().norm().item(), rel=1e-6)
    assert math.hypot(*gradient_norms(policy).values()) == pytest.approx(vector.double().norm().item(), rel=1e-6)


def test_histograms_are_numpys():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    counts, edges = histogram(values)
    expected, expected_edges = np.histogram(values.numpy(), bins=64)
    np.testing.assert_allclose(edges, expected_edges, rtol=1e-6, atol=1e-6)
    assert counts.sum() == 10_000 and np.abs(counts - expected).max() <= 2
    for odd in (torch.zeros(5), torch.tensor([math.nan, 2.0, 2.0, math.inf]), torch.full((3,), math.nan), torch.zeros(0)):
        counts, edges = histogram(odd)
        assert counts.sum() == int(odd.isfinite().sum()) and (np.diff(edges) > 0).all()


def test_the_noise_scale_of_known_noise():
    """Samples are a true gradient plus noise: signal and trace come out without bias, from micro-batches of unequal sizes."""
    generator = np.random.default_rng(0)
    true, deviation, sizes = generator.standard_normal(50), 3.0, [2.0, 6.0, 8.0]
    found = []
    for _ in range(2000):
        samples = true + deviation * generator.standard_normal((16, 50))
        means = [part.mean(axis=0) for part in np.split(samples, [2, 8])]
        found.append(noise_scale([m @ m for m in means], sizes, square=float(samples.mean(axis=0) @ samples.mean(axis=0))))
    signal, trace = true @ true, 50 * deviation**2
    assert np.mean([each.signal for each in found]) == pytest.approx(signal, rel=0.03)
    assert np.mean([each.trace for each in found]) == pytest.approx(trace, rel=0.03)
    assert found[0].scale == found[0].trace / found[0].signal
    with pytest.raises(ValueError, match="two micro-batches"):
        noise_scale([1.0], [4.0], square=1.0)


def test_micro_batch_norms_see_each_backward_by_itself():
    policy = make_policy(dtype=torch.float64)
    hooks = MicroBatchNorms(policy.parameters())
    squares = []
    for seed in range(2):  # gradients add up, what the hooks see does not
        mean_loss(policy, make_batch(policy, seed=seed)).backward()
        squares.append(hooks.take())
    hooks.remove()
    for seed, square in enumerate(squares):
        policy.zero_grad()
        mean_loss(policy, make_batch(policy, seed=seed)).backward()
        assert square == pytest.approx(sum(p.grad.square().sum().item() for p in policy.parameters()), rel=1e-9)
    assert hooks.take() == 0
