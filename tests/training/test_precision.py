"""A precision that the hardware lacks is refused before any work; weights that are bf16 altogether learn, and act."""

import pytest
import torch

from tests.factory import VARIANTS, command, make_batch, make_observation, make_policy, mean_loss, spec
from tests.harness import fit, keeping
from vla_mini.action._denoiser import Denoiser
from vla_mini.training.average import WeightAverage
from vla_mini.training.selection import BestPolicy
from vla_mini.training.window import Stopwatch

ENV = "vla_mini/ToyPick-v0"


@pytest.mark.parametrize(("precision", "says"), [("16-mixed", "16-mixed is for GPUs"), ("16-true", "'16-true'")])
def test_fp16_on_a_cpu_is_refused(precision, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "experiment=toy_pick_smoke", "trainer.accelerator=cpu", f"trainer.precision={precision}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"trainer.precision={says}" in line and "bf16-mixed" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("action", VARIANTS["action"])
def test_policies_of_bf16_learn_and_are_played_and_saved(action, decay, tmp_path):
    policy = make_policy(action=action)
    best = BestPolicy(tmp_path / "policy", env_id=ENV, episodes=1, every_n_steps=2, seed=0, stopwatch=Stopwatch())
    with_best = keeping(best, tmp_path)
    with_best["callbacks"] += [WeightAverage(decay)]
    fit(policy, [make_batch(policy)] * 2, **with_best, precision="bf16-true", record=False)
    assert policy.action.state_dict().popitem()[1].dtype == torch.bfloat16 and best.best is not None
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


@pytest.mark.parametrize("arguments", [{}, {"num_steps": 100}])
@pytest.mark.parametrize("action", ["flow", "diffusion"])
def test_noise_and_times_are_not_rounded_with_the_weights(action, arguments):
    policies = [
        make_policy(action=spec("action", action) | arguments, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    acted = [policy.act(make_observation(policy), torch.Generator().manual_seed(0)).float() for policy in policies]
    torch.testing.assert_close(*acted, rtol=0, atol=0.1)
    losses, times = [], []
    for policy in policies:
        (field,) = (part for part in policy.action.children() if isinstance(part, Denoiser))
        field.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1].dtype))
        torch.manual_seed(1)
        losses.append(mean_loss(policy, make_batch(policy, 8)).float())
    assert times == [torch.float32] * 2
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)
