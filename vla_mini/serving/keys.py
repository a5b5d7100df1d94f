"""The keys of a message from openpi's clients, LeRobot's or our own -> an observation {"images", "state", "instruction"}."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from vla_mini.utils.errors import did_you_mean, show
from vla_mini.utils.features import Features

STATE = ("observation/state", "observation.state", "state")
INSTRUCTION = ("prompt", "task", "instruction")
RESET = "reset"  # true: a new episode begins


class Keys(NamedTuple):
    """What each key of a message means: "state", "instruction", or the name of a camera."""

    meanings: Mapping[str, str]
    cameras: tuple[str, ...]

    def observation(self, message: Any) -> dict[str, Any]:
        """ValueError, in one line, for a message that lacks something, or that has what the policy does not know."""
        if not isinstance(message, dict):
            raise ValueError(f"an observation is a dict with the keys {self.expected()}, not {type(message).__name__}")
        if unknown := [key for key in message if key not in self.meanings and key != RESET]:
            raise ValueError(f"unknown key {show(unknown[0])}; {did_you_mean(str(unknown[0]), self.meanings)}")
        found = {self.meanings[key]: value for key, value in message.items() if key != RESET}
        for name in ("instruction", "state", *self.cameras):
            if name not in found:
                raise ValueError(f"{name} is missing: send it as {' or '.join(map(repr, self.of(name)))}")
        if not isinstance(found["instruction"], str):
            raise ValueError(f"the instruction is of type {type(found['instruction']).__name__}: send text")
        values = {name: _array(value, name) for name, value in found.items() if name != "instruction"}
        images = {camera: values[camera] for camera in self.cameras}
        return {"images": images, "state": values["state"].astype(np.float32), "instruction": found["instruction"]}

    def of(self, name: str) -> list[str]:
        """The keys that mean `name`."""
        return [key for key, meaning in self.meanings.items() if meaning == name]

    def expected(self) -> str:
        return ", ".join(self.of(name)[0] for name in (*self.cameras, "state", "instruction"))


def understood_keys(features: Features, chosen: Mapping[str, str]) -> Keys:
    """The keys for a policy's cameras, state and instruction.

    - chosen: our name -> the one key that is understood for it; for the others those of openpi and LeRobot are

    Raises ValueError for a name that is no camera of the policy, nor `state` or `instruction`.
    """
    names = {camera: (f"observation/{camera}", f"observation.images.{camera}", camera) for camera in features.cameras}
    if len(features.cameras) == 1:  # whatever it is called
        names[features.cameras[0]] += ("observation/image", "observation.image", "image")
    names |= {"state": STATE, "instruction": INSTRUCTION}
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"keys={show(dict(chosen))}: the policy has no {unknown[0]!r}; {did_you_mean(unknown[0], names)}")
    names |= {name: (key,) for name, key in chosen.items()}
    return Keys({key: name for name, keys in names.items() for key in keys}, features.cameras)


def _array(value: Any, name: str) -> np.ndarray:
    with suppress(ValueError):  # lists of unequal length
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    raise ValueError(f"{name} is of type {type(value).__name__}: send an array of numbers")
