"""What the modules of autograd/ found in a policy -> gradients.json, gradients.html, and each figure as a file in figures/.

Findings ──describe──▶ gradients.json ──templates/gradients.html.j2──▶ gradients.html
       └──figures──▶ scene_0, scene_1 ..., flow, norms, samples, graph, jacobian
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from markupsafe import Markup
from torch import Tensor

from vla_mini.autograd.flow import EXPLODING, LEARNING_RATE, VANISHING, GradientFlow, Layer
from vla_mini.autograd.graph import Graph
from vla_mini.autograd.inference import Cost
from vla_mini.autograd.jacobian import Jacobian
from vla_mini.autograd.per_sample import PerSample
from vla_mini.autograd.saliency import Saliency
from vla_mini.policy import Policy
from vla_mini.reports.drawing.charts import flow_plot, matrix, norms_histogram
from vla_mini.reports.drawing.graph import graph_drawing
from vla_mini.reports.drawing.images import Cell, heat_map, image_grid
from vla_mini.reports.page import number, standalone, write_page
from vla_mini.types import Batch
from vla_mini.utils import files
from vla_mini.utils.machine import machine_text

SCENES_SHOWN, SAMPLES_SHOWN = 3, 6
INPUTS = {"vision": "pixels", "language": "words", "state": "state values"}  # component -> what enters it first
MAX_LINES = 6  # about the modules within a component, in the drawing of the graph
WHY = (
    f"Flagged as vanishing where a plain step at learning rate {LEARNING_RATE:g} would change the weights by less than 2⁻²⁴ of "
    "their norm, the precision of float32; as exploding where it would change them by as much as their norm."
)


class Findings(NamedTuple):
    """What the functions of these names in autograd/ return for one policy."""

    saliencies: list[Saliency]
    flow: tuple[dict[str, GradientFlow], list[Layer]]
    per_sample: PerSample
    graph: Graph
    jacobian: Jacobian
    modes: tuple[dict[str, Cost], bool]


def describe(findings: Findings, policy: Policy) -> dict[str, Any]:
    """What gradients.json holds of them."""
    components, layers = findings.flow
    modes, equal = findings.modes
    above = [one.on_target > one.on_others for one in findings.saliencies if one.on_target is not None]
    return {
        "env": policy.source.get("env"),
        "num_parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "samples": len(findings.per_sample.norms),
        "thresholds": {"vanishing": VANISHING, "exploding": EXPLODING, "learning_rate": LEARNING_RATE, "why": WHY},
        "components": {name: flow._asdict() for name, flow in components.items()},
        "depth": [{"name": layer.name, **layer.flow._asdict(), "arriving": layer.output_grad_norm} for layer in layers],
        "num_pairs": len(above),
        "on_target_share": sum(above) / len(above) if above else None,
        "sensitivity": [
            {
                "scene": one.scene.episode,
                "instruction": one.scene.observation["instruction"],
                "on_target": one.on_target,
                "on_others": one.on_others,
                "objects": [{"named": named, "sensitivity": mean} for named, mean in one.objects],
                "words": one.words,
                "state": dict(one.state),
            }
            for one in findings.saliencies
        ],
        "jacobian": _describe_jacobian(findings.jacobian, policy),
        "per_sample": findings.per_sample._asdict(),
        "inference": {name: cost._asdict() for name, cost in modes.items()} | {"equal_outputs": equal},
        "graph": findings.graph._asdict(),
    }


def _describe_jacobian(result: Jacobian, policy: Policy) -> dict[str, Any]:
    features, state_size = policy.features, policy.history * policy.features.state_size
    rows, columns = result.matrix.shape
    views = [f"{camera}, {age} before" if age else camera for age in range(policy.history) for camera in features.cameras]
    colours = [f"{view}, {colour}" if len(views) > 1 else colour for view in views for colour in ("red", "green", "blue")]
    pixels = (columns - state_size) // len(colours)  # of the coarse image
    return {
        "rows": rows,
        "columns": columns,
        **{name: value for name, value in result._asdict().items() if name != "matrix"},
        "full_columns": state_size + len(colours) * math.prod(features.image_size),
        "row_blocks": {f"action {step}": features.action_size for step in range(rows // features.action_size)},
        "column_blocks": {"state": state_size} | dict.fromkeys(colours, pixels),
    }


def write_report(
    folder: Path, findings: Findings, results: Mapping[str, Any], *, batch: Batch, instructions: Sequence[str]
) -> Path:
    """Write gradients.json, gradients.html and figures/ into `folder`; returns the path of the page.

    - results: what `describe` returned, together with "policy" (its name), "seed" and "seconds"
    - batch, instructions: the samples of `findings.per_sample`, and the instruction of each
    """
    results = json.loads(json.dumps(results), parse_constant=lambda _: None)  # JSON has no NaN and no infinity
    figures = _draw_figures(findings, results["jacobian"], batch.observation.images, instructions)
    (folder / "figures").mkdir()
    for name, svg in figures.items():
        files.write_text(folder / "figures" / f"{name}.svg", standalone(svg))
    files.write_json(folder / "gradients.json", results, allow_nan=False)
    return write_page(
        folder / "gradients.html",
        "gradients.html.j2",
        **results,
        title=f"gradients · {results['policy']}",
        num_flagged=sum(layer["vanishing"] or layer["exploding"] for layer in results["depth"]),
        median_norm=median(findings.per_sample.norms),
        largest_norm=max(findings.per_sample.norms),
        figures=figures,
        versions=machine_text(),
    )


def _draw_figures(
    findings: Findings, blocks: Mapping[str, Any], images: Tensor, instructions: Sequence[str]
) -> dict[str, Markup]:
    """Name -> figure, as inline SVG; one for each of the first scenes, with all its instructions side by side."""
    scenes: dict[str, list[Cell]] = {}
    for one in findings.saliencies:
        if one.scene.episode < SCENES_SHOWN:
            cells = scenes.setdefault(f"scene_{one.scene.episode}", [Cell(one.image, note="The camera image.")])
            cells.append(_saliency_cell(one))
    norms = findings.per_sample.norms
    largest = sorted(range(len(norms)), key=lambda index: -norms[index])[:SAMPLES_SHOWN]
    pictures = images[largest, 0].permute(0, 2, 3, 1).numpy(force=True)  # of the first camera
    samples = [
        Cell(picture, title=instructions[index], note=f"norm {number(norms[index])}")
        for index, picture in zip(largest, pictures, strict=True)
    ]
    jacobian = findings.jacobian.matrix.numpy(force=True)
    return {
        **{name: image_grid(name, cells, columns=3) for name, cells in scenes.items()},
        "flow": flow_plot("flow", {layer.name: layer.flow.ratio for layer in findings.flow[1]}),
        "norms": norms_histogram("norms", norms, mean_norm=findings.per_sample.mean_norm),
        "samples": image_grid("samples", samples, columns=SAMPLES_SHOWN),
        "graph": _graph_figure(findings.graph),
        "jacobian": matrix("jacobian", jacobian, rows=blocks["row_blocks"], columns=blocks["column_blocks"]),
    }


def _saliency_cell(one: Saliency) -> Cell:
    """The saliency with one instruction, and how much more the actions depend on a pixel of the named object than on others."""
    heat = heat_map(one.image, one.pixels.numpy(force=True))
    title = one.scene.observation["instruction"] or "(no instruction)"
    bars = {"blue": one.words, "amber": one.state}
    if one.on_target is None:
        return Cell(heat, title=title, bars=bars)
    means = [one.on_others, *(mean for named, mean in one.objects if not named)]
    ratios = [number(one.on_target / mean) if one.on_target < 1e4 * mean else "over 10,000" for mean in means]
    each = f" (one by one: {', '.join(ratios[1:])})" if len(ratios) > 2 else ""
    note = f"a pixel of the named object has {ratios[0]} × the effect of one of the others{each}"
    return Cell(heat, one.scene.masks[one.scene.target], title, note, bars)


def _graph_figure(graph: Graph) -> Markup:
    inputs = {component: source for component, source in INPUTS.items() if component in graph.components}
    boxes = dict.fromkeys(inputs.values(), ()) | {name: _box_lines(graph, name) for name in graph.components}
    edges = [*((source, component) for component, source in inputs.items()), *graph.edges]
    return graph_drawing("graph", boxes, edges)


def _box_lines(graph: Graph, component: str) -> list[str]:
    """A component's number of nodes, and those of the modules within it, two levels deep; a last line counts those left out."""
    inside: Counter[str] = Counter()
    for name, count in graph.modules.items():
        if match := re.match(rf"{re.escape(component)}\.([^.]+(\.\d+)?)", name):
            inside[match[1]] += count
    lines = [f"{name} · {count}" for name, count in inside.items()]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [f"{len(lines) - MAX_LINES + 1} more"]
    return [f"{graph.components[component]} nodes", *lines]
