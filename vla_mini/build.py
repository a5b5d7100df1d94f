"""Class name + arguments -> object. Used by training and by `Policy.from_pretrained` alike; no Hydra.

A part is described by a plain mapping, `{"_target_": "vla_mini.vision.conv.ConvVision", "width": 64}`. Only classes
defined in the variant folders resolve (or classes that the caller hands over), so a description from a stranger runs no code.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_mini.features import Features, Statistics
from vla_mini.normalization import Normalization
from vla_mini.policy import Policy

PACKAGE = Path(__file__).parent
GROUPS = ("vision", "language", "trunk", "action", "auxiliary")

# Arguments that follow from the data or from another part: given by the code where a constructor names them, never by YAML.
FACTS = frozenset(
    {"image_size", "num_cameras", "grid", "state_size", "action_size", "horizon", "keyframe_size", "tasks", "folder"}
    | {"context_width", "num_tokens", "num_positions", "action_quantiles", "action_chunks"}
)

# Arguments of any part that are at least 1, as are all that begin with num_.
SIZES = frozenset({"width", "hidden", "stride", "patch_size", "max_words"})


def build(spec: Mapping[str, Any], group: str, *, classes: Sequence[type] = (), **facts: Any) -> nn.Module:
    """The part that `spec` describes, from `vla_mini/<group>/`, given those `facts` that its constructor names."""
    arguments = dict(spec)
    constructor = resolve(arguments.pop("_target_", None), group, classes=classes)
    names = inspect.signature(constructor).parameters
    if unknown := [name for name in arguments if name not in names or name in FACTS]:
        raise ValueError(f"{constructor.__name__} has no argument {unknown[0]!r}{nearest(unknown[0], names)}")
    for name, value in arguments.items():
        if type(value) is int and value < 1 and (name in SIZES or name.startswith("num_")):
            raise ValueError(f"{group}.{name}={value}: at least 1 is needed")
    return constructor(**arguments, **{name: value for name, value in facts.items() if name in names})


def resolve(target: Any, group: str, *, classes: Sequence[type] = ()) -> type[nn.Module]:
    """The class that `target` names: one of `classes`, or one defined in a module of `vla_mini/<group>/`; else ValueError."""
    for candidate in classes:
        if target == f"{candidate.__module__}.{candidate.__qualname__}":
            return candidate
    match str(target).split("."):
        case ["vla_mini", found, module, name] if found == group and group in GROUPS and module in variants(group):
            candidate = getattr(importlib.import_module(f"vla_mini.{group}.{module}"), name, None)
            # A class that the module only imported is not one that it defines.
            if (
                inspect.isclass(candidate)
                and issubclass(candidate, nn.Module)
                and candidate.__module__ == target.rpartition(".")[0]
            ):
                return candidate
    raise ValueError(f"_target_={target!r} is not a class of vla_mini/{group}/ ({', '.join(variants(group))})")


def variants(group: str) -> list[str]:
    """The names of the modules in `vla_mini/<group>/`."""
    return sorted(path.stem for path in (PACKAGE / group).glob("*.py") if not path.stem.startswith("_"))


def describe(part: nn.Module) -> dict[str, Any]:
    """The spec that builds `part` again. Each constructor argument is also an attribute of the part, by the same name."""
    names = [name for name in inspect.signature(type(part)).parameters if name not in FACTS]
    return {"_target_": f"{type(part).__module__}.{type(part).__qualname__}"} | {name: getattr(part, name) for name in names}


def nearest(name: str, choices: Any) -> str:
    """`; did you mean 'width'?` where a choice is near to `name`, else all the choices."""
    choices = sorted(map(str, choices))
    close = get_close_matches(str(name), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(choices) or 'none'}"


def build_policy(
    parts: Mapping[str, Mapping[str, Any] | None],
    *,
    features: Features,
    statistics: Statistics,
    horizon: int,
    tasks: Sequence[str] = (),
    chunks: np.ndarray | None = None,
    folder: str | Path | None = None,
    history: int = 1,
    keyframe: Sequence[str] = (),
    execute: int = 1,
    ensemble: float | None = None,
    blind: Sequence[str] = (),
    source: Mapping[str, str] | None = None,
    classes: Sequence[type] = (),
) -> Policy:
    """A policy from the specs of its parts ({"vision": spec, ...}) and the facts about the data that they are built for.

    Tokenizers are trained on `tasks` (instructions) and `chunks` (n t a, actions in raw units), or read from `folder` where a
    policy was saved.
    """
    cameras = history * len(features.cameras)
    vision = build(parts["vision"], "vision", classes=classes, image_size=features.image_size)
    language = build(parts["language"], "language", classes=classes, tasks=tuple(tasks), folder=folder)
    trunk = build(parts["trunk"], "trunk", classes=classes, grid=vision.grid, num_cameras=cameras)
    head_facts = {"context_width": trunk.width, "num_tokens": trunk.num_tokens}
    head_facts |= {"horizon": horizon, "action_size": features.action_size, "folder": folder}
    normalization, quantiles = Normalization(statistics, history=history), statistics.action.quantiles
    head_facts["action_quantiles"] = None if quantiles is None else normalization.action(torch.from_numpy(quantiles))
    head_facts["action_chunks"] = None if chunks is None else normalization.action(torch.from_numpy(chunks))
    action = build(parts["action"], "action", classes=classes, **head_facts)
    backbone_action = None
    if parts.get("backbone_action"):
        backbone_action = build(parts["backbone_action"], "action", classes=classes, **head_facts)
    auxiliary = None
    if (parts.get("auxiliary") or {}).get("_target_"):
        auxiliary = build(
            parts["auxiliary"],
            "auxiliary",
            classes=classes,
            grid=vision.grid,
            num_cameras=cameras,
            keyframe_size=len(keyframe),
            num_positions=trunk.num_positions,
        )
    return Policy(
        vision=vision,
        language=language,
        trunk=trunk,
        action=action,
        auxiliary=auxiliary,
        backbone_action=backbone_action,
        normalization=normalization,
        features=features,
        history=history,
        keyframe=keyframe,
        execute=execute,
        ensemble=ensemble,
        blind=blind,
        source=dict(source or {}),
    )
