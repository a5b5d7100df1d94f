"""A dataset and what was found in it -> browse.json and browse.html: facts, findings, tasks, film strips, dimensions."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from vla_mini.data.frames import StreamedFrames
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding
from vla_mini.doctor.images import ImageScan
from vla_mini.doctor.recordings import spans, vectors
from vla_mini.reports.drawing.charts import Dimension, dimension_grid
from vla_mini.reports.page import data_uri, write_page
from vla_mini.utils import files
from vla_mini.utils.machine import machine_text

STILLS = 8  # of a film strip
THUMBNAIL_HEIGHT = 96
CURVES = 5  # episodes whose states and actions are drawn over time
TASKS_SHOWN = 8
JPEG_QUALITY = 85
BLUE, AMBER = "blue", "amber"  # of states and of actions


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of at most THUMBNAIL_HEIGHT pixels of height, in the proportions of `size`."""
    scale = min(1.0, THUMBNAIL_HEIGHT / size[0])
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def write_report(
    folder: Path,
    root: str,
    data: Demonstrations,
    scan: ImageScan,
    findings: Sequence[Finding],
    *,
    episodes: int,
    started: float,
) -> Path:
    """Write browse.json and browse.html into `folder`; return the page's path.

    - root: as the dataset was named
    - episodes: how many are shown as film strips
    - started: `time.perf_counter()` when reading began
    """
    results = describe(root, data, findings)
    shown = choose_episodes(data, scan, findings, episodes)
    drawn = _spread(shown, CURVES)
    moving, grid = _dimensions(data, drawn)
    strips = [_strip(data, scan, findings, episode) for episode in shown]
    values = {
        "results": results,
        "verdict": _verdict(findings),
        "open": [finding for finding in findings if finding.status in ("fail", "warn")],
        "closed": [finding for finding in findings if finding.status in ("pass", "skip")],
        "strips": strips,
        "grid": grid,
        "num_moving": moving,
        "num_curves": len(drawn),
        "longest": max((strip["seconds"] for strip in strips if strip["position"] in drawn), default=0.0),
        "tasks_shown": TASKS_SHOWN,
        "versions": machine_text(),
    }
    results["seconds"] = round(time.perf_counter() - started, 3)
    files.write_json(folder / "browse.json", json.loads(json.dumps(results), parse_constant=lambda _: None))
    return write_page(folder / "browse.html", "browse.html.j2", title=Path(root).name or root, **values)


def describe(root: str, data: Demonstrations, findings: Sequence[Finding]) -> dict[str, Any]:
    """What browse.json holds, but for the time that it took."""
    assert isinstance(data.frames, StreamedFrames)
    features, frames = data.features, data.episode_ends - data.episode_starts
    each = (data.task_index[data.episode_starts], data.task_index)
    both = [np.bincount(index, minlength=len(data.tasks)).tolist() for index in each]  # of episodes, and of frames
    counts = dict(zip(data.tasks, zip(*both, strict=True), strict=True))
    return {
        "data": root,
        "passed": all(finding.status != "fail" for finding in findings),
        "format": data.version,
        "fps": features.fps,
        "episodes": len(frames),
        "frames": int(frames.sum()),
        "recorded_seconds": round(float(frames.sum() / features.fps), 3),
        "lengths": {"min": int(frames.min()), "median": float(np.median(frames)), "max": int(frames.max())},
        "splits": {name: last - first for name, (first, last) in data.splits.items()},
        "cameras": {
            name: {"feature": part.feature, "kept_as": "video" if part.is_video else "images", "size": list(part.size)}
            for name, part in zip(features.cameras, data.frames.footage, strict=True)
        },
        "tasks": [
            {"task": task, "episodes": one, "frames": all_frames}
            for task, (one, all_frames) in sorted(counts.items(), key=lambda entry: (-entry[1][0], entry[0]))
        ],
        **{
            kind: {
                name: {field: float(values[i]) for field, values in found._asdict().items()} | {"still": bool(found.still[i])}
                for i, name in enumerate(names)
            }
            for kind, names, _, found in vectors(data)
        },
        "notes": list(data.notes),
        "findings": [finding._asdict() for finding in findings],
    }


def choose_episodes(data: Demonstrations, scan: ImageScan, findings: Sequence[Finding], number: int) -> list[int]:
    """Positions of the episodes to show, rising: up to half of them from the findings, the others evenly spread."""
    named = {index for finding in findings if finding.status in ("fail", "warn") for index in finding.episodes}
    flagged = [episode for episode in scan.episodes if int(data.episode_index[episode]) in named]
    flagged = _spread(flagged, -(-number // 2))
    others = [episode for episode in scan.episodes if episode not in flagged]
    return sorted([*flagged, *_spread(others, number - len(flagged))])


def _spread(items: Sequence[int], number: int) -> list[int]:
    places = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[place] for place in places]


def _verdict(findings: Sequence[Finding]) -> str:
    wrong, look = (sum(finding.status == status for finding in findings) for status in ("fail", "warn"))
    if not wrong and not look:
        return "All checks passed."
    counts = [f"{wrong} check{'s' if wrong > 1 else ''} failed"] if wrong else ["No check failed"]
    counts += [f"{look} finding{'s' if look > 1 else ''} should be looked at"] if look else []
    return f"{', and '.join(counts)}."


def _strip(data: Demonstrations, scan: ImageScan, findings: Sequence[Finding], episode: int) -> dict[str, Any]:
    """What the page shows of an episode: its sentence, facts and, by camera, its stills as addresses of JPEGs."""
    start, end = list(spans(data))[episode]
    number, stills = int(data.episode_index[episode]), scan.stills[scan.episodes.index(episode)]
    split = next((name for name, (first, last) in data.splits.items() if first <= episode < last), "no split")
    return {
        "sentence": data.tasks[data.task_index[start]],
        "position": episode,
        "number": number,
        "frames": end - start,
        "seconds": (end - start) / data.features.fps,
        "split": split,
        "found": [f.check for f in findings if f.status in ("fail", "warn") and number in f.episodes],
        "cameras": {
            name: [data_uri(_to_jpeg(still[camera]), "jpeg") for still in stills]
            for camera, name in enumerate(data.features.cameras)
        },
    }


def _to_jpeg(image: np.ndarray) -> bytes:
    """uint8 (c, h, w) -> a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.moveaxis(image, 0, -1)).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _dimensions(data: Demonstrations, episodes: Sequence[int]) -> tuple[int, Markup | None]:
    """The number of dimensions that move, and their plots: values over time in these episodes, and histograms."""
    ranges = [list(spans(data))[episode] for episode in episodes]
    kinds = {kind: dict(_moving(names, values, found)) for kind, names, values, found in vectors(data)}
    plots: dict[str, Dimension] = {}
    for kind, colour in (("state", BLUE), ("action", AMBER)):
        for name, (values, limits, quantiles) in kinds[kind].items():
            curves = [(colour, np.arange(end - start) / data.features.fps, values[start:end]) for start, end in ranges]
            plot, other = Dimension(name, curves, {colour: values}, limits, quantiles), plots.get(name)
            if other and _overlap(other.limits, limits):
                limits = (min(other.limits[0], limits[0]), max(other.limits[1], limits[1]))
                plot = Dimension(name, [*other.curves, *curves], other.samples | plot.samples, limits, quantiles)
            elif other:
                name = f"{name} (action)"
            plots[name] = plot._replace(title=name)
    columns = 2 if len(plots) <= 4 else 3 if len(plots) <= 12 else 4
    total = sum(len(entries) for entries in kinds.values())
    return total, dimension_grid("dimensions", list(plots.values()), columns=columns) if plots else None


def _moving(
    names: Sequence[str], values: np.ndarray, found: Any
) -> Iterator[tuple[str, tuple[np.ndarray, tuple[float, float], tuple[float, float]]]]:
    """Of each dimension that moves its values (n,), their least and greatest, and their quantiles."""
    for i, name in enumerate(names):
        if not found.still[i]:
            limits, quantiles = (float(found.min[i]), float(found.max[i])), (float(found.q01[i]), float(found.q99[i]))
            yield name, (values[:, i], limits, quantiles)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges have at least half of what they cover together in common."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common >= 0.5 * (max(one[1], other[1]) - min(one[0], other[0]))
