"""What all benchmarks share: their arguments, their tables and their JSON file.

No torch at the top, since the processes that collect demonstrations import the benchmark that started them.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_mini.utils import files
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.machine import describe_machine, matrix_product_rate, versions


def read_arguments(**defaults: Any) -> dict[str, Any]:
    """`key=value` from the command line over `defaults`, each of its default's type; lists as `[0,1,2]`.

    Where `others` is among the defaults, all arguments that are not are collected there: those of scripts/train.py.
    """
    arguments = dict(defaults)
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        default = defaults.get(key)
        if key in defaults and key != "others":
            try:
                arguments[key] = json.loads(value) if isinstance(default, list) else type(default)(value)
            except ValueError:
                raise SystemExit(f"{argument}: the value has another type than in {key}={default}") from None
        elif "others" in defaults:
            arguments["others"] = [*arguments["others"], argument]
        else:
            raise SystemExit(f"{argument}: there is no such argument; {did_you_mean(key, defaults)}")
    return arguments


def matrix_product_rates(*, device: str = "cpu") -> dict[str, float]:
    """GFLOP/s in both of the precisions that training uses."""
    return {dtype: matrix_product_rate(dtype, device=device) for dtype in ("float32", "bfloat16")}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def save(figures: dict[str, Any], output: str) -> None:
    """Write the figures and a description of the machine to the JSON file `output`, and print its path."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"machine": describe_machine() | versions()} | figures)
    print(path)


def print_table(rows: list[tuple[Any, ...]], *, header: tuple[str, ...]) -> None:
    """Print aligned columns: the first to the left, figures to the right."""
    cells = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        others = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *others]).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)
