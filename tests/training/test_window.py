"""The window's gradient is that of the one big batch: over two processes, and under fp16's loss scale."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import OmegaConf

from tests.factory import ROOT, make_batch, make_policy, mean_loss
from tests.harness import SGD, fit
from tests.training.ddp_worker import FROZEN, SIZES, STAGES, big_batch
from vla_mini import config
from vla_mini.testing import split
from vla_mini.training.average import WeightAverage
from vla_mini.training.checkpoints import Checkpoints, RandomNumbers
from vla_mini.training.freezing import freeze
from vla_mini.training.guard import NonFiniteGuard
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.progress import Progress
from vla_mini.training.selection import BestPolicy
from vla_mini.training.summary import Summary
from vla_mini.training.trainer import build_training
from vla_mini.training.unfreezing import Unfreezing
from vla_mini.training.window import Stopwatch, WindowMean, finest


def flat(gradients):
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def read_rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def gradients_of_the_mean(policy, batch):
    policy.zero_grad()
    mean_loss(policy, batch).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found that trained together, by gloo on the CPU; and where they logged."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, "-m", "tests.training.ddp_worker", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)], folder, result.stderr


def test_two_processes_compute_the_gradient_of_the_big_batch(ranks):
    """Unequal micro-batches, unequal masks, a short last window, a frozen part: 1e-12 in float64, and equal weights."""
    (first, second), _, _ = ranks
    policy = make_policy(dtype=torch.float64)
    freeze(policy, FROZEN)
    sizes = [sum(rank[0] + rank[1] for rank in SIZES), sum(rank[2] for rank in SIZES)]
    for window, one, two in zip(split(big_batch(policy), sizes), first["gradients"], second["gradients"], strict=True):
        expected = gradients_of_the_mean(policy, window)
        assert one.keys() == two.keys() == expected.keys()
        for got in (flat(one), flat(two)):
            assert (got - flat(expected)).norm() / flat(expected).norm() < 1e-12
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if name in expected:
                    parameter -= 0.1 * expected[name]
    for name, tensor in policy.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-11, atol=1e-13)


def test_parameters_that_the_loss_does_not_use_are_left_out(ranks):
    for result in ranks[0]:
        for window, beside in zip(result["gradients"], result["gradients beside a spare layer"], strict=True):
            assert window.keys() == beside.keys()  # the spare layer has none
            torch.testing.assert_close(flat(beside), flat(window), rtol=1e-12, atol=1e-15)


def test_what_unfreezes_is_averaged_over_the_processes(ranks):
    """DistributedDataParallel knows only what learnt when it was made."""
    (first, second), _, _ = ranks
    policy = make_policy(dtype=torch.float64)
    sizes = [sum(rank[0] + rank[1] for rank in SIZES), sum(rank[2] for rank in SIZES)]
    windows = split(big_batch(policy), sizes)
    fit(policy, windows, callbacks=[Unfreezing(STAGES)], optimizer=SGD | {"lr": 0.1}, precision="64-true")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(first["weights in stages"][name], second["weights in stages"][name]), name
        torch.testing.assert_close(first["weights in stages"][name], tensor, rtol=1e-11, atol=1e-13)
    assert not torch.equal(policy.vision.stem.weight, make_policy(dtype=torch.float64).vision.stem.weight)


def test_the_logged_loss_is_that_of_all_processes(ranks):
    _, folder, _ = ranks
    rows = read_rows(folder)
    policy = make_policy(dtype=torch.float64)
    window = split(big_batch(policy), [16, 8])[0]
    loss = next(float(row["train/loss"]) for row in rows if row["train/loss"])
    assert loss == pytest.approx(mean_loss(policy, window).item(), rel=1e-6)
    scales = [row["gradient_noise/scale"] for row in rows if row["gradients/total"]]
    assert len(scales) == 2 and all(scales)  # the short window has one micro-batch a process, which makes two


def test_a_nan_on_one_process_skips_the_step_on_both(ranks):
    results, _, output = ranks
    assert [result["skipped"] for result in results] == [1, 1]
    assert all(result["unchanged"] and result["origin"] == "the loss term action (rank 1)" for result in results)
    assert output.count("step 0 skipped") == 1  # said once


@pytest.mark.parametrize("optimizer", [SGD, SGD | {"fused": True}], ids=["plain", "fused"])
def test_fp16_gradients_are_unscaled_before_anyone_looks(optimizer, tmp_path):
    """A fused optimizer would unscale within its step: the monitor and clipping would see the scale."""
    policy = make_policy()
    batch = make_batch(policy, 8)
    expected = gradients_of_the_mean(policy, batch)
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    loggers = build_loggers({"csv": True}, run_dir=tmp_path, config={})
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    record = fit(
        policy,
        split(batch, [3, 5]),
        callbacks=[NonFiniteGuard(), GradientMonitor(every_n_steps=1)],
        logger=loggers,
        optimizer=optimizer,
        gradient_clip_val=0.01,
        accumulate_grad_batches=2,
        plugins=[plugin],
    )
    (logged,) = (row for row in read_rows(tmp_path) if row["gradients/total"])
    got = record.gradients[0]
    assert (flat(got) - flat(expected)).norm() / flat(expected).norm() < 2e-2
    assert float(logged["gradients/total"]) == pytest.approx(flat(expected).norm().item(), rel=2e-2)
    moved = (torch.cat([p.detach().flatten() for p in policy.parameters()]) - before).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-2)  # clipped where it was told to, by the true norm


def test_nothing_leaks_from_one_window_to_the_next():
    """The second window's gradient is the one that it has alone."""
    policy = make_policy(dtype=torch.float64)
    batches = [make_batch(policy, 3, seed=seed) for seed in range(4)]
    still = SGD | {"lr": 0.0}
    record = fit(policy, batches, accumulate_grad_batches=2, optimizer=still, precision="64-true")
    alone = fit(policy, batches[2:], accumulate_grad_batches=2, optimizer=still, precision="64-true")
    assert torch.equal(flat(record.gradients[1]), flat(alone.gradients[0]))


def test_valid_actions_are_counted_in_what_the_device_knows():
    """Metal knows no float64; everywhere else 1e-12 is promised."""
    assert [finest(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [torch.float64, torch.float64, torch.float32]


def test_the_order_of_the_callbacks(tmp_path):
    """Say what learns, divide, judge, look. The module, which discards or clips, comes after all callbacks; what they see is
    tested above, in test_unfreezing.py, in test_monitor.py and in test_guard.py."""
    settings = OmegaConf.to_container(config.load("train", ["experiment=toy_pick_smoke"]), resolve=True)
    trainer, _ = build_training(settings, make_policy(), run_dir=tmp_path, stopwatch=Stopwatch())
    order = [RandomNumbers, Unfreezing, WindowMean, NonFiniteGuard, GradientMonitor, WeightAverage, Summary, BestPolicy]
    assert [type(callback) for callback in trainer.callbacks[:8]] == order
    assert [type(callback) for callback in trainer.callbacks[9:11]] == [Progress, Checkpoints]
    assert trainer.callbacks[3].patience == settings["guard"]["patience"]
    assert trainer.callbacks[4].every_n_steps == settings["trainer"]["log_every_n_steps"] == 1
