"""What all benchmarks share: their arguments, their tables and their JSON file.

No torch at the top: processes that collect demonstrations import the benchmark that started them, and this with it.
"""

import json
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vla_mini.machine import describe_machine


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
