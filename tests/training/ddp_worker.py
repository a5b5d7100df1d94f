"""One of two processes that train together; tests/training/test_window.py starts them and reads what they wrote.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.training.ddp_worker FOLDER
"""

import os
import sys
import warnings
from pathlib import Path

import torch

from tests.factory import make_batch, make_policy
from tests.harness import SGD, fit
from vla_mini.testing import split
from vla_mini.training.freezing import freeze
from vla_mini.training.guard import NonFiniteGuard
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.processes import choose_strategy
from vla_mini.training.unfreezing import Unfreezing

SIZES = [[3, 5, 4], [2, 6, 4]]  # of each rank's micro-batches; two make a window, so that the last one is short
FROZEN = ["vision"]
STAGES = {"vision": 1, "language": 1}


def big_batch(policy):
    return make_batch(policy, 24)


def micro_batches(batch):
    """Those of rank 0 and of rank 1; the big batch of a window is all that either has of it."""
    parts = split(batch, [size for pair in zip(*SIZES, strict=True) for size in pair])
    return parts[0::2], parts[1::2]


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    policy = make_policy(dtype=torch.float64)
    freeze(policy, FROZEN)
    together = {"devices": 2, "precision": "64-true"}
    rank = int(os.environ["RANK"])
    loggers = build_loggers({"csv": True}, run_dir=folder, config={}) if rank == 0 else False
    batches = micro_batches(big_batch(policy))[rank]
    callbacks = [NonFiniteGuard(), GradientMonitor(every_n_steps=1)]
    arguments = {"callbacks": callbacks, "logger": loggers, "log_every_n_steps": 1}
    optimizer = SGD | {"lr": 0.1}
    strategy = choose_strategy("ddp", devices=2)
    record = fit(policy, batches, accumulate_grad_batches=2, optimizer=optimizer, strategy=strategy, **arguments, **together)
    result = {"gradients": record.gradients, "weights": policy.state_dict()}

    policy = make_policy(dtype=torch.float64)
    policy.action.spare = torch.nn.Linear(3, 3, dtype=torch.float64)
    freeze(policy, FROZEN)
    strategy = choose_strategy("ddp_find_unused_parameters_true", devices=2)
    record = fit(policy, batches, accumulate_grad_batches=2, optimizer=optimizer, strategy=strategy, **together)
    result |= {"gradients beside a spare layer": record.gradients}

    policy = make_policy(dtype=torch.float64)
    stages = [Unfreezing(STAGES), NonFiniteGuard(), GradientMonitor(every_n_steps=1)]
    strategy = choose_strategy("ddp", devices=2)
    fit(policy, batches, accumulate_grad_batches=2, optimizer=optimizer, callbacks=stages, strategy=strategy, **together)
    result |= {"weights in stages": policy.state_dict()}

    policy, guard = make_policy(dtype=torch.float64), NonFiniteGuard()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    batch = make_batch(policy, 4)
    if rank == 1:  # alone, and by a constant, so that every gradient stays finite
        loss = policy.action.loss
        policy.action.loss = lambda *arguments: loss(*arguments) + torch.nan
    fit(policy, [batch], callbacks=[guard], strategy=choose_strategy("auto", devices=2), **together)
    result |= {"skipped": guard.skipped, "origin": guard.origin}
    result["unchanged"] = all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    torch.save(result, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
