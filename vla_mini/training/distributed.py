"""Several processes that train together: the strategy by which they share gradients, and that none outlives the others.

With strategy=fsdp (FSDP2, torch's `fully_shard`) each process keeps a part of every weight, of its gradient and of the
optimizer's state. A block's weights are gathered while it is computed. What needs whole tensors calls `full`, what needs a
whole policy `unsharded`, in all processes at once; what treats each number by itself works on `local`.
"""

import copy
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from vla_mini.commands import processes
from vla_mini.policy import Policy
from vla_mini.utils import files

TIMEOUT = timedelta(days=1)  # the others wait while the first one writes
SHUTDOWN_SECONDS = 3  # that the first process has after a second signal


def choose_strategy(requested: str, *, num_processes: int) -> Strategy | str:
    """One process needs none. Several, started by the same command, average their gradients."""
    if requested == "fsdp":
        return ShardedStrategy(num_processes)
    if num_processes == 1:
        return "auto"
    return DDPStrategy(
        cluster_environment=cluster_environment(),
        find_unused_parameters=requested == "ddp_find_unused_parameters_true",
        timeout=TIMEOUT,
    )


def cluster_environment() -> ClusterEnvironment:
    """What Lightning should know of how the processes were started."""
    match processes.launcher():
        case "torchrun":
            return TorchElasticEnvironment()
        case "srun":
            return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()  # by Lightning itself, on this machine, whatever cluster it belongs to


class ShardedStrategy(ModelParallelStrategy):
    """FSDP over all processes. A checkpoint is a folder in which each process writes its part (torch.distributed.checkpoint);
    any number of processes resumes from it. The module shards its policies in `configure_model`.

    Unlike all others such a checkpoint has a file that is read by pickle, `.metadata`: resume only runs of your own.
    """

    def __init__(self, num_processes: int) -> None:
        super().__init__(data_parallel_size=num_processes, tensor_parallel_size=1, timeout=TIMEOUT)
        self.cluster_environment = cluster_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Completely or not at all, with its checksum, as `AtomicCheckpointIO` does."""
        path, partial = self.broadcast((Path(filepath), files.temporary_path(Path(filepath))))
        super().save_checkpoint(checkpoint | {"run": self.checkpoint_io.run}, partial)
        self.barrier()
        if self.is_global_zero:
            files.sync_tree(partial)
            digest = files.digest(partial)
            shutil.rmtree(path, ignore_errors=True)
            os.rename(partial, path)
            files.write_checksum(path, digest)
        self.barrier()


# ---- weights that are divided over the processes

_whole: WeakKeyDictionary[Policy, Policy] = WeakKeyDictionary()  # a policy that is sharded -> its copy with whole weights


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Divide the weights of a policy: those of each block of a ModuleList by themselves, all others together. Parameters that
    are single numbers, and parts that are not `divisible`, stay whole in each process."""
    if isinstance(policy, FSDPModule):
        return
    _whole[policy] = copy.deepcopy(policy)
    for parameter in policy.parameters():  # FSDP takes no weights in channels_last
        parameter.data = parameter.data.contiguous()
    whole = {parameter for parameter in policy.parameters() if parameter.dim() == 0}
    whole |= {parameter for _, part in policy.parts() if not part.divisible for parameter in part.parameters()}
    for module in reversed([*policy.modules()]):  # what is within a block first
        for block in module if isinstance(module, nn.ModuleList) else ():
            if not whole.issuperset(block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(policy, mesh=mesh, ignored_params=whole)


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


def unsharded(policy: Policy) -> Policy:
    """The policy with whole weights: itself, or a copy where it is sharded, in the same mode, as trainable. All processes call
    this together."""
    if not is_sharded(policy):
        return policy
    whole = _whole[policy]
    whole.load_state_dict(full_state(policy))
    for mine, its in zip(whole.modules(), policy.modules(), strict=True):
        mine.training = its.training
    for mine, its in zip(whole.parameters(), policy.parameters(), strict=True):
        mine.requires_grad_(its.requires_grad)
    return whole.to(policy.device)


def full_state(policy: Policy) -> dict[str, Any]:
    """`state_dict` with whole tensors. All processes call this together."""
    return (
        get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True))
        if is_sharded(policy)
        else policy.state_dict()
    )


def load_full_state(policy: Policy, state: Mapping[str, Any]) -> None:
    """`load_state_dict` of what `full_state` returned, which each process has as a whole."""
    if is_sharded(policy):
        set_model_state_dict(policy, dict(state), options=StateDictOptions(full_state_dict=True))
    else:
        policy.load_state_dict(state)


def average_whole(gradients: Iterable[Tensor], strategy: Strategy) -> None:
    """Average over the processes what FSDP has not: the gradients of parameters that stay whole."""
    for gradient in gradients:
        if not isinstance(gradient, DTensor):
            gradient.copy_(strategy.reduce(gradient, reduce_op="mean"))


def total_norm(gradients: Sequence[Tensor], strategy: Strategy) -> Float[Tensor, ""]:
    """The norm of gradients of which each process has a part, or which it has as a whole, together."""
    parts, whole = ([gradient for gradient in gradients if isinstance(gradient, DTensor) == which] for which in (True, False))
    if not parts:
        return nn.utils.get_total_norm(whole)
    square = nn.utils.get_total_norm([local(part) for part in parts]).square()
    if whole:
        square = square + nn.utils.get_total_norm(whole).square() / strategy.world_size
    return strategy.reduce(square, reduce_op="sum").sqrt()


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. All processes call this together, for the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, whose memory it shares."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---- how processes end


class ProcessShutdown(Callback):
    """Ends all processes of a run when the first one ends, however it ends.

    Lightning would communicate within its handler of SIGTERM, and wait for ever for a busy process; it would also kill this one
    some seconds after another has failed. And Python runs no handler of a signal while it waits for another process: after a
    second signal, and SHUTDOWN_SECONDS, a thread ends everything.
    """

    def __init__(self) -> None:
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if trainer.is_global_zero:
            _watch_signals(trainer)
        else:  # The first process decides, so this one ignores signals; it must not outlive it.
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        signal.set_wakeup_fd(-1)  # the first process is alone from now on

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        others = list(started_by_lightning(trainer))
        started_by_lightning(trainer).clear()  # Lightning watches them
        for number, process in enumerate(others, start=1):
            if isinstance(exception, Exception) and process.poll() is not None:
                print(f"process {number} ended first, with exit code {process.returncode}", file=sys.stderr)
            process.kill()


def started_by_lightning(trainer: Trainer) -> list[Any]:
    """Lightning's own list of the further processes; it is empty where torchrun or srun started them, which end them, too."""
    launcher = trainer.strategy.launcher
    return [] if launcher is None else launcher.procs


def _watch_signals(trainer: Trainer) -> None:
    received, descriptor = os.pipe()
    os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def end() -> None:
        numbers: list[int] = []
        while len(numbers) < 2:
            numbers += [number for number in os.read(received, 1) if number in (signal.SIGINT, signal.SIGTERM)]
        time.sleep(SHUTDOWN_SECONDS)
        os.write(2, b"\nthe other processes do not answer: stopped at once\n")
        for process in started_by_lightning(trainer):
            process.kill()
        os._exit(128 + numbers[-1])

    threading.Thread(target=end, daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
