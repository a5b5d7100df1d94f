"""What the monitor logs is what a hand computation finds, in the CSV and in the offline W&B file; and what it leaves alone."""

import csv
import gc
import json
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.factory import make_batch, make_policy, mean_loss
from tests.harness import SGD, Loader, fit, read_rows, rounded_to_zero
from vla_mini import config
from vla_mini.autograd.norms import gradients_of
from vla_mini.finetuning.freezing import freeze
from vla_mini.settings import Logger
from vla_mini.testing import split
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.trainer import build_training

CLIP, RATE = 0.05, 0.1
OFFLINE = Logger(wandb=True, project="test")
EVERY_STEP = {"every_n_steps": 1, "histograms": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One window of two unequal micro-batches, logged to both; the folder, the policies before and after, and the batch."""
    wandb.finish()  # a run that another test left open would take what is logged here
    folder = tmp_path_factory.mktemp("run")
    before, policy = make_policy(), make_policy()
    batch = make_batch(policy, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = build_loggers(OFFLINE.model_copy(update={"tensorboard": True}), run_dir=folder, config={})
    monitor = GradientMonitor(every_n_steps=1, histograms=1, per_parameter=True)
    fit(
        policy,
        split(batch, [3, 5]),
        monitor=monitor,
        logger=loggers,
        accumulate_grad_batches=2,
        optimizer=SGD | {"lr": RATE},
        clip_value=CLIP,
        log_every_n_steps=1,
    )
    loggers[-1].experiment.finish()
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
    # Zeros are counted in the sum over the micro-batches that were trained on: where the true gradient is zero, as of
    # word_keys.bias, a sum in another order rounds others to zero.
    before.zero_grad()
    for part in split(batch, [3, 5]):
        before.loss(part)[0].sum().backward()
    summed = {name: p.grad.numpy() for name, p in before.named_parameters()}
    expected = {}

    def vector(values, name):
        return np.concatenate([v.ravel() for key, v in values.items() if key == name or key.startswith(f"{name}.")])

    for name in [*before.components(), *gradients]:
        gradient = vector(gradients, name)
        expected[f"gradients/{name}/norm" if name in gradients else f"gradients/{name}"] = np.linalg.norm(gradient)
        expected[f"gradients/{name}/largest"] = np.abs(gradient).max()
        expected[f"gradients/{name}/zeros"] = (vector(summed, name) == 0).mean()
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
        few = rounded_to_zero(name) if name.endswith("/zeros") else 1e-7
        assert logged[name] == pytest.approx(value, rel=2e-3 if "noise" in name else 1e-4, abs=few), name


def test_the_csv_holds_what_a_hand_computation_finds(run, by_hand):
    folder, before, _, batch = run
    logged = read_csv(folder)
    check(logged, by_hand[0])
    assert logged["train/loss"] == pytest.approx(mean_loss(before, batch).item(), rel=1e-5)
    assert {"train/action", "train/keyframe", "seconds", "samples_per_second", "learning_rate"} <= logged.keys()


def test_the_wandb_file_holds_the_same_and_histograms(run, by_hand):
    folder, before, _, _ = run
    expected, gradients = by_hand
    logged = read_wandb(folder)
    histograms = {name: logged.pop(name) for name in list(logged) if name.endswith((".bins", ".values", "._type"))}
    check(logged, expected)
    names = {f"gradients/{name}" for name, _ in before.named_parameters()}
    assert {name.rpartition(".")[0] for name in histograms} == names
    for name, gradient in gradients.items():
        if name == "trunk.word_keys.bias":  # all rounding: a softmax does not see what all scores share
            continue
        counts, edges = np.histogram(gradient.astype(np.float32), bins=64)
        logged_counts, logged_edges = (histograms[f"gradients/{name}.{key}"] for key in ("values", "bins"))
        np.testing.assert_allclose(logged_edges, edges, rtol=1e-3, atol=1e-6)
        assert sum(logged_counts) == gradient.size
        # Rounding may put values that lie on an edge into the bin beside.
        below, exact = np.cumsum(logged_counts), np.cumsum(counts)
        assert (np.r_[0, exact[:-1]] <= below).all() and (below <= np.r_[exact[1:], gradient.size]).all(), name


def test_tensorboard_holds_the_same(run, by_hand):
    folder, _, _, _ = run
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in ("gradients/vision", "updates/action", "gradient_noise/trace"):
        assert [event.value for event in events.Scalars(name)] == [pytest.approx(by_hand[0][name], rel=2e-3)]


def read_csv(folder: Path) -> dict[str, float]:
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {name: float(value) for row in rows for name, value in row.items() if value}


def read_wandb(folder: Path) -> dict[str, float]:
    """What an offline run logged last. Histograms come as `<name>.bins`, `<name>.values`."""
    return {name: value for row in wandb_rows(folder) for name, value in row.items()}


def wandb_rows(folder: Path) -> list[dict[str, float]]:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", path]
    records = map(json.loads, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def log(folder, policy, batches, **arguments):
    """What a run with the monitor writes to metrics.csv."""
    monitor = GradientMonitor(**EVERY_STEP | arguments.pop("monitor", {}))
    fit(policy, batches, monitor=monitor, logger=build_loggers(Logger(), run_dir=folder, config={}), **arguments)
    return read_csv(folder)


def test_one_micro_batch_has_no_noise_scale_and_parameters_can_be_left_out(tmp_path):
    policy = make_policy()
    logged = log(tmp_path, policy, [make_batch(policy)], monitor={"per_parameter": False})
    assert not [name for name in logged if name.startswith("gradient_noise/")] and "gradients/clip_factor" not in logged
    assert {f"gradients/{name}" for name in policy.components()} <= logged.keys()
    assert not [name for name in logged if "stem" in name]


def test_frozen_parameters_have_none(tmp_path):
    policy = make_policy()
    freeze(policy, ["vision"])
    logged = log(tmp_path, policy, [make_batch(policy)])
    assert "gradients/trunk" in logged and not [name for name in logged if name.endswith("/vision")]
    policy.vision.stem.weight.grad = torch.zeros_like(policy.vision.stem.weight)
    with pytest.raises(AssertionError, match=r"vision\.stem\.weight is frozen, yet it has a gradient"):
        gradients_of(policy)


def test_it_measures_every_n_steps(tmp_path):
    policy = make_policy()
    log(tmp_path, policy, [make_batch(policy)] * 7, monitor={"every_n_steps": 3})
    assert [row["step"] for row in read_rows(tmp_path) if row["gradients/total"]] == ["2", "5"]
    never = log(tmp_path / "never", policy, [make_batch(policy)], monitor={"every_n_steps": 0}, log_every_n_steps=1)
    assert "train/loss" in never and "gradients/total" not in never


def test_watch_shows_every_nth_micro_batch_summed(run, tmp_path, monkeypatch):
    """W&B's own: not the window's mean, which the monitor shows. It counts backward passes."""
    assert not [name for name in read_wandb(run[0]) if "policy." in name]  # off by default
    wandb.finish()
    monkeypatch.setattr("wandb.sdk.wandb_watch._global_watch_idx", 0)  # a second watch of one process changes its names
    before, policy = make_policy(), make_policy()
    batches = split(make_batch(policy, 16), [3, 5, 2, 6])
    arguments = ["logger=wandb", "monitor.watch=true", "monitor.every_n_steps=4", "trainer.accumulate_grad_batches=2"]
    arguments += [
        "optimizer=sgd",
        "optimizer.lr=1e-9",
        "trainer.precision=32-true",
        "trainer.max_steps=2",
        "evaluation.every_n_steps=0",
        "trainer.accelerator=cpu",
    ]
    settings = config.load("train", ["experiment=toy_pick_smoke", *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, module = build_training(settings, policy, run_dir=tmp_path)
        trainer.fit(module, Loader(batches))
    trainer.loggers[-1].experiment.finish()
    (row,) = [row for row in wandb_rows(tmp_path) if "gradients/policy.state.weight.bins" in row]  # the fourth's
    names = {name for name in row if name.startswith("gradients/policy.") and name.endswith(".bins")}
    assert names == {f"gradients/policy.{name}.bins" for name, _ in policy.named_parameters()}
    (gradient,) = torch.autograd.grad(before.loss(batches[3])[0].sum() / 2, before.state.weight)
    edges = row["gradients/policy.state.weight.bins"]
    assert [edges[0], edges[-1]] == pytest.approx([gradient.min().item(), gradient.max().item()], rel=1e-4)


class Counting(TorchDispatchMode):
    """Counts the operations that torch carries out, and the numbers that they read."""

    def __init__(self):
        super().__init__()
        self.operations = self.numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations += 1
        self.numbers += sum(leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        return operation(*args, **(kwargs or {}))


def test_measuring_costs_a_few_passes_over_the_gradients():
    """Counted, since time depends on what else runs: 5 % of what a step reads, at the size of the main job's batch."""
    policy, monitor = make_policy(), GradientMonitor(**EVERY_STEP)
    batch = make_batch(policy, config.load("train", []).data.batch_size)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with Counting() as step:
        mean_loss(policy, batch).backward()
    parameters = dict(policy.named_parameters())
    with Counting() as measuring:
        monitor.measure(trainer, parameters, clip_norm=1.0)
        assert len(monitor.measure_update()) > 5 * len(parameters)
    assert 1 < measuring.numbers / sum(parameter.numel() for parameter in parameters.values()) < 12
    assert measuring.operations < 8 * len(parameters)
    assert measuring.numbers < 0.05 * step.numbers


class Tensors(lightning.Callback):
    """How many tensors are alive, and how many bytes they hold, after two steps, 40 apart."""

    def __init__(self):
        self.alive = {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step in (5, 45) and batch_idx % 2:
            gc.collect()
            found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
            tensors = [each for each in found if not isinstance(each, FakeTensor)]  # which torch.export keeps
            self.alive[trainer.global_step] = (len(tensors), sum(tensor.nbytes for tensor in tensors))


def test_no_step_keeps_anything():
    """No graph, no tensor, no hook is left from one step to the next."""
    policy = make_policy(vision={"_target_": "vla_mini.vision.conv.ConvVision", "width": 8, "depth": 1})
    counter, monitor = Tensors(), GradientMonitor(every_n_steps=1)
    arguments = {"accumulate_grad_batches": 2, "log_every_n_steps": 1, "record": False}
    fit(policy, [make_batch(policy, 2)] * 90, callbacks=[counter], monitor=monitor, **arguments)
    assert counter.alive[5] == counter.alive[45]
    assert not [name for name, parameter in policy.named_parameters() if parameter._backward_hooks]
