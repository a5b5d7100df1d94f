"""What evaluation/open_loop.py found -> files in a run's folder, and from these alone the figures of its report.

evaluation/open_loop.json                      all numbers; "looks" names the images
evaluation/open_loop/frame_0012_0_image.png    frame 12 of an episode as the policy gets it, of its first camera; beside it
                                               frame_0012_0_attention.png and frame_0012_0_sensitivity.png
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vla_mini.evaluation.curves import Curve
from vla_mini.evaluation.looks import Look
from vla_mini.evaluation.metrics import words
from vla_mini.evaluation.open_loop_texts import WORDS, verdict_on_words
from vla_mini.reports.drawing.charts import CYCLE, STYLE, Panel, inline_svg, line_plot
from vla_mini.reports.drawing.images import Cell, heat_map, image_grid
from vla_mini.utils.files import read_json, write_json

MOST_JOINTS = 12  # in the drawing of errors by joint; the table has all
COLOURS = dict(zip(("policy", "mean_action", "hold", "nearest_frame"), CYCLE, strict=False))
MAPS = {
    "image": "What the policy gets",
    "attention": "Attention: bright where the trunk's queries attend more than they would on an even share",
    "sensitivity": "Sensitivity: bright where a pixel, if it changed, would change the predicted actions most",
}


def write_open_loop(folder: Path, metrics: Mapping[str, Any], looks: Sequence[Look], *, cameras: Sequence[str]) -> None:
    """Write open_loop.json and the images beside it into `folder`, which is made if need be."""
    images = folder / "open_loop"
    images.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, list[str]]] = {camera: {} for camera in cameras}
    for look in looks:
        for number, camera in enumerate(cameras):
            plain, maps = look.images[number], {"attention": _above_even(look.attention), "sensitivity": look.sensitivity}
            heats = {kind: heat_map(plain, heat[number]) for kind, heat in maps.items() if heat is not None}
            for kind, pixels in ({"image": plain} | heats).items():
                file = f"frame_{look.frame:04d}_{number}_{kind}.png"
                Image.fromarray(pixels).save(images / file)
                rows[camera].setdefault(kind, []).append(file)
    shown = {"episode": looks[0].episode, "frames": [look.frame for look in looks], "cameras": rows}
    write_json(folder / "open_loop.json", {**metrics, "looks": shown})


def _above_even(attention: np.ndarray | None) -> np.ndarray | None:
    """What an attention map (k, h, w) has beyond an even share for all its pixels."""
    return None if attention is None else np.maximum(attention - attention.mean(), 0)


def read_open_loop(folder: Path) -> dict[str, Any]:
    """The content of open_loop.json in `folder`, with "figures" for the page; empty where there is none."""
    path = folder / "open_loop.json"
    if not path.is_file():
        return {}
    metrics = read_json(path)
    looks, fps = metrics["looks"], metrics["fps"]
    notes = [f"frame {frame}, {frame / fps:.1f} s" for frame in looks["frames"]]
    figures = {
        "traces": [_trace_plot(f"trace_{number}", trace, metrics) for number, trace in enumerate(metrics["traces"])],
        "errors": [
            (_step_plot(metrics), "Error by step of the chunk", "standard deviations"),
            (_joint_plot(metrics), "Error by joint", _which_joints(metrics)),
        ],
        "looks": [
            (camera, [(MAPS[kind], _look_grid(f"{camera}_{kind}", folder, files, notes)) for kind, files in kinds.items()])
            for camera, kinds in looks["cameras"].items()
        ],
    }
    texts = {"hold": _describe_hold(metrics), "words_verdict": verdict_on_words(metrics), "words_names": WORDS}
    return metrics | texts | {"figures": figures}


def _describe_hold(metrics: Mapping[str, Any]) -> str:
    """What the baseline repeats over the whole chunk."""
    kinds = [joint["hold"] for joint in metrics["joints"].values()]
    state, action = "the state at the start of the chunk, where a state has the joint's name", "the last recorded action"
    return action if "state" not in kinds else state.partition(",")[0] if set(kinds) == {"state"} else f"{state}, else {action}"


def _look_grid(name: str, folder: Path, files: Sequence[str], notes: Sequence[str]) -> Markup:
    pictures = [np.asarray(Image.open(folder / "open_loop" / file)) for file in files]
    has_notes = name.endswith("_image")
    cells = [Cell(picture, note=note if has_notes else "") for picture, note in zip(pictures, notes, strict=True)]
    return image_grid(name, cells, columns=max(4, len(cells)))


@style.context(STYLE)
def _trace_plot(name: str, trace: Mapping[str, Any], metrics: Mapping[str, Any]) -> Markup:
    """Recorded and predicted actions of each joint over time; a new chunk begins at each dot."""
    joints, horizon = trace["joints"], metrics["horizon"]
    columns = 2 if len(joints) <= 4 else 4
    rows = -(-len(joints) // columns)
    figure = Figure(figsize=(9, (1.9 if columns == 2 else 1.45) * rows + 0.2))
    seconds = np.arange(trace["num_frames"]) / metrics["fps"]
    for position, (joint, values) in enumerate(joints.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.set_title(shorten(joint), fontsize=8.6, color="page:quiet")
        axes.plot(seconds, values["recorded"], color="page:quiet", alpha=0.55, linewidth=2.4)
        predicted = np.array(values["predicted"])
        for start in range(0, len(predicted), horizon):
            chunk = slice(start, start + horizon)
            axes.plot(seconds[chunk], predicted[chunk], color="page:blue", linewidth=1.1)
        axes.plot(seconds[::horizon], predicted[::horizon], "o", color="page:blue", markersize=1.8)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7.6, labelbottom=position > len(joints) - columns)
        if position > len(joints) - columns:
            axes.set_xlabel("seconds", fontsize=7.6)
    return inline_svg(figure, name=name)


def _step_plot(metrics: Mapping[str, Any]) -> Markup:
    curves = {}
    for name in COLOURS:
        steps = [(step, value) for step, value in enumerate(metrics["errors"][name]["by_step"]["std"], 1) if value is not None]
        curves[words(name)] = [Curve(*zip(*steps, strict=True))]
    return line_plot("error_by_step", [Panel("", "step of the chunk", curves, "zero")])


@style.context([STYLE, {"axes.grid.axis": "x"}])
def _joint_plot(metrics: Mapping[str, Any]) -> Markup:
    """A bar for the policy's error in each joint, the largest at the top, and a dot for each baseline's."""
    shown = _shown_joints(metrics)
    places = np.arange(len(shown))
    figure = Figure(figsize=(4.4, 2.8))
    axes = figure.subplots()
    for name, colour in COLOURS.items():
        errors = [metrics["errors"][name]["by_joint"]["std"][joint] for joint in shown]
        if name == "policy":
            axes.barh(places, errors, height=0.55, color=f"page:{colour}", alpha=0.6)
        else:
            axes.plot(errors, places, "o", color=f"page:{colour}", markersize=3.4)
    axes.set_yticks(places, [shorten(joint) for joint in shown], fontsize=8)
    axes.set(ylim=(max(len(shown), MOST_JOINTS // 2) - 0.4, -0.6), xlabel="standard deviations")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return inline_svg(figure, name="error_by_joint")


def _shown_joints(metrics: Mapping[str, Any]) -> list[str]:
    """Those with the largest errors of the policy, the largest first, without those that stand still in the training split."""
    errors = _known_errors(metrics)
    return sorted(errors, key=errors.__getitem__, reverse=True)[:MOST_JOINTS]


def _known_errors(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: error for name, error in metrics["errors"]["policy"]["by_joint"]["std"].items() if error is not None}


def _which_joints(metrics: Mapping[str, Any]) -> str:
    shown, moving, number = len(_shown_joints(metrics)), len(_known_errors(metrics)), len(metrics["joints"])
    if not moving:
        return "no joint moves in the training split"
    moves = f" that move, of {number}" if moving < number else ""
    every = f"all {shown}{moves}" if moves else "all joints"
    return f"the {shown} largest of {moving}{moves}" if shown < moving else every


def shorten(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
