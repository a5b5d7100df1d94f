"""On a GPU, where there is one: the same numbers, the same command, and fp16 with its loss scale."""

import csv

import pytest
import torch
from torch.utils._pytree import tree_map

import vla_mini
from tests.factory import command, make_batch, make_observation, make_policy, mean_loss
from vla_mini import testing
from vla_mini.autograd.norms import gradients_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")]


def to_gpu(values):
    return tree_map(lambda tensor: tensor.cuda(), values)


def test_loss_and_gradients_are_those_of_the_cpu():
    here, there = make_policy(dtype=torch.float64), make_policy(dtype=torch.float64).cuda()
    batch = make_batch(here, 8)
    losses = [mean_loss(here, batch), mean_loss(there, to_gpu(batch))]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-10)
    expected, got = (
        torch.cat([gradient.flatten().cpu() for gradient in gradients_of(policy).values()]) for policy in (here, there)
    )
    assert (got - expected).norm() < 1e-8 * expected.norm()


def test_bf16_is_close():
    policy = make_policy().cuda()
    testing.assert_precision_close(policy, to_gpu(make_batch(make_policy(), 8)))


def test_a_tensor_left_behind_is_named():
    policy = make_policy()
    observation = make_observation(policy)
    with pytest.raises(ValueError, match=r"observation\.images is on cpu, the policy is on cuda:0"):
        policy.cuda().act(observation)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_the_same_command_trains_there(tmp_path, precision):
    place = [f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", "evaluation.episodes=1"]
    there = ["trainer.accelerator=gpu", f"trainer.precision={precision}", "trainer.max_steps=20"]
    assert command("train", "experiment=toy_pick_smoke", *place, *there, "evaluation.every_n_steps=0") == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    totals = [float(row["gradients/total"]) for row in rows if row["gradients/total"]]
    assert 0 < totals[-1] < 100  # unscaled, and no overflow any more
    policy = vla_mini.Policy.from_pretrained(tmp_path / "run" / "policy")
    assert all(tensor.isfinite().all() for tensor in policy.state_dict().values() if tensor.is_floating_point())
