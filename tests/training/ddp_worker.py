"""One of two processes that train together; tests/training/test_processes.py starts them and reads what they wrote."""

import contextlib
import os
import warnings
from pathlib import Path

import torch

from tests.factory import make_batch, make_policy
from tests.harness import SGD, fit
from vla_mini.finetuning.freezing import freeze
from vla_mini.finetuning.unfreezing import Unfreezing
from vla_mini.settings import Logger
from vla_mini.testing import split
from vla_mini.training.distributed import choose_strategy
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor

SIZES = [[3, 5, 4], [2, 6, 4]]  # of each rank's micro-batches; two make a window, so that the last one is short
FROZEN = ["vision"]
STAGES = {"vision": 1, "language": 1}


def big_batch(policy):
    return make_batch(policy, 24)


def micro_batches(batch):
    """Those of rank 0 and of rank 1; the big batch of a window is all that either has of it."""
    parts = split(batch, [size for pair in zip(*SIZES, strict=True) for size in pair])
    return parts[0::2], parts[1::2]


def main(folder: Path, rank: int, port: int) -> None:
    """As rank 0 or 1. What is printed goes to a file, and what was found to another."""
    with (folder / f"rank{rank}.txt").open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        work(folder, rank, port)


def work(folder: Path, rank: int, port: int) -> None:
    environment = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"})
    warnings.simplefilter("ignore")
    result = {}

    def train(policy, micro_batches, *, requested="ddp", **arguments):
        defaults = {"devices": 2, "precision": "64-true", "optimizer": SGD | {"lr": 0.1}, "accumulate_grad_batches": 2}
        strategy = choose_strategy(requested, num_processes=2)
        return fit(policy, micro_batches, strategy=strategy, **defaults | arguments)

    policy = make_policy(dtype=torch.float64)
    freeze(policy, FROZEN)
    batches = micro_batches(big_batch(policy))[rank]
    logger = build_loggers(Logger(), run_dir=folder, config={}) if rank == 0 else False
    monitor = GradientMonitor(every_n_steps=1, histograms=0)
    record = train(policy, batches, monitor=monitor, logger=logger, log_every_n_steps=1)
    result |= {"gradients": record.gradients, "weights": policy.state_dict()}

    policy = make_policy(dtype=torch.float64)
    policy.action.spare = torch.nn.Linear(3, 3, dtype=torch.float64)
    freeze(policy, FROZEN)
    record = train(policy, batches, requested="ddp_find_unused_parameters_true")
    result |= {"gradients beside a spare layer": record.gradients}

    policy = make_policy(dtype=torch.float64)
    train(policy, batches, callbacks=[Unfreezing(policy, STAGES)])
    result |= {"weights in stages": policy.state_dict()}

    policy = make_policy(dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    if rank == 1:  # alone, and by a constant, so that every gradient stays finite
        loss = policy.action.loss
        policy.action.loss = lambda *arguments: loss(*arguments) + torch.nan
    step = train(policy, [make_batch(policy, 4)], requested="auto").step
    result |= {"skipped": step.num_skipped, "origin": step.origin}
    result["unchanged"] = all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    torch.save(result, folder / f"rank{rank}.pt")
