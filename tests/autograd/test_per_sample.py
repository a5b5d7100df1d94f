"""Per-sample gradients against a loop of backward passes, and their noise."""

import pytest
import torch

from tests.factory import make_batch, make_policy
from vla_mini.autograd.batches import mean_loss, select
from vla_mini.autograd.per_sample import CHUNK, per_sample, per_sample_gradients


def gradients(policy, loss):
    """Parameter name -> gradient, by an ordinary backward pass."""
    policy.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}


@pytest.fixture
def case():
    policy = make_policy(dtype=torch.float64)
    return policy, make_batch(policy, 7)


def test_each_gradient_is_that_of_its_sample_alone(case):
    policy, batch = case
    found, reason = per_sample_gradients(policy, batch)
    assert reason is None
    for index in range(7):
        for name, expected in gradients(policy, policy.loss(select(batch, slice(index, index + 1)))[0].sum()).items():
            torch.testing.assert_close(found[name][index], expected, atol=1e-12, rtol=1e-9)


def test_norms_mean_and_noise_scale_by_explicit_loops(case):
    policy, batch = case
    num_valid = (~batch.is_pad).sum()
    rows = []
    for index in range(7):
        loss = policy.loss(select(batch, slice(index, index + 1)))[0].sum() * 7 / num_valid
        own = gradients(policy, loss)
        rows.append(
            torch.cat([own[name].flatten() if name in own else p.flatten() * 0 for name, p in policy.named_parameters()])
        )
    rows = torch.stack(rows).detach()
    result = per_sample(policy, batch)
    assert result.norms == pytest.approx(rows.norm(dim=1).tolist(), rel=1e-9)
    whole = gradients(policy, mean_loss(policy, batch))
    whole = torch.cat([whole[name].flatten() for name, _ in policy.named_parameters()])
    torch.testing.assert_close(rows.mean(dim=0), whole, atol=1e-12, rtol=1e-9)
    assert result.mean_minus_batch_max_abs < 1e-12 < result.batch_max_abs
    assert result.mean_norm == pytest.approx(whole.norm().item(), rel=1e-9)
    trace = (rows - rows.mean(dim=0)).square().sum() / 6  # unbiased, and so is `signal`
    signal = rows.mean(dim=0).square().sum() - trace / 7
    assert signal > 0
    assert result.gradient_noise_scale == pytest.approx((trace / signal).item(), rel=1e-9)


def test_more_samples_than_are_computed_at_once():
    policy = make_policy(dtype=torch.float64)
    batch = make_batch(policy, CHUNK + 3)
    result = per_sample(policy, batch)
    assert len(result.norms) == CHUNK + 3
    assert result.mean_minus_batch_max_abs < 1e-12
    assert result.norms[-1] == pytest.approx(per_sample(policy, batch).norms[-1])


def test_without_vmap_a_loop_gives_the_same(case):
    policy, batch = case
    expected = per_sample(policy, batch)
    policy.trunk.register_forward_hook(lambda module, inputs, output: output.tokens.sum().item() and None)
    result = per_sample(policy, batch)
    assert (result.method, expected.method) == ("loop", "vmap")
    assert "item" in result.reason
    assert result.norms == pytest.approx(expected.norms, rel=1e-9)
    assert result.mean_minus_batch_max_abs < 1e-12


@pytest.mark.parametrize("action", ["flow", "diffusion"])
def test_the_loop_gives_each_sample_its_noise_of_the_batch(action):
    policy = make_policy(action=action, dtype=torch.float64)
    batch = make_batch(policy, CHUNK + 2)
    expected = per_sample(policy, batch)
    policy.trunk.register_forward_hook(lambda module, inputs, output: output.tokens.sum().item() and None)
    result = per_sample(policy, batch)
    assert (result.method, expected.method) == ("loop", "vmap")
    assert result.norms == pytest.approx(expected.norms, rel=1e-9)
    assert result.mean_minus_batch_max_abs < 1e-12 * result.batch_max_abs


def test_samples_get_the_same_noise_as_the_batch():
    policy = make_policy(dtype=torch.float64)
    batch, loss = make_batch(policy, CHUNK + 3), policy.action.loss

    def noisy(context, actions, is_pad):
        return loss(context, actions + 0.5 * torch.randn(actions.shape, dtype=actions.dtype), is_pad)

    policy.action.loss = noisy
    before = torch.get_rng_state()
    first, again, other = (per_sample(policy, batch, seed=seed) for seed in (0, 0, 1))
    assert first.mean_minus_batch_max_abs < 1e-12
    assert first.norms == again.norms != other.norms
    assert torch.equal(before, torch.get_rng_state())


def test_frozen_parameters_have_no_gradients(case):
    policy, batch = case
    policy.vision.requires_grad_(False)
    found, _ = per_sample_gradients(policy, batch)
    assert not any(name.startswith("vision") for name in found)
    assert per_sample(policy, batch).mean_minus_batch_max_abs < 1e-12


def test_one_sample_has_no_noise_scale():
    policy = make_policy()
    result = per_sample(policy, make_batch(policy, 1))
    assert result.gradient_noise_scale is None and len(result.norms) == 1
