"""Checks of the machine: are the packages those that are needed, are the cores used, is there room on the disk."""

import platform
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from vla_mini.doctor.finding import Finding
from vla_mini.machine import num_cores
from vla_mini.training.precision import choose_precision

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
SHOWN = ("python", "torch", "lightning", "transformers", "numpy")
GIGABYTE = 2**30
# Of a run's weights, as a checkpoint keeps them: the weights, two moments of each, and the saved policy.
COPIES = 4


def packages(project: Path = PROJECT) -> Finding:
    """Are Python and the packages of the versions that pyproject.toml asks for?"""
    asked = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(f"python{asked['requires-python']}"), *map(Requirement, asked["dependencies"])]
    wrong = [
        f"{requirement.name} {found} ({requirement.specifier} wanted)"
        for requirement in wanted
        if not requirement.specifier.contains(found := _version(requirement.name), prereleases=True)
    ]
    measured = ", ".join(wrong or [f"{package} {_version(package)}" for package in SHOWN])
    advice = "pip install -e . -c constraints.txt"
    return Finding("packages", "fail" if wrong else "pass", measured, "as pyproject.toml asks", advice)


def cores(*, precision: str, accelerator: str) -> Finding:
    """Does torch use the cores there are, and a precision that the hardware multiplies natively?"""
    name, threads, available = "cores", torch.get_num_threads(), num_cores()
    native = choose_precision("auto", accelerator=accelerator) == "bf16-mixed"
    chosen = choose_precision(precision, accelerator=accelerator)
    measured = f"{threads} threads on {available} cores, {chosen}, bf16 {'native' if native else 'not native'}"
    expected = "as many threads as cores; bf16 only where it is native"
    if "bf16" in chosen and not native:
        return Finding(name, "warn", measured, expected, "say trainer.precision=auto: emulated bf16 is slower than fp32")
    if threads > available:
        return Finding(name, "warn", measured, expected, f"set OMP_NUM_THREADS={available}: threads that wait cost most")
    if 2 * threads < available and not torch.cuda.is_available():
        return Finding(name, "warn", measured, expected, "unset OMP_NUM_THREADS, so that all cores work")
    return Finding(name, "pass", measured, expected)


def disk(place: Path, *, num_parameters: int, free_bytes: int | None = None) -> Finding:
    """Is there room at `place` for checkpoints and policy? `free_bytes` instead of what is free there, for a test."""
    existing = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    needed = COPIES * 4 * num_parameters
    measured = f"{free / GIGABYTE:.1f} GB free in {existing}"
    expected = f"{max(1.0, 5 * needed / GIGABYTE):.1f} GB"
    status = "fail" if free < needed else "warn" if free < max(GIGABYTE, 5 * needed) else "pass"
    advice = "make room, or put the run elsewhere by hydra.run.dir=DIR"
    return Finding("disk", status, measured, expected, advice, free / GIGABYTE)


def _version(package: str) -> str:
    """The version that is installed; "0" where there is none, which no requirement allows."""
    try:
        return platform.python_version() if package == "python" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return "0"
