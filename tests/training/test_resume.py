"""A run that is stopped anywhere and resumed ends with exactly the weights, and the metrics, of one that never stopped."""

import io
import os
import random
import signal
import warnings

import lightning
import pytest
import torch

from tests.harness import read_rows
from vla_mini import config
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.setup.policy import data_module, untrained_policy
from vla_mini.training import loggers
from vla_mini.training.checkpoints import clean_run_folder, newest_good, numbered
from vla_mini.training.trainer import build_training
from vla_mini.utils import files

# 12 episodes make about 12 batches of 16 an epoch: two epochs and a bit, with a short last window where 5 make one.
COMMON = ["data.batch_size=16", "trainer.val_check_interval=4", "checkpoint.every_n_steps=3", "evaluation.every_n_steps=5"]
COMMON += ["evaluation.selection_episodes=1", "execute=8"]
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
    settings = config.load("train", ["experiment=toy_pick_smoke", *COMMON, *arguments])
    lightning.seed_everything(0, verbose=False)
    run_dir.mkdir(exist_ok=True)
    steps, checkpoint = newest_good(run_dir / "checkpoints")
    clean_run_folder(run_dir, step=steps)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)
    trainer, module = build_training(settings, policy, run_dir=run_dir, steps=steps)
    if after is not None:
        trainer.callbacks.insert(0, Signal(after))
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
    rows = [{name: cell for name, cell in row.items() if name not in OF_TIME} for row in read_rows(run_dir)]
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint["state_dict"].items()}
    return files.digest(run_dir / "policy" / "model.safetensors"), weights, rows


VARIANTS = {
    "windows": ["trainer.accumulate_grad_batches=5", "trainer.max_steps=8"],
    "flow": ["action=flow", "action.hidden=64", "optimizer=adamw"],
    "torchvision": ["vision=torchvision"],
    "validated by epochs": [
        *("trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=0.5", "env=none"),
        *("action=bins", "language=huggingface", "trainer.precision=64-true"),
    ],
    "all that changes on the way": [
        *("augmentation=default", "ema.decay=0.9", "unfreeze_at={vision:7}", "history=2"),
        *("trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed", "trainer.log_every_n_steps=4"),
    ],
    "dropout": [
        *("language=huggingface", "language.frozen=false", "lora.targets=[trunk]", "lora.dropout=0.2", "lora.save=separate"),
        *("lora.also_train=[language,action]", "optimizer=adamw", "trainer.precision=bf16-mixed"),
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_anywhere_and_resumed_it_is_the_same_run(demonstrations, tmp_path, variant, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["trainer.max_steps=17", *VARIANTS[variant]]
    assert train(demonstrations, tmp_path / "whole", arguments)
    expected = outcome(tmp_path / "whole")
    draw = random.Random(variant)
    stops, done = 0, False
    while not done:
        done = train(demonstrations, tmp_path / "stopped", arguments, after=draw.randint(1, 12))
        stops += not done
    assert stops >= 2
    assert outcome(tmp_path / "stopped") == expected


def test_a_bad_checkpoint_pushes_no_good_one_out(demonstrations, tmp_path):
    """It was the newest, and the run that resumes from the one before it stops sooner."""
    arguments = ["trainer.max_steps=17", "checkpoint.keep=1", "evaluation.every_n_steps=0"]
    assert not train(demonstrations, tmp_path, [*arguments, "checkpoint.keep=2"], after=8)
    (newest, path), (before, _) = numbered(tmp_path / "checkpoints")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert not train(demonstrations, tmp_path, arguments, after=1)
    assert before < newest_good(tmp_path / "checkpoints")[0] < newest


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_bar_continues_where_it_was(demonstrations, tmp_path, accumulated, monkeypatch):
    bars = []

    class Shown(loggers.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(loggers, "tqdm", Shown)
    arguments = ["trainer.max_steps=8", f"trainer.accumulate_grad_batches={accumulated}", "evaluation.every_n_steps=0"]
    assert not train(demonstrations, tmp_path, arguments, after=5 * accumulated)
    assert train(demonstrations, tmp_path, arguments)
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 5, 8), (5, 8, 8)]
