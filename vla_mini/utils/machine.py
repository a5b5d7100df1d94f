"""What a machine is and what it can do: its description, the versions of the packages, and its matrix-product rate.

No torch at the top: light modules ask for the number of cores.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from timeit import Timer
from typing import Any

from vla_mini.commands import IN_CHECKOUT

PACKAGES = ("vla-mini", "torch", "torchvision", "lightning", "transformers", "tokenizers", "gymnasium", "numpy", "pyarrow")
# Sides of the square matrices that are tried. Which one fills the cores best differs from machine to machine.
SIDES = (512, 1024, 2048)


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, torch's threads, GPUs by name, and the operating system."""
    import torch

    return {
        "processor": _processor(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """The versions of Python and of PACKAGES, None for one that is not installed; and how MuJoCo draws, where it does."""
    found = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    return found | ({"MUJOCO_GL": os.environ["MUJOCO_GL"]} if "MUJOCO_GL" in os.environ else {})


def version(package: str) -> str | None:
    """The installed version of `package`, None where there is none."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def machine_text() -> str:
    """The machine and the versions as aligned lines of text, for a page."""
    described = describe_machine()
    lines = described | {"gpus": ", ".join(described["gpus"]) or "none"} | versions()
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {'not installed' if value is None else value}" for name, value in lines.items())


def git_state() -> dict[str, Any]:
    """{"git_commit": of this checkout, or None without one, "git_changes": whether tracked files differ from it}."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_changes": bool(changes)}


def num_cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Only Linux tells which ones.
        return os.cpu_count() or 1


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether a device of this type ("cpu", "cuda") multiplies bf16 natively. Else float32 is faster: on CPUs 100 times."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


def matrix_product_rate(dtype: str, *, seconds: float = 1.0, device: str = "cpu") -> float:
    """GFLOP/s of the product of two square matrices: the best single product of all that fit into `seconds`."""
    import torch

    statement = "a @ b" if device == "cpu" else "a @ b; torch.accelerator.synchronize()"
    best, sides = 0.0, SIDES if device == "cpu" else (*SIDES, 8192)
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        product = Timer(statement, globals={"a": a, "b": b, "torch": torch})
        first = product.timeit(number=1)  # also sets up
        end = time.perf_counter() + seconds / len(sides)
        while time.perf_counter() < end:
            best = max(best, 2 * side**3 / product.timeit(number=1) / 1e9)
        if first > seconds:  # the next would take eight times as long: bf16 on a CPU that only emulates it
            break
    return best


def _processor() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    with suppress(OSError):
        if model := re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1]
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """The output of a git command in this checkout; None where there is no checkout or no git."""
    if not IN_CHECKOUT:  # a virtual environment may be within another repository
        return None
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
