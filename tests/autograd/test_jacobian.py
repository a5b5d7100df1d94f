"""Both ways to the Jacobian against central differences, and what it approximates."""

import pytest
import torch

from tests.factory import FEATURES, make_observation, make_policy
from vla_mini.autograd.jacobian import chunk_function, jacobian


@pytest.fixture
def small():
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), dtype=torch.float64)
    return policy, make_observation(policy, 2)


def test_both_ways_agree_with_central_differences(small):
    policy, observation = small
    found = jacobian(policy, observation, grid=4)
    function, point = chunk_function(policy, observation, grid=4)
    steps = 1e-6 * torch.eye(len(point), dtype=torch.float64)
    with torch.no_grad():
        slopes = torch.stack([(function(point + step) - function(point - step)) / 2e-6 for step in steps], dim=1)
    assert found.matrix.shape == (8 * 4, 4 + 3 * 4 * 4)
    torch.testing.assert_close(found.matrix, slopes, atol=1e-8, rtol=1e-6)
    assert found.max_abs_difference < 1e-12
    assert found.matrix.abs().max() > 1e-3


def test_the_function_at_the_observation_is_the_policy(small):
    policy, observation = small
    function, point = chunk_function(policy, observation, grid=4)
    torch.testing.assert_close(function(point), policy.act(observation)[0].flatten())


def test_a_product_with_a_vector_needs_no_matrix(small):
    function, point = chunk_function(*small, grid=4)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = point.clone().requires_grad_()
    (product,) = torch.autograd.grad(function(leaf), leaf, vector)
    torch.testing.assert_close(product, vector @ jacobian(*small, grid=4).matrix)


def test_as_a_linear_approximation_its_error_falls_with_the_square_of_the_step(small):
    function, point = chunk_function(*small, grid=4)
    direction = torch.zeros_like(point)
    direction[:4] = 1.0  # mostly the state, which passes through no ReLU of the encoder
    direction[4:] = 0.1
    matrix = jacobian(*small, grid=4).matrix
    with torch.no_grad():
        errors = [
            (function(point + step * direction) - function(point) - step * matrix @ direction).norm().item()
            for step in (1e-4, 1e-5)
        ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_costs_are_measured(small):
    found = jacobian(*small, grid=4)
    assert min(found.jacrev_seconds, found.vjp_seconds, found.product_seconds) > 0
    assert found.jacrev_peak_bytes > 2 * found.vjp_peak_bytes  # all rows at once
    assert found.product_peak_bytes <= found.vjp_peak_bytes


def test_refuses_a_grid_finer_than_the_image(small):
    with pytest.raises(ValueError, match="grid=17"):
        jacobian(*small, grid=17)
