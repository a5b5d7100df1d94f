"""The schedule and the steps against those of diffusers, which nothing but this test needs."""

import pytest
import torch
from diffusers import DDIMScheduler

from tests.action.test_flow_head import SHAPE, make_context
from vla_mini.action.diffusion import DiffusionHead

PREDICTS = {"action": "sample", "noise": "epsilon"}


def reference(target: str, levels: int, num_steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        num_train_timesteps=levels,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="trailing",
        prediction_type=PREDICTS[target],
        clip_sample=True,
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def test_noise_is_added_as_diffusers_does():
    head, scheduler = DiffusionHead(**SHAPE), reference("action", 100, 10)
    actions, noise, level = torch.randn(4, 1, 3, 2), torch.randn(4, 5, 3, 2), torch.randint(0, 100, (4, 5))
    expected = scheduler.add_noise(actions.expand_as(noise).flatten(0, 1), noise.flatten(0, 1), level.flatten())
    torch.testing.assert_close(head.add_noise(actions, noise, level).flatten(0, 1), expected)


@pytest.mark.parametrize("target", PREDICTS)
@pytest.mark.parametrize(("levels", "num_steps"), [(100, 10), (50, 2), (20, 20)])
def test_sampling_is_that_of_diffusers(target, levels, num_steps):
    torch.manual_seed(0)
    head = DiffusionHead(**SHAPE, target=target, levels=levels, num_steps=num_steps).eval()
    scheduler, context = reference(target, levels, num_steps), make_context(6)
    with torch.no_grad():
        condition = head.denoiser.condition(context)
        x = head.denoiser.noise(condition, torch.Generator().manual_seed(3))
        for level in scheduler.timesteps:
            output = head.denoiser(x, (level / levels).expand(6), condition)
            x = scheduler.step(output, level, x, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(head.predict(context, torch.Generator().manual_seed(3)), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", PREDICTS)
def test_the_loss_is_the_error_of_what_is_predicted(target):
    """A network that says nothing is wrong by the power of the target: that of the actions, or that of the noise, 1."""
    head = DiffusionHead(**SHAPE, target=target, draws=64)
    torch.nn.init.zeros_(head.denoiser.leave.weight)
    torch.nn.init.zeros_(head.denoiser.leave.bias)
    loss = head.loss(make_context(64), torch.full((64, 3, 2), 0.5), torch.zeros(64, 3, dtype=torch.bool))
    torch.testing.assert_close(loss.mean(), torch.tensor(0.25 if target == "action" else 1.0), rtol=0.05, atol=0)


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"num_steps": 101}, {"draws": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        DiffusionHead(**SHAPE, **wrong)
