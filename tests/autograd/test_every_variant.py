import pytest

from tests.factory import FEATURES, make_batch, make_policy
from vla_mini.autograd.graph import trace_graph
from vla_mini.autograd.inference import compare_modes
from vla_mini.autograd.jacobian import jacobian
from vla_mini.autograd.per_sample import per_sample
from vla_mini.autograd.saliency import sensitivity


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # jacrev of Swin's pooling, one row after the other
def test_all_that_gradients_py_computes_works_for_every_variant(variant, monkeypatch):
    monkeypatch.setattr("vla_mini.autograd.jacobian.REPEATS", 1)
    policy = make_policy(**variant, features=FEATURES._replace(image_size=(16, 16)))
    batch = make_batch(policy, 2)
    samples = per_sample(policy, batch)
    assert samples.mean_minus_batch_max_abs < 1e-5 * samples.batch_max_abs
    found = jacobian(policy, batch.observation, grid=2)
    assert found.max_abs_difference < 1e-4 * found.matrix.abs().max()
    assert all(product.isfinite().all() and product.any() for product in sensitivity(policy, batch.observation))
    assert compare_modes(policy, batch.observation, repeats=1)[1]
    nodes = trace_graph(policy, batch).by_kind["AccumulateGrad"]
    assert nodes == sum(parameter.requires_grad for parameter in policy.parameters())
