"""Flow matching against what it should learn, and sampling that can be repeated."""

import math

import pytest
import torch

from tests.factory import make_observation, make_policy, spec
from vla_mini.action.diffusion import DiffusionHead
from vla_mini.action.flow import FlowHead
from vla_mini.parts import HeadSpec
from vla_mini.types import Context, Prefix

SPEC = HeadSpec(context_width=8, num_tokens=2, horizon=3, action_size=2)
ACTION = torch.tensor([[0.3, -0.7], [1.0, 0.0], [-1.0, 0.5]])


def make_context(size: int) -> Context:
    """Random tokens that fit SPEC, without attention maps."""
    tokens = torch.randn(size, 2, 8, generator=torch.Generator().manual_seed(0))
    return Context(tokens, torch.ones(size, 2, dtype=torch.bool))


def repeat_context(context: Context, size: int) -> Context:
    return Context(*(tensor[:1].expand(size, *tensor.shape[1:]) for tensor in (context.tokens, context.mask)))


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_the_same_seed_gives_the_same_action(head):
    policy = make_policy(action=head)
    observation = make_observation(policy)
    first, again, other = (policy.act(observation, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize("head_class", [FlowHead, DiffusionHead])
def test_more_noise_samples_lower_the_variance_of_the_loss_and_leave_its_mean(head_class):
    losses, actions = [], torch.rand(64, 3, 2, generator=torch.Generator().manual_seed(1))
    for noise_samples in (1, 16):
        torch.manual_seed(0)
        head = head_class(SPEC, hidden=32, noise_samples=noise_samples)
        with torch.no_grad():
            each = [head.loss(make_context(64), actions, torch.zeros(64, 3, dtype=torch.bool)).mean() for _ in range(40)]
        losses.append(torch.stack(each))
    assert losses[1].std() < 0.5 * losses[0].std()
    torch.testing.assert_close(losses[0].mean(), losses[1].mean(), rtol=0.05, atol=0)


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_the_number_of_steps_can_be_changed_and_other_settings_cannot(head):
    policy = make_policy(action=head)
    observation = make_observation(policy)

    def act():
        return policy.act(observation, torch.Generator().manual_seed(0))

    before = act()
    policy.action.change(num_steps=3)
    assert policy.action.settings["num_steps"] == 3 and (act() - before).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"hidden=3: .*may not change after training"):
        policy.action.change(hidden=3)
    for value, expected in ((0, "an integer of at least 1"), (-1, "an integer"), (2.5, "an integer"), ("x", "an integer")):
        with pytest.raises(ValueError, match=f"^num_steps={value!r} is not {expected}"):
            policy.action.change(num_steps=value)
    assert policy.action.settings["num_steps"] == policy.action.num_steps == 3


def test_euler_steps_along_the_exact_field_end_at_the_action():
    """For a single action the field is (action - x) / (1 - time), which is straight: any number of steps is enough."""
    for num_steps in (1, 10):
        head = FlowHead(SPEC, num_steps=num_steps)
        head.field.forward = lambda x, time, condition: (ACTION - x) / (1 - time[:, None, None])
        torch.testing.assert_close(head.predict(make_context(5), torch.randn(5, 3, 2)), ACTION.expand(5, 3, 2))


def test_the_loss_of_the_exact_field_is_zero():
    """For a single action, noise and velocity can be computed from the noisy action."""
    action = ACTION.double()
    head, context = FlowHead(SPEC).double(), make_context(16)
    context = context._replace(tokens=context.tokens.double())
    head.field.forward = lambda x, time, condition: (action - x) / (1 - time[:, None, None])
    loss = head.loss(context, action.expand(16, 3, 2), torch.zeros(16, 3, dtype=torch.bool))
    assert loss.shape == (16, 3) and loss.max() < 1e-20


def test_training_times_favour_noise():
    """1 - Beta(1.5, 1): a mean of 0.4, and never 1."""
    head, times = FlowHead(SPEC, noise_samples=64), []
    head.field.forward = lambda x, time, condition: times.append(time) or x
    head.loss(make_context(64), torch.zeros(64, 3, 2), torch.zeros(64, 3, dtype=torch.bool))
    (time,) = times
    assert time.min() >= 0 and time.max() < 1 and time.mean().item() == pytest.approx(0.4, abs=0.02)
    assert (time > 0.4995).float().mean().item() == pytest.approx(0.5**1.5, abs=0.03)


@pytest.mark.parametrize("head_class", [FlowHead, DiffusionHead])
def test_two_modes_are_learned_as_two_and_not_as_their_mean(head_class):
    """Half of the demonstrations go left, half right, from the same context: regression would learn the mean. A chunk that
    begins to the left, since the one before it does, stays there."""
    torch.manual_seed(0)
    head, context = head_class(SPEC, hidden=64, noise_samples=8), repeat_context(make_context(1), 64)
    actions = torch.where(torch.arange(64) % 2 == 0, 0.8, -0.8)[:, None, None].expand(64, 3, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(context, actions, torch.zeros(64, 3, dtype=torch.bool)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        noise = torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(0))
        sampled = head.predict(context, noise).mean(dim=(1, 2))
        weights = torch.tensor([1.0, 0.0, 0.0]).expand(64, 3)
        begun = {side: head.predict(context, noise, Prefix(torch.full((64, 3, 2), side), weights)) for side in (0.8, -0.8)}
    assert (sampled.abs() > 0.5).float().mean() > 0.9
    assert 0.3 < (sampled > 0).float().mean() < 0.7
    for side, chunks in begun.items():
        assert (chunks.sign() == math.copysign(1, side)).float().mean() > 0.8  # by chance half
        assert not chunks.requires_grad


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"noise_samples": 0}, {"hidden": 7}])
@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_impossible_settings_are_refused(head, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        make_policy(action=spec("action", head) | settings)
