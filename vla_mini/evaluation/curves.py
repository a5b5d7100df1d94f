"""metrics.csv of a run's folder -> its curves: what was logged under each name, over optimizer steps."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Curve(NamedTuple):
    """The values that were logged under one name."""

    steps: Sequence[float]  # optimizer steps that were completed; or seconds, where a plot says so
    values: Sequence[float]


def read_curves(path: Path) -> dict[str, Curve]:
    """Name -> curve, of all columns of a metrics.csv; empty where there is no such file.

    Rows are sparse: most cells are empty. Values that are not finite are left out.
    """
    if not path.is_file():
        return {}
    points: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name != "step" and cell and row.get("step") and math.isfinite(float(cell)):
                    points.setdefault(name, []).append((float(row["step"]) + 1, float(cell)))  # Lightning counts from 0.
    return {name: Curve(*zip(*sorted(pairs), strict=True)) for name, pairs in points.items()}
