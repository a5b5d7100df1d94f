"""Gradients by name, and the noise scale of gradients with known noise."""

import numpy as np
import pytest

from tests.factory import make_batch, make_policy, mean_loss
from vla_mini.autograd.norms import gradients_of, noise_scale


def test_gradients_have_the_names_of_the_parameters():
    policy = make_policy()
    assert gradients_of(policy) == {}
    mean_loss(policy, make_batch(policy)).backward()
    assert gradients_of(policy).keys() == dict(policy.named_parameters()).keys()


def test_the_noise_scale_is_unbiased():
    """Samples are a true gradient plus noise; micro-batches have unequal sizes."""
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
    with pytest.raises(ValueError, match="two or more micro-batches"):
        noise_scale([1.0], [4.0], square=1.0)
