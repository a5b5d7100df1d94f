"""What a policy is shown to see where it looks: the first frames of episodes, each under two instructions where that can be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import vla_mini.envs
from vla_mini.types import Features, Observation


class Scene(NamedTuple):
    """How an episode begins, under one instruction."""

    episode: int
    observation: dict[str, Any]  # images, state, instruction: as the environment gives them
    masks: np.ndarray | None  # the pixels of each object in the first camera's image, bool (objects, h, w), where known
    target: int  # which of them the instruction names


def start_scenes(env_id: str, *, scenes: int, seed: int = 0) -> list[Scene]:
    """How validation episodes 0, 1, ... begin, each under its own instruction and with another object named.

    An environment that cannot name another object gives each scene once. Start frames alone: there the masks are true.
    """
    env = vla_mini.envs.make(env_id)
    swaps = "swapped" in getattr(env.unwrapped, "grounding_checks", ())
    find_masks = getattr(env.unwrapped, "object_masks", lambda: None)
    found = []
    for episode in range(scenes):
        for instruction in ("named", "swapped") if swaps else ("named",):
            options = {"purpose": "validation", "seed": seed, "instruction": instruction}
            observation, info = env.reset(seed=episode, options=options)
            found.append(Scene(episode, observation, find_masks(), int(info.get("target", 0))))
    env.close()
    return found


def data_scenes(observation: Observation, instructions: Sequence[str], *, features: Features, scenes: int) -> list[Scene]:
    """Without an environment: frames of the data, each under its own instruction and under another sample's."""
    others = {own: next((other for other in instructions if other != own), own) for own in set(instructions)}
    found = []
    for index, own in enumerate(instructions[:scenes]):
        newest = observation.images[index, : len(features.cameras)].permute(0, 2, 3, 1).numpy()
        images, state = dict(zip(features.cameras, newest, strict=True)), observation.state[index, : features.state_size]
        for instruction in dict.fromkeys((own, others[own])):
            seen = {"images": images, "state": state.numpy(), "instruction": instruction}
            found.append(Scene(index, seen, masks=None, target=0))
    return found
