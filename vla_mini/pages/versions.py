"""What a page was made with: the machine and the packages, as lines of text."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("vla-mini", "torch", "lightning", "transformers", "gymnasium", "numpy")


def versions() -> str:
    found = {"python": platform.python_version(), "platform": platform.platform(), "cores": str(num_cores())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())


def machine() -> str:
    """What computes here, in a few words: `2 cores of AMD EPYC`, and the accelerator where there is one."""
    import torch

    accelerator = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([f"{num_cores()} cores of {processor()}", *accelerator])


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's model, where Linux tells; else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
