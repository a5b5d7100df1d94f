"""What was found out about a policy's gradients -> gradients.json, gradients.html, and each picture as a file of its own."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vla_mini import files
from vla_mini.autograd.flow import EXPLODING, LEARNING_RATE, VANISHING, Flow, Layer
from vla_mini.autograd.graph import Graph
from vla_mini.autograd.inference import Cost
from vla_mini.autograd.jacobian import Jacobian
from vla_mini.autograd.per_sample import PerSample
from vla_mini.autograd.sensitivity import Look
from vla_mini.pages import gradients as pages
from vla_mini.pages.page import picture_file
from vla_mini.policy import Policy
from vla_mini.types import Batch

SCENES_SHOWN, SAMPLES_SHOWN = 3, 6
WHY = (
    f"Flagged as vanishing where a plain step at learning rate {LEARNING_RATE:g} would change the weights by less than "
    "float32 can hold, 2⁻²⁴ of them; as exploding where it would change them by as much as they are."
)


class Findings(NamedTuple):
    """What the modules beside this one find, by their names."""

    looks: list[Look]
    flow: tuple[dict[str, Flow], list[Layer]]
    samples: PerSample
    graph: Graph
    jacobian: Jacobian
    modes: tuple[dict[str, Cost], bool]


def describe(found: Findings, policy: Policy) -> dict[str, Any]:
    """What gradients.json holds of them."""
    components, layers = found.flow
    modes, equal = found.modes
    return {
        "env": policy.source.get("env"),
        "num_parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "samples": len(found.samples.norms),
        "thresholds": {"vanishing": VANISHING, "exploding": EXPLODING, "learning_rate": LEARNING_RATE, "why": WHY},
        "components": {name: flow._asdict() for name, flow in components.items()},
        "depth": [{"name": layer.name, **layer.flow._asdict(), "arriving": layer.arriving} for layer in layers],
        **_on_target(found.looks),
        "sensitivity": [
            {
                "scene": look.scene.episode,
                "instruction": look.scene.observation["instruction"],
                "on_target": look.on_target,
                "on_others": look.on_others,
                "objects": [{"named": named, "sensitivity": mean} for named, mean in look.objects],
                "words": look.words,
                "state": dict(look.state),
            }
            for look in found.looks
        ],
        "jacobian": _describe_jacobian(found.jacobian, policy),
        "per_sample": found.samples._asdict(),
        "inference": {name: cost._asdict() for name, cost in modes.items()} | {"equal_outputs": equal},
        "graph": found.graph._asdict(),
    }


def _on_target(looks: Sequence[Look]) -> dict[str, Any]:
    """In how many of the pairs of a scene and an instruction the named object weighs more than the others."""
    pairs = [(look.on_target, look.on_others) for look in looks if look.on_target is not None]
    above = sum(on_target > on_others for on_target, on_others in pairs)
    return {"num_pairs": len(pairs), "on_target_share": above / len(pairs) if pairs else None}


def _describe_jacobian(result: Jacobian, policy: Policy) -> dict[str, Any]:
    features, state_size = policy.features, policy.history * policy.features.state_size
    rows, columns = result.matrix.shape
    views = [f"{camera}, {age} before" if age else camera for age in range(policy.history) for camera in features.cameras]
    colours = [f"{view}, {colour}" if len(views) > 1 else colour for view in views for colour in ("red", "green", "blue")]
    cells = (columns - state_size) // len(colours)  # of the reduced image
    return {
        "rows": rows,
        "columns": columns,
        **{name: value for name, value in result._asdict().items() if name != "matrix"},
        "full_columns": state_size + len(colours) * math.prod(features.image_size),
        "row_blocks": {f"action {step}": features.action_size for step in range(rows // features.action_size)},
        "column_blocks": {"state": state_size} | dict.fromkeys(colours, cells),
    }


def write_report(
    folder: Path, results: Mapping[str, Any], found: Findings, *, batch: Batch, instructions: Sequence[str]
) -> Path:
    """Writes gradients.json, the page and figures/ into `folder`; the page's path.

    - results: what `describe` said, and what else the page is to name
    - batch, instructions: the samples that were looked at, and what was said in each
    """
    results = _finite(results)
    pictures = pages.figures(
        results,
        looks=[_shown(look) for look in found.looks if look.scene.episode < SCENES_SHOWN],
        samples=_largest(found.samples.norms, batch, instructions),
        jacobian=found.jacobian.matrix.numpy(force=True),
    )
    (folder / "figures").mkdir()
    for name, svg in pictures.items():
        files.write_text(folder / "figures" / f"{name}.svg", picture_file(svg))
    files.write_text(folder / "gradients.html", pages.gradients_page(results, pictures))
    files.write_text(folder / "gradients.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    return folder / "gradients.html"


def _shown(look: Look) -> pages.Look:
    scene = look.scene
    return pages.Look(
        scene=scene.episode,
        instruction=scene.observation["instruction"],
        image=look.image,
        heat=look.pixels.numpy(force=True),
        target=None if look.on_target is None else scene.masks[scene.target],
        words=look.words,
        state=look.state,
        on_target=look.on_target,
        on_others=look.on_others,
        on_each_other=[mean for named, mean in look.objects if not named],
    )


def _largest(norms: Sequence[float], batch: Batch, instructions: Sequence[str]) -> list[pages.Sample]:
    """The samples with the largest gradients, as pictures."""
    order = sorted(range(len(norms)), key=lambda index: -norms[index])[:SAMPLES_SHOWN]
    images = batch.observation.images[:, 0].permute(0, 2, 3, 1).numpy(force=True)
    return [pages.Sample(images[index], instructions[index], norms[index]) for index in order]


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
