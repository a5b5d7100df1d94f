"""`EnvSpec`, the description of an environment, and `Environment`, the base class of all environments that vla-mini can use.

What an environment takes and returns:

    reset(seed=EPISODE, options={"purpose", "seed", "split", "instruction", "render_every"}) -> observation, info
    step(action float32 (a,)) -> observation, reward, terminated, truncated, info

    observation: {"images": {camera: uint8 (h, w, 3)}, "state": float32 (s,), "instruction": str}
    info:        {"success": bool, "task": str where the spec has tasks, and what its `rates`, `subsets` and `check_rates` name}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

OPTIONS = {
    "purpose": "evaluation",
    "seed": 0,
    "split": "seen",
    "instruction": "named",
    "render_every": 1,
}


@dataclass(frozen=True)
class EnvSpec:
    """The description of an environment: all that collection, evaluation and reports need to know about it.

    The first of `splits` gives the headline, and selects the policy that is saved. Each of `checks`, which is a value of the
    reset option `instruction`, repeats that split with a changed instruction. `info["chance"]` stands for how often a policy
    that ignores the instruction would reach what a check counts.
    """

    id: str  # as `envs.make` takes it: as registered in Gymnasium, with its arguments
    features: Features  # as in a dataset
    robot_type: str  # written into datasets
    max_episode_steps: int  # as it is registered
    tasks: Mapping[str, str] = field(default_factory=dict)  # name -> instruction; episode e is of task e modulo their number
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> tasks, whose success is also averaged
    splits: Mapping[str, str] = field(default_factory=lambda: {"seen": "new scenes"})  # name -> explanation
    further_splits: Mapping[str, str] = field(default_factory=dict)  # those that are evaluated on request only
    checks: Mapping[str, str] = field(default_factory=dict)  # name -> explanation
    rates: tuple[str, ...] = ()  # keys of `info` (bool or number at the last step), whose mean is KEY_rate in each split
    subsets: tuple[str, ...] = ()  # keys of `info` (bool) of episodes whose success is also reported by itself
    check_rates: tuple[str, ...] = ()  # keys of `info` (number), whose mean is KEY_rate in each check
    vectorization: Literal["sync", "async"] = "sync"  # several in this process, or where a step is expensive, in one each
    action_noise: float = 1.0  # of demonstrations, times the noise of vla_mini/collection.py
    has_expert: bool = False  # whether `expert_action` is implemented
    has_object_masks: bool = False  # whether `object_masks` is implemented

    def __post_init__(self) -> None:
        for name in {task for tasks in self.groups.values() for task in tasks} - self.tasks.keys():
            raise ValueError(f"groups: {name!r} is not one of the tasks; {did_you_mean(name, self.tasks)}")

    @property
    def num_tasks(self) -> int:
        """1 where the tasks have no names."""
        return max(1, len(self.tasks))


def observation_space(features: Features, low: Any, high: Any, sentences: Iterable[str]) -> spaces.Dict:
    """Of observations with these features, states from `low` to `high`, and one of these sentences, or none."""
    bounds = (np.broadcast_to(np.float32(bound), features.state_size) for bound in (low, high))
    text = spaces.Text(min_length=0, max_length=128, charset=frozenset("".join(sentences)))
    images = spaces.Dict({camera: spaces.Box(0, 255, (*features.image_size, 3), np.uint8) for camera in features.cameras})
    return spaces.Dict({"images": images, "state": spaces.Box(*bounds), "instruction": text})


class Environment(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A Gymnasium environment with an `env_spec`. It is fully determined by the seed and the options of `reset`.

    - seed: the number of the episode
    - options: `purpose` ("demonstration", "validation", "selection" or "evaluation": they share no scene), `seed` (of the run),
      `split`, `instruction` (a name of the spec's `checks`), and `render_every`: the images of only every so many steps are
      looked at, so that those between may be old ones. An environment may ignore what means nothing to it.
    """

    env_spec: EnvSpec

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does in the present state, float32 (a,)."""
        raise NotImplementedError(f"{self.env_spec.id} has no scripted expert")

    def object_masks(self) -> np.ndarray:
        """The pixels of each object in the first camera's image at the start of the episode, bool (objects, h, w).

        `info["target"]` is then the index of the object that the instruction names.
        """
        raise NotImplementedError(f"{self.env_spec.id} has no masks of its objects")
