"""Statistics are broadcast over batches of any shape, and unnormalizing is the inverse."""

import numpy as np
import pytest
import torch

from vla_mini.normalization import MIN_STD, Normalization
from vla_mini.utils.features import FeatureStatistics, Statistics

LOW, HIGH = np.array([-1, 0, 2], np.float32), np.array([3, 0, 4], np.float32)  # the second feature is constant
MEAN, STD = np.array([0.5, 0, 3], np.float32), np.array([2, 0, 0.1], np.float32)


@pytest.mark.parametrize("shape", [(), (5,), (5, 8), (2, 5, 8)])
def test_statistics_are_broadcast(shape):
    statistics = FeatureStatistics(LOW, HIGH, MEAN, STD, LOW, HIGH)
    normalization = Normalization(Statistics(statistics, statistics))
    values = torch.randn(*shape, 3)
    each = values.reshape(-1, 3).numpy()
    state = np.stack([(value - MEAN) / np.maximum(STD, MIN_STD) for value in each])
    action = np.stack([(value - (LOW + HIGH) / 2) / np.maximum((HIGH - LOW) / 2, MIN_STD) for value in each])
    np.testing.assert_allclose(normalization.state(values).reshape(-1, 3), state, rtol=1e-5)
    np.testing.assert_allclose(normalization.action(values).reshape(-1, 3), action, rtol=1e-5)
    torch.testing.assert_close(normalization.unnormalize_action(normalization.action(values)), values)
