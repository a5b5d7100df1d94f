"""Checks of the machine: versions of the packages, cores and precision, space on the disk, speed of training."""

import copy
import itertools
import os
import platform
import shutil
import time
from importlib.metadata import metadata
from pathlib import Path
from statistics import median

import torch
from packaging.requirements import Requirement
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from vla_mini.data.chunks import ActionChunkDataset, BatchLoader
from vla_mini.doctor.finding import Finding
from vla_mini.doctor.learning import Steps
from vla_mini.policy import Policy
from vla_mini.settings import TrainSettings
from vla_mini.training.trainer import choose_precision
from vla_mini.utils.machine import matrix_product_rate, num_cores, version

REPORTED = ("python", "torch", "lightning", "transformers", "numpy")
GIGABYTE = 2**30
CHECKPOINT_COPIES = 4  # of the weights: a checkpoint's own, two moments of the optimizer, and the saved policy
MIN_RATE = 0.02  # share of the machine's matrix-product rate
MAX_LOADING = 0.25  # share of the time of a step


def packages(distribution: str = "vla-mini") -> Finding:
    """Do the versions of Python and the packages fulfil what pyproject.toml requires?"""
    content = metadata(distribution)
    every = [Requirement(f"python{content['Requires-Python']}"), *map(Requirement, content.get_all("Requires-Dist", []))]
    required = [each for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]
    installed = {name: version(name) for name in (*REPORTED, *(requirement.name for requirement in required))}
    installed["python"] = platform.python_version()
    wrong = [
        f"{each.name} {installed[each.name] or 'missing'} ({each.specifier} required)"
        for each in required
        if not each.specifier.contains(installed[each.name] or "0", prereleases=True)
    ]
    measured = ", ".join(wrong or [f"{name} {installed[name]}" for name in REPORTED])
    status = "fail" if wrong else "pass"
    return Finding(status, measured, "what pyproject.toml requires", "pip install -e . -c constraints.txt")


def cores(*, precision: str, accelerator: str) -> Finding:
    """Does torch use all cores, and a precision that the hardware computes natively?"""
    threads, available = torch.get_num_threads(), num_cores()
    native = choose_precision("auto", accelerator=accelerator) == "bf16-mixed"
    chosen = choose_precision(precision, accelerator=accelerator)
    advice = ""
    if "bf16" in chosen and not native:
        advice = "set trainer.precision=auto: emulated bf16 is slower than fp32"
    elif threads > available:
        advice = f"set OMP_NUM_THREADS={available}: more threads than cores wait for one another"
    elif 2 * threads < available and not torch.cuda.is_available():
        advice = "unset OMP_NUM_THREADS, so that all cores are used"
    measured = f"{threads} threads on {available} cores, {chosen}, bf16 {'native' if native else 'not native'}"
    return Finding("warn" if advice else "pass", measured, "as many threads as cores; bf16 only where it is native", advice)


def disk(folder: Path, *, num_parameters: int) -> Finding:
    """Is there space at `folder` for checkpoints and policy?"""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    needed = CHECKPOINT_COPIES * 4 * num_parameters
    wanted = max(GIGABYTE, 5 * needed)
    status = "fail" if free < needed else "warn" if free < wanted else "pass"
    advice = "free some space, or choose another folder with hydra.run.dir=DIR"
    measured = f"{free / GIGABYTE:.1f} GB free in {existing}"
    return Finding(status, measured, f"{wanted / GIGABYTE:.1f} GB", advice, free / GIGABYTE)


def speed(policy: Policy, dataset: ActionChunkDataset, settings: TrainSettings, *, seconds: float = 2.0) -> Finding:
    """How many samples a second are trained, at which share of the machine's rate, and how long does loading take?"""
    batch_size = min(settings.data.batch_size, len(dataset))
    batches = itertools.chain.from_iterable(itertools.repeat(BatchLoader(dataset, batch_size=batch_size, seed=0)))
    training, times = Steps(copy.deepcopy(policy), settings), []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        batch = tree_map(lambda tensor: tensor.to(policy.device), next(batches))
        loaded = time.perf_counter()
        training.step(batch).item()  # waits for the device
        times.append((loaded - start, time.perf_counter() - loaded))
    with FlopCounterMode(display=False) as counter:
        training.step(batch)
    loading, step = (median(column) for column in zip(*times[1:], strict=True))
    total = loading + step
    rate = matrix_product_rate("bfloat16" if training.bf16 else "float32", seconds=0.3, device=policy.device.type)
    share = counter.get_total_flops() / total / 1e9 / rate
    duration = settings.trainer.max_steps * settings.trainer.accumulate_grad_batches * total
    shown = f"{duration:.0f} s" if duration < 120 else f"{duration / 60:,.0f} min"
    measured = f"{batch_size / total:,.0f} samples/s, {share:.0%} of {rate:,.0f} GFLOP/s; {shown} to train"
    expected = f"above {MIN_RATE:.0%} of the machine's rate, and loading below {MAX_LOADING:.0%} of a step"
    if loading > MAX_LOADING * step:
        measured += f"; loading takes {loading / total:.0%} of it"
        return Finding("warn", measured, expected, "is the disk slow, or too little memory free to cache the frames?", share)
    load = f" (load {os.getloadavg()[0]:.1f})" if os.name == "posix" else ""
    advice = f"larger batches use the machine better; is there other work on it{load}?"
    return Finding("warn" if share < MIN_RATE else "pass", measured, expected, advice, share)
