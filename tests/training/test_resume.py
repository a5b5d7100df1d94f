"""A run that is stopped anywhere and resumed ends with the very bits, and the very figures, of one that never stopped."""

import csv
import os
import random
import signal
import warnings

import lightning
import pytest
import torch
from omegaconf import OmegaConf

from vla_mini import config, files
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.training.checkpoints import newest_good
from vla_mini.training.setup import data_module, untrained_policy
from vla_mini.training.trainer import build_training
from vla_mini.training.window import Stopwatch

# 12 episodes make about 12 batches of 16 an epoch: two epochs and a bit, with a short last window where 5 make one.
COMMON = ["data.batch_size=16", "trainer.val_check_interval=4", "checkpoint.every_n_steps=3", "evaluation.every_n_steps=5"]
COMMON += ["evaluation.selection_episodes=1"]
OF_TIME = {"seconds", "samples_per_second", "selection/seconds"}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume") / "data"
    collect("vla_mini/ToyPick-v0", root, episodes=12, validation_episodes=3, seed=0, num_workers=1)
    return read_dataset(root)


class Signal(lightning.Callback):
    """SIGTERM, in the middle of a micro-batch."""

    def __init__(self, after):
        self.after = after

    def on_before_backward(self, trainer, module, loss):
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def train(demonstrations, run_dir, arguments, *, after=None):
    """As scripts/train.py trains; with `after`, until the signal that comes in that micro-batch. Whether it came to its end."""
    cfg = config.load("train", ["experiment=toy_pick_smoke", *COMMON, *arguments])
    settings = OmegaConf.to_container(cfg, resolve=True)
    lightning.seed_everything(0, verbose=False)
    steps, checkpoint = newest_good(run_dir / "checkpoints") if (run_dir / "checkpoints").exists() else (0, None)
    run_dir.mkdir(exist_ok=True)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)
    trainer, module = build_training(settings, policy, run_dir=run_dir, stopwatch=Stopwatch(), steps=steps)
    if after is not None:
        trainer.callbacks.insert(1, Signal(after))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's, on tiny data
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:
            assert stop.code == 128 + signal.SIGTERM
            return False
    return True


def outcome(run_dir):
    """All that a run leaves, but for what time it took."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: cell for name, cell in row.items() if name not in OF_TIME} for row in csv.DictReader(file)]
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint["state_dict"].items()}
    return files.digest(run_dir / "policy" / "model.safetensors"), weights, rows


VARIANTS = {
    "default": [],
    "windows": ["trainer.accumulate_grad_batches=5"],
    "flow": ["action=flow", "optimizer=adamw"],
    "diffusion": ["action=diffusion", "trainer.accumulate_grad_batches=2", "trainer.precision=32-true"],
    "torchvision": ["vision=torchvision"],
    "bins": ["action=bins", "insulate=false", "language=huggingface"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_anywhere_and_resumed_it_is_the_same_run(demonstrations, tmp_path, variant, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = [*VARIANTS[variant], "trainer.max_steps=17"]
    assert train(demonstrations, tmp_path / "whole", arguments)
    expected = outcome(tmp_path / "whole")
    draw = random.Random(variant)
    stops, done = 0, False
    while not done:
        done = train(demonstrations, tmp_path / "stopped", arguments, after=draw.randint(1, 12))
        stops += not done
    assert stops >= 2
    assert outcome(tmp_path / "stopped") == expected
