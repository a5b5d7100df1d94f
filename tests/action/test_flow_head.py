"""Flow matching against what it should learn, and sampling that repeats itself."""

import pytest
import torch

from tests.factory import make_batch, make_observation, make_policy, spec
from vla_mini.action.flow import FlowHead
from vla_mini.types import Context

SHAPE = {"context_width": 8, "num_tokens": 2, "horizon": 3, "action_size": 2}


def make_context(size: int) -> Context:
    tokens = torch.randn(size, 2, 8, generator=torch.Generator().manual_seed(0))
    empty = tokens.new_zeros(size, 0, 2), tokens.new_zeros(size, 0, 4)
    return Context(tokens, torch.ones(size, 2, dtype=torch.bool), *empty)


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_the_same_seed_gives_the_same_action(head):
    policy = make_policy(action=head)
    observation = make_observation(policy)
    first, again, other = (policy.act(observation, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_more_draws_lower_the_variance_of_the_loss_and_leave_its_mean(head):
    policies = [make_policy(action=spec("action", head) | {"draws": draws}) for draws in (1, 16)]
    batch = make_batch(policies[0], 8)._replace(is_pad=torch.zeros(8, 8, dtype=torch.bool))
    with torch.no_grad():
        losses = [torch.stack([p.loss(batch)[1]["action"].mean() for _ in range(60)]) for p in policies]
    assert losses[1].std() < 0.5 * losses[0].std()
    torch.testing.assert_close(losses[0].mean(), losses[1].mean(), rtol=0.05, atol=0)


def test_euler_steps_follow_the_exact_field_to_the_action():
    """All actions alike: the field is (action - x) / (1 - time), and straight, so that any number of steps arrives."""
    action = torch.tensor([[0.3, -0.7], [1.0, 0.0], [-1.0, 0.5]])
    for num_steps in (1, 10):
        head = FlowHead(**SHAPE, num_steps=num_steps)
        head.field.forward = lambda x, time, condition: (action - x) / (1 - time[:, None, None])
        torch.testing.assert_close(head.predict(make_context(5)), action.expand(5, 3, 2))


def test_the_loss_is_zero_for_the_exact_field_alone():
    """With one action only, noise and velocity follow from what the field is shown."""
    action = torch.tensor([[0.3, -0.7], [1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    head, context = FlowHead(**SHAPE).double(), make_context(16)
    context = context._replace(tokens=context.tokens.double())
    head.field.forward = lambda x, time, condition: (action - x) / (1 - time[:, None, None])
    loss = head.loss(context, action.expand(16, 3, 2), torch.zeros(16, 3, dtype=torch.bool))
    assert loss.shape == (16, 3) and loss.max() < 1e-20


def test_training_looks_more_at_noise_than_at_actions():
    """Times from a Beta(1.5, 1), turned round: of mean 0.4, and never 1."""
    head, times = FlowHead(**SHAPE, draws=64), []
    head.field.forward = lambda x, time, condition: times.append(time) or x
    head.loss(make_context(64), torch.zeros(64, 3, 2), torch.zeros(64, 3, dtype=torch.bool))
    (time,) = times
    assert time.min() >= 0 and time.max() < 1 and time.mean().item() == pytest.approx(0.4, abs=0.02)
    assert (time > 0.4995).float().mean().item() == pytest.approx(0.5**1.5, abs=0.03)


def test_two_ways_are_learned_as_two_and_not_as_their_mean():
    """What regression cannot: half of the demonstrations go left, half right, from the same context."""
    torch.manual_seed(0)
    head, context = FlowHead(**SHAPE, hidden=64, draws=8), make_context(1)
    context = Context(*(tensor.expand(64, *tensor.shape[1:]) for tensor in context))
    actions = torch.where(torch.arange(64) % 2 == 0, 0.8, -0.8)[:, None, None].expand(64, 3, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(context, actions, torch.zeros(64, 3, dtype=torch.bool)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        sampled = head.predict(context, torch.Generator().manual_seed(0)).mean(dim=(1, 2))
    assert (sampled.abs() > 0.5).float().mean() > 0.9
    assert 0.3 < (sampled > 0).float().mean() < 0.7


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"draws": 0}, {"hidden": 7}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        FlowHead(**SHAPE, **wrong)
