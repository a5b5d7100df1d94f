"""`init_from`: a new policy takes over the weights of a saved one, which has to be of the same architecture.

The saved normalisation and vocabulary are kept, since the weights mean something in their units and words alone: before its
first step the new policy acts as the saved one does, whatever the new data's statistics are. What the new data has beyond
them is said.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vla_mini import lora
from vla_mini.build import describe
from vla_mini.data.reader import Demonstrations
from vla_mini.policy import Policy
from vla_mini.pretrained import PARTS

# Arguments that say how a part learns or samples, not what it is.
FREE = {"frozen", "noise", "weight", "draws", "distance", "num_steps"}
WIDER = 1.2  # times the saved range: beyond, actions of the new data are worth a warning


def take_over(policy: Policy, saved: Policy, *, source: str) -> None:
    """Give `policy` the weights, running statistics and normalisation of `saved`, with what adapters add merged into them.

    ValueError naming the first part that differs, and in what; `source` is the user's `init_from`.
    """
    for name in PARTS:
        _refuse_other_part(name, getattr(policy, name), getattr(saved, name), source)
    ours, theirs = facts(policy), facts(saved)
    for name in ours:
        if ours[name] != theirs[name]:
            raise ValueError(f"init_from={source}: its {name} is {_show(theirs[name])}, here it is {_show(ours[name])}")
    weights, wanted = lora.plain_weights(saved, merged=True), policy.state_dict()
    for name in wanted | weights:
        shapes = [tuple(each[name].shape) if name in each else "missing" for each in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"init_from={source}: its {name} is {shapes[0]}, here it is {shapes[1]}")
    policy.load_state_dict(weights)


def facts(policy: Policy) -> dict[str, Any]:
    """What the weights hang on besides the parts, by the names of settings where there are such."""
    features = policy.features
    return {
        "cameras": features.cameras,
        "image size": tuple(features.image_size),
        "state": features.state,
        "action": features.action,
        "data.horizon": policy.action.horizon,
        "history": policy.history,
        "data.keyframe.state": policy.keyframe,
        "blind": policy.blind,
    }


def warnings(policy: Policy, demonstrations: Demonstrations) -> list[str]:
    """What the demonstrations hold beyond the policy's vocabulary and its range of actions."""
    words = sorted({word for task in demonstrations.tasks for word in task.split()})
    unknown = [word for word in words if policy.language.unknown_words(word)]
    found = [f"the saved policy does not know the words {', '.join(unknown)}: to it they are all one"] if unknown else []
    action = demonstrations.statistics.action
    with torch.no_grad():
        reach = policy.normalization.action(torch.from_numpy(np.stack([action.min, action.max])).float()).abs().amax(0)
    for name, times in zip(policy.features.action, reach.tolist(), strict=True):
        if times > WIDER:
            found.append(f"the data's {name} reaches {times:.1f} times as far as the saved range, which is kept")
    return found


def say(policy: Policy, demonstrations: Demonstrations) -> None:
    for line in warnings(policy, demonstrations):
        print(f"init_from: {line}", file=sys.stderr)


def _refuse_other_part(name: str, ours: Any, theirs: Any, source: str) -> None:
    if ours is None or theirs is None:
        if ours is not theirs:
            kinds = ["none" if part is None else type(part).__name__ for part in (theirs, ours)]
            setting = f"insulate={str(ours is None).lower()}" if name == "backbone_action" else f"{name}={_variant(theirs)}"
            raise ValueError(f"init_from={source}: its {name} is {kinds[0]}, here it is {kinds[1]}: say {setting}")
        return
    if type(ours) is not type(theirs):
        kinds = (type(theirs).__name__, type(ours).__name__)
        raise ValueError(f"init_from={source}: its {name} is {kinds[0]}, here it is {kinds[1]}: say {name}={_variant(theirs)}")
    mine, saved = (_flat(json.loads(json.dumps(describe(part)))) for part in (ours, theirs))
    for key in saved | mine:
        if key not in FREE and mine.get(key) != saved.get(key):
            hint = f"say {name}.{key}={_show(saved.get(key))}"
            raise ValueError(
                f"init_from={source}: its {name}.{key} is {_show(saved.get(key))}, here it is {_show(mine.get(key))}: {hint}"
            )


def _variant(part: Any) -> str:
    """`flow`, for a class of vla_mini/action/flow.py."""
    return "none" if part is None else type(part).__module__.rpartition(".")[2]


def _flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _show(value: Any) -> str:
    """As one writes it on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
