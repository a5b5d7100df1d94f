"""Statistics against NumPy's own, computed the long way."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_mini.data.statistics import QUANTILES, STATISTICS, count_pixels, describe, describe_pixels, training_statistics


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_pixels_as_if_they_were_listed(num_images, seed):
    images = np.random.default_rng(seed).integers(0, 256, (num_images, 2, 3, 3), dtype=np.uint8)
    listed = images.reshape(-1, 3) / 255
    found = dict(zip(STATISTICS, describe_pixels(count_pixels(images))[..., 0, 0], strict=True))
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(listed, name)(axis=0), atol=1e-12)
    for name, q in QUANTILES.items():
        expected = np.quantile(listed, q, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[name], expected, atol=1e-12)


def test_a_constant_column_has_no_spread():
    described = dict(zip(STATISTICS, describe(np.full((5, 1), 0.1, np.float32)), strict=True))
    assert described["std"] == 0 and described["q01"] == described["max"] == np.float32(0.1)


def test_training_statistics_are_those_of_the_columns():
    generator = np.random.default_rng(0)
    states, actions = generator.standard_normal((100, 3)), generator.standard_normal((100, 2))
    statistics = training_statistics(states.astype(np.float32), actions.astype(np.float32))
    np.testing.assert_allclose(statistics.state.mean, states.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.action.q99, np.quantile(actions, 0.99, axis=0), rtol=1e-5)
    assert all(array.dtype == np.float32 for part in statistics for array in part)
