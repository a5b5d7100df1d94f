"""What all benchmarks share: their arguments, what they say of the machine, its matrix-product rate, and their JSON file.

No torch at the top: processes that collect demonstrations import the benchmark that started them, and this with it.
"""

import json
import platform
import sys
import time
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vla_mini.pages.versions import num_cores, processor

# Sides of the square matrices that are tried. Which one fills the cores best differs from machine to machine.
SIDES = (512, 1024, 2048)


def read_arguments(**defaults: Any) -> dict[str, Any]:
    """`key=value` from the command line over `defaults`, each of its default's type; lists as `[0,1,2]`.

    Where `others` is among the defaults it receives, as they stand, all arguments that are not: those of scripts/train.py.
    """
    arguments = dict(defaults)
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        default = defaults.get(key)
        if key in defaults and key != "others":
            try:
                arguments[key] = json.loads(value) if isinstance(default, list) else type(default)(value)
            except ValueError:
                raise SystemExit(f"{argument}: {key} is given as in {key}={default}") from None
        elif "others" in defaults:
            arguments["others"] = [*arguments["others"], argument]
        else:
            near = get_close_matches(key, defaults, n=1) or [", ".join(defaults)]
            raise SystemExit(f"{argument}: there is no such argument; did you mean {near[0]}?")
    return arguments


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads and versions, for the record."""
    import torch

    import vla_mini

    libraries = ("torch", "lightning", "numpy", "pyarrow")
    return {
        "processor": processor(),
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


def save(figures: dict[str, Any], output: str) -> None:
    """Write the figures, with the machine beside them, as JSON, and print where."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe_machine()} | figures, indent=2) + "\n")
    print(path)


def print_table(rows: list[tuple[Any, ...]], *, header: tuple[str, ...]) -> None:
    """Aligned columns: the first to the left, figures to the right."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        others = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *others]).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)
