"""Noise schedule and sampling against those of diffusers, which is needed by this test alone."""

import pytest
import torch
from diffusers import DDIMScheduler

from tests.action.test_flow_head import SPEC, make_context
from vla_mini.action.diffusion import DiffusionHead

PREDICTION_TYPES = {"action": "sample", "noise": "epsilon"}


def reference(target: str, num_train_timesteps: int, num_steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="trailing",
        prediction_type=PREDICTION_TYPES[target],
        clip_sample=True,
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def test_noise_is_added_as_in_diffusers():
    head, scheduler = DiffusionHead(SPEC), reference("action", 100, 10)
    actions, noise, timestep = torch.randn(4, 1, 3, 2), torch.randn(4, 5, 3, 2), torch.randint(0, 100, (4, 5))
    expected = scheduler.add_noise(actions.expand_as(noise).flatten(0, 1), noise.flatten(0, 1), timestep.flatten())
    torch.testing.assert_close(head.add_noise(actions, noise, timestep).flatten(0, 1), expected)


@pytest.mark.parametrize("target", PREDICTION_TYPES)
@pytest.mark.parametrize(("num_train_timesteps", "num_steps"), [(100, 10), (50, 2), (20, 20)])
def test_sampling_is_that_of_diffusers(target, num_train_timesteps, num_steps):
    torch.manual_seed(0)
    head = DiffusionHead(SPEC, target=target, num_train_timesteps=num_train_timesteps, num_steps=num_steps).eval()
    scheduler, context = reference(target, num_train_timesteps, num_steps), make_context(6)
    with torch.no_grad():
        condition = head.denoiser.condition(context)
        x = noise = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(3))
        for timestep in scheduler.timesteps:
            output = head.denoiser(x, (timestep / num_train_timesteps).expand(6), condition)
            x = scheduler.step(output, timestep, x, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(head.predict(context, noise), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", PREDICTION_TYPES)
def test_the_loss_is_the_error_of_the_prediction(target):
    """Of a network whose output is zero, it is the power of the target: of the actions, or of the noise, 1."""
    head = DiffusionHead(SPEC, target=target, noise_samples=64)
    torch.nn.init.zeros_(head.denoiser.output_projection.weight)
    torch.nn.init.zeros_(head.denoiser.output_projection.bias)
    loss = head.loss(make_context(64), torch.full((64, 3, 2), 0.5), torch.zeros(64, 3, dtype=torch.bool))
    torch.testing.assert_close(loss.mean(), torch.tensor(0.25 if target == "action" else 1.0), rtol=0.05, atol=0)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="num_steps=101"):
        DiffusionHead(SPEC, num_steps=101)
