"""The processes of a run: which one this is, and how those that a launcher started find one another.

    python scripts/train.py trainer.devices=N     Lightning starts N - 1 further ones on this machine when training begins
    torchrun or srun, on one machine or several   all begin at once, trainer.num_nodes x trainer.devices of them

Either way the first process checks the settings, collects, and makes the run's folder; the others begin once it is there.
RUN_DIR in their environment names it. Those of torchrun or srun wait for its name in a key-value store of torch.distributed,
which the first process holds (under torchrun its agent). All machines must see the same files.
"""

import functools
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

RUN_DIR = "VLA_MINI_RUN_DIR"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
JOIN_SECONDS = 600  # within which all processes must have come


def launcher() -> str | None:
    """What started the processes of this run, if they all begin at once: torchrun or srun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "srun" if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else None  # not set in a batch script itself


def rank() -> int:
    """The number of this process in its run; 0 is the one that checks, writes and reports."""
    if found := launcher():
        return int(os.environ["RANK" if found == "torchrun" else "SLURM_PROCID"])
    return int(os.environ.get("LOCAL_RANK", 0)) if RUN_DIR in os.environ else 0


def joined_run() -> str | None:
    """In all processes of a run but the first: the run's folder."""
    return os.environ.get(RUN_DIR) if rank() else None


def check_processes(arguments: Sequence[str], *, devices: int, nodes: int) -> None:
    """ValueError where the processes of this run, given `arguments`, are not those that the settings name: one for each of
    the devices of each node."""
    if found := launcher():
        names = {"torchrun": ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"), "srun": ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE")}[found]
        if missing := [name for name in names if name not in os.environ]:
            raise ValueError(f"{missing[0]} is not set: give srun or sbatch --nodes=N --ntasks-per-node=M")
        there = [int(os.environ[name]) for name in names]
        if there != [nodes, devices]:
            raise ValueError(
                f"trainer.num_nodes={nodes} trainer.devices={devices}, but {found} started other processes: "
                f"give trainer.num_nodes={there[0]} trainer.devices={there[1]}"
            )
    elif "LOCAL_RANK" in os.environ and RUN_DIR not in os.environ:  # All processes would begin at once, and collect.
        raise ValueError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set, but neither by torchrun nor by srun: start this command by "
            "one of them, or by python alone; trainer.devices=N starts the other processes"
        )
    elif nodes > 1:
        raise ValueError(f"trainer.num_nodes={nodes}: start this command on every machine, by torchrun or srun (docs/scale.md)")
    elif devices > 1 and list(arguments) != sys.argv[1:]:
        raise ValueError(f"trainer.devices={devices} needs the command line: it starts {sys.argv[0]} again")


def join() -> None:
    """Find the other processes that the launcher started, if there is one; all but the first then wait for `announce`.

    From then on the first process alone answers signals, as where Lightning starts the others.
    """
    if launcher() is None:
        return
    store = _store()
    if not rank():
        return
    try:
        while not store.check([RUN_DIR]):  # `get` would wait, too, but no signal could end it
            time.sleep(1)
        os.environ[RUN_DIR] = store.get(RUN_DIR).decode()
    except RuntimeError:  # the connection is closed
        _give_up("the first process ended before training began")
    if not Path(os.environ[RUN_DIR]).is_dir():
        here = platform.node()
        _give_up(f"{os.environ[RUN_DIR]}, the run's folder, is not there on {here}: all machines must see the same files")
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def announce(run_dir: Path) -> None:
    """Let the processes begin that wait in `join`, if there are any."""
    if launcher() and not rank():
        _store().set(RUN_DIR, os.path.abspath(run_dir))


@functools.cache
def _store() -> Any:
    """The store by which the processes of torchrun or srun find one another, once all have come."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch writes a stack trace where a connection is closed
    import torch.distributed

    if launcher() == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
        os.environ |= {"RANK": os.environ["SLURM_PROCID"], "WORLD_SIZE": os.environ["SLURM_NTASKS"]}
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # Python's do not run while torch waits
    try:
        store, *_ = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except RuntimeError as error:  # also of the operating system, such as a port in use
        _give_up(f"the processes did not all come within {JOIN_SECONDS} s: {error}".splitlines()[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return store


def _give_up(reason: str) -> None:
    print(f"train: process {rank()}: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(1)
