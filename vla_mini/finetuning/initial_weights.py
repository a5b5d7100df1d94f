"""`init_from`: a new policy begins with the weights of a saved one, which has to have the same architecture.

The saved normalization and vocabulary are kept, since the weights depend on them: before its first step the new policy acts as
the saved one does, whatever the new data's statistics are. A warning names what the new data has beyond them.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vla_mini.data.reader import Demonstrations
from vla_mini.parts import Part
from vla_mini.policy import Policy
from vla_mini.utils import lora
from vla_mini.utils.errors import show

# Settings of how a part is trained or samples, and of where its code comes from, which may differ.
FREE = {"frozen", "noise", "weight", "noise_samples", "distance", "num_steps", "closes", "threshold", "path"}
WIDER = 1.2  # times the saved range of an action; data beyond it are worth a warning


def load_initial_weights(policy: Policy, saved: Policy, *, source: str) -> None:
    """Give `policy` the weights, running statistics and normalization of `saved`, with its adapters merged into the weights.

    - source: the user's `init_from`

    Raises ValueError naming the first difference of the two.
    """
    ours, theirs = dict(policy.parts()), dict(saved.parts())
    for name in theirs | ours:
        _check_part(name, ours.get(name), theirs.get(name), source)
    ours, theirs = _facts(policy), _facts(saved)
    for name, value in ours.items():
        if value != theirs[name]:
            raise ValueError(f"init_from={source}: its {name} is {_show(theirs[name])}, here it is {_show(value)}")
    weights, wanted = lora.plain_weights(saved, merged=True), policy.state_dict()
    for name in wanted | weights:
        shapes = [tuple(each[name].shape) if name in each else "missing" for each in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"init_from={source}: its {name} is {shapes[0]}, here it is {shapes[1]}")
    policy.load_state_dict(weights)


def warn_about_mismatch(policy: Policy, demonstrations: Demonstrations) -> None:
    """Print to stderr what the demonstrations have beyond the policy's vocabulary and its range of actions."""
    words = sorted({word for task in demonstrations.tasks for word in task.split()})
    if unknown := [word for word in words if policy.language.unknown_words(word)]:
        text = f"init_from: the saved policy does not know the words {', '.join(unknown)}: all share one vector"
        print(text, file=sys.stderr)
    action = demonstrations.statistics.action
    with torch.no_grad():
        ranges = policy.normalization.action(torch.from_numpy(np.stack([action.min, action.max])).float()).abs().amax(0)
    for name, times in zip(policy.features.action, ranges.tolist(), strict=True):
        if times > WIDER:
            print(f"init_from: the data's {name} has {times:.1f} times the saved range, which is kept", file=sys.stderr)


def _facts(policy: Policy) -> dict[str, Any]:
    """What the weights depend on besides the parts, by the names of settings where there are such."""
    features = policy.features
    return {
        "cameras": features.cameras,
        "image size": features.image_size,
        "state": features.state,
        "action": features.action,
        "data.horizon": policy.horizon,
        "history": policy.history,
        "ablate": policy.ablate,
    }


def _check_part(name: str, ours: Part | None, theirs: Part | None, source: str) -> None:
    """ValueError where a part is not the same, with the setting that would make it the same."""
    if type(ours) is not type(theirs):
        found, here = ("none" if part is None else type(part).__name__ for part in (theirs, ours))
        if name == "backbone_action":
            setting = f"insulate={show(ours is None)}"
        else:
            variant = "none" if theirs is None else type(theirs).__module__.rpartition(".")[2]  # flow, of action/flow.py
            setting = f"{name.partition('.')[0]}={variant}"
        raise ValueError(f"init_from={source}: its {name} is {found}, here it is {here}: use {setting}")
    mine, saved = ({} if part is None else _flat(json.loads(json.dumps(part.settings))) for part in (ours, theirs))
    for key in saved | mine:
        if key not in FREE and mine.get(key) != saved.get(key):
            value, here = _show(saved.get(key)), _show(mine.get(key))
            raise ValueError(f"init_from={source}: its {name}.{key} is {value}, here it is {here}: use {name}.{key}={value}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name, nested = f"{prefix}{key}", isinstance(value, dict)
        flat |= _flat(value, f"{name}.") | {name: "{...}"} if nested else {name: value}
    return flat


def _show(value: Any) -> str:
    """A value as one writes it on the command line, without quotation marks."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_show, value))}]"
    return value if isinstance(value, str) else show(value)
