"""What a machine is and what it can do: its description for the record, and its matrix-product rate. No torch at the top."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Sides of the square matrices that are tried. Which one fills the cores best differs from machine to machine.
SIDES = (512, 1024, 2048)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and versions, for the record."""
    import torch

    import vla_mini

    libraries = ("torch", "lightning", "numpy", "pyarrow")
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "vla_mini": vla_mini.__version__,
        **{library: version(library) for library in libraries},
    }


def matrix_product_rate(dtype: str, *, seconds: float = 1.0, device: str = "cpu") -> float:
    """GFLOP/s of the product of two square matrices: the best single product of all that fit into `seconds`."""
    import torch

    best, sides = 0.0, (*SIDES, 8192) if device != "cpu" else SIDES
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        timed_product(a, b)  # the first one also sets up
        end = time.perf_counter() + seconds / len(sides)
        while time.perf_counter() < end:
            best = max(best, 2 * side**3 / timed_product(a, b) / 1e9)
    return best


def timed_product(a: Any, b: Any) -> float:
    import torch

    start = time.perf_counter()
    a @ b
    if a.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def matrix_product_rates(*, seconds: float = 1.0, device: str = "cpu") -> dict[str, float]:
    """GFLOP/s in both of the precisions that training uses."""
    return {dtype: matrix_product_rate(dtype, seconds=seconds, device=device) for dtype in ("float32", "bfloat16")}


def num_cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux says
        return os.cpu_count() or 1


def _processor() -> str:
    """The processor's model, where Linux tells; else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
