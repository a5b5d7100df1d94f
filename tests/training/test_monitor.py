"""What the monitor logs is what a hand computation finds, in the CSV and in the offline W&B file; and what it leaves alone."""

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback

from tests.factory import make_batch, make_policy, mean_loss
from tests.harness import SGD, fit
from vla_mini.autograd.norms import components
from vla_mini.testing import split
from vla_mini.training.freezing import freeze
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor

CLIP, RATE = 0.05, 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One window of two unequal micro-batches, logged to both; the folder, the policies before and after, and the batch."""
    folder = tmp_path_factory.mktemp("run")
    before, policy = make_policy(), make_policy()
    batch = make_batch(policy, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"csv": True, "wandb": True, "mode": "offline", "project": "test"}
        loggers = build_loggers(settings, run_dir=folder, config={})
    monitor = GradientMonitor(every_n_steps=1, histograms=1, per_parameter=True)
    fit(
        policy,
        split(batch, [3, 5]),
        callbacks=[monitor],
        logger=loggers,
        accumulate_grad_batches=2,
        optimizer=SGD | {"lr": RATE},
        gradient_clip_val=CLIP,
        log_every_n_steps=1,
    )
    loggers[1].experiment.finish()
    return folder, before, policy, batch


@pytest.fixture(scope="module")
def by_hand(run):
    """Every scalar once more, in NumPy float64, from the gradient of the one big batch and the weights before and after."""
    _, before, policy, batch = run
    before.zero_grad()
    mean_loss(before, batch).backward()
    gradients = {name: p.grad.double().numpy() for name, p in before.named_parameters()}
    weights = {name: p.detach().double().numpy() for name, p in before.named_parameters()}
    moved = {name: p.detach().double().numpy() - weights[name] for name, p in policy.named_parameters()}
    expected = {}

    def vector(values, name):
        return np.concatenate([v.ravel() for key, v in values.items() if key == name or key.startswith(f"{name}.")])

    for name in [*components(before), *gradients]:
        gradient = vector(gradients, name)
        expected[f"gradients/{name}/norm" if name in gradients else f"gradients/{name}"] = np.linalg.norm(gradient)
        expected[f"gradients/{name}/largest"] = np.abs(gradient).max()
        expected[f"gradients/{name}/zeros"] = (gradient == 0).mean()
        expected[f"gradients/{name}/nonfinite"] = 0
        expected[f"weights/{name}"] = np.linalg.norm(vector(weights, name))
        if expected[f"weights/{name}"]:
            expected[f"updates/{name}"] = np.linalg.norm(vector(moved, name)) / expected[f"weights/{name}"]
    total = np.linalg.norm(np.concatenate([gradient.ravel() for gradient in gradients.values()]))
    expected |= {"gradients/total": total, "gradients/clip_factor": CLIP / total}
    squares = []
    for part in split(batch, [3, 5]):
        before.zero_grad()
        mean_loss(before, part).backward()
        squares.append(sum(p.grad.double().square().sum().item() for p in before.parameters()))
    signal, trace = np.linalg.solve([[1, (1 / 3 + 1 / 5) / 2], [1, 1 / 8]], [np.mean(squares), total**2])
    expected |= {"gradient_noise/signal": signal, "gradient_noise/trace": trace, "gradient_noise/scale": trace / signal}
    return expected, gradients


def check(logged, expected):
    assert {name for name in logged if name.startswith(("gradient", "weights/", "updates/"))} == expected.keys()
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=2e-3 if "noise" in name else 1e-4, abs=1e-7), name


def test_the_csv_holds_what_a_hand_computation_finds(run, by_hand):
    folder, before, _, batch = run
    logged = read_csv(folder)
    check(logged, by_hand[0])
    assert logged["train/loss"] == pytest.approx(mean_loss(before, batch).item(), rel=1e-5)
    assert {"train/action", "train/keyframe", "seconds", "samples_per_second", "learning_rate"} <= logged.keys()


def test_the_wandb_file_holds_the_same_and_histograms(run, by_hand):
    folder, before, _, _ = run
    expected, gradients = by_hand
    logged, histograms = {}, {}
    for row in read_wandb(folder):
        for name, value in row.items():
            (histograms if isinstance(value, dict) else logged)[name] = value
    check(logged, expected)
    assert histograms.keys() == {f"gradients/{name}" for name, _ in before.named_parameters()}
    for name, gradient in gradients.items():
        counts, edges = np.histogram(gradient.astype(np.float32), bins=64)
        histogram = histograms[f"gradients/{name}"]
        np.testing.assert_allclose(histogram["bins"], edges, rtol=1e-3, atol=1e-6)
        assert sum(histogram["values"]) == gradient.size  # a value on an edge may fall to either side
        assert np.abs(np.cumsum(histogram["values"]) - np.cumsum(counts)).max() <= max(2, gradient.size // 500), name


def read_csv(folder: Path) -> dict[str, float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {name: float(value) for row in rows for name, value in row.items() if value}


def read_wandb(folder: Path) -> list[dict]:
    """What an offline run logged, row by row."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", path]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def log(tmp_path, policy, batches, **arguments):
    """What a run with the monitor writes to the CSV."""
    monitor = GradientMonitor(**{"every_n_steps": 1} | arguments.pop("monitor", {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = build_loggers({"csv": True}, run_dir=tmp_path, config={})
    fit(policy, batches, callbacks=[monitor], logger=loggers, **arguments)
    return read_csv(tmp_path)


def test_by_default_only_components_and_only_where_windows_have_several_micro_batches(tmp_path):
    policy = make_policy()
    logged = log(tmp_path, policy, [make_batch(policy)], log_every_n_steps=1)
    assert not [name for name in logged if name.startswith("gradient_noise/")]
    assert not [name for name in logged if "stem" in name] and "gradients/clip_factor" not in logged
    assert {f"gradients/{name}" for name in components(policy)} <= logged.keys()


def test_frozen_parameters_have_none(tmp_path):
    policy = make_policy()
    freeze(policy, ["vision"])
    logged = log(tmp_path, policy, [make_batch(policy)])
    assert "gradients/trunk" in logged and not [name for name in logged if name.endswith("/vision")]
    policy.vision.stem.weight.grad = torch.zeros_like(policy.vision.stem.weight)
    with pytest.raises(AssertionError, match=r"vision\.stem\.weight is frozen, yet it has a gradient"):
        log(tmp_path / "again", policy, [make_batch(policy)])


def test_non_finite_values_are_counted(tmp_path):
    policy = make_policy()

    def plant(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        return gradient

    policy.vision.stem.weight.register_hook(plant)
    logged = log(tmp_path, policy, [make_batch(policy)])  # no guard here
    assert logged["gradients/vision/nonfinite"] == 3 and logged["gradients/action/nonfinite"] == 0
    assert np.isnan(logged["gradients/vision"]) and np.isnan(logged["gradients/vision/largest"])


def test_looks_come_every_n_steps(tmp_path):
    policy = make_policy()
    log(tmp_path, policy, [make_batch(policy)] * 7, monitor={"every_n_steps": 3})
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [row["step"] for row in rows if row["gradients/total"]] == ["2", "5"]
    assert not (tmp_path / "never" / "metrics.csv").exists()


def test_watch_is_wandbs_own(monkeypatch, tmp_path):
    from lightning.pytorch.loggers import WandbLogger

    calls = []
    logger = WandbLogger(save_dir=tmp_path, offline=True, experiment=None)
    monkeypatch.setattr(WandbLogger, "watch", lambda self, model, **arguments: calls.append((type(model).__name__, arguments)))
    trainer = type("Trainer", (), {"loggers": [logger]})()
    for watch in (False, True):
        GradientMonitor(every_n_steps=5, watch=watch).on_fit_start(trainer, make_policy())
    assert calls == [("Policy", {"log": "gradients", "log_freq": 5, "log_graph": False})]


class Tensors(Callback):
    """How many tensors are alive, and how many bytes they hold, after each step."""

    def __init__(self):
        self.alive = []

    def on_train_batch_end(self, trainer, module, *_):
        import gc

        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        self.alive.append((len(tensors), sum(t.untyped_storage().nbytes() for t in {id(t): t for t in tensors}.values())))


def test_a_hundred_steps_keep_nothing(tmp_path):
    """No graph, no tensor, no hook is left from one step to the next."""
    policy = make_policy(vision={"_target_": "vla_mini.vision.conv.ConvVision", "width": 8, "depth": 1})
    batch, counter = make_batch(policy, 2), Tensors()
    monitor = GradientMonitor(every_n_steps=1, per_parameter=True)
    fit(policy, [batch] * 200, callbacks=[monitor, counter], accumulate_grad_batches=2, steps=100)
    assert len(counter.alive) == 200
    windows = counter.alive[11::2]  # after the first few, in which the optimizer and Lightning settle in
    assert len(set(windows)) == 1, windows
    assert not [name for name, parameter in policy.named_parameters() if parameter._backward_hooks]
