"""Statistics are broadcast over whatever batches come, and back again."""

import numpy as np
import pytest
import torch

from vla_mini.features import Moments, Statistics
from vla_mini.normalization import LEAST_SPREAD, Normalization

LOW, HIGH = np.array([-1, 0, 2], np.float32), np.array([3, 0, 4], np.float32)  # the second never changes
MEAN, STD = np.array([0.5, 0, 3], np.float32), np.array([2, 0, 0.1], np.float32)


@pytest.mark.parametrize("shape", [(), (5,), (5, 8), (2, 5, 8)])
def test_statistics_are_broadcast(shape):
    moments = Moments(LOW, HIGH, MEAN, STD, LOW, HIGH)
    normalization = Normalization(Statistics(moments, moments))
    values = torch.randn(*shape, 3)
    each = values.reshape(-1, 3).numpy()
    state = np.stack([(value - MEAN) / np.maximum(STD, LEAST_SPREAD) for value in each])
    action = np.stack([(value - (LOW + HIGH) / 2) / np.maximum((HIGH - LOW) / 2, LEAST_SPREAD) for value in each])
    np.testing.assert_allclose(normalization.state(values).reshape(-1, 3), state, rtol=1e-5)
    np.testing.assert_allclose(normalization.action(values).reshape(-1, 3), action, rtol=1e-5)
    torch.testing.assert_close(normalization.raw_action(normalization.action(values)), values)
    keyframe = normalization.keyframe(values[..., :2], [2, 0])
    np.testing.assert_allclose(keyframe.reshape(-1, 2), (each[:, :2] - MEAN[[2, 0]]) / STD[[2, 0]], rtol=1e-4, atol=1e-5)
