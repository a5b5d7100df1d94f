"""A dataset's episodes in the place of an environment: the next frame comes whatever the action is (open loop)."""

from typing import Any

import numpy as np
from gymnasium import spaces

from vla_mini.data.reader import Demonstrations
from vla_mini.envs.spec import Environment, EnvSpec


class Recording(Environment):
    """`reset(seed=EPISODE)` begins an episode, counted from the first of the training split; `expert_action` is what was
    recorded in the present frame.

    - name: of the dataset, for messages
    """

    def __init__(self, data: Demonstrations, *, name: str) -> None:
        self.action_space = spaces.Box(-np.inf, np.inf, (data.features.action_size,), np.float32)
        self.data, lengths = data, data.episode_ends - data.episode_starts
        self.env_spec = EnvSpec(
            id=name,
            features=data.features,
            robot_type="recording",
            max_episode_steps=int(lengths.max()),
            tasks={task: task for task in data.tasks},
            has_expert=True,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        episode = (seed or 0) % len(self.data.episode_starts)
        self.frame, self._end = int(self.data.episode_starts[episode]), int(self.data.episode_ends[episode])
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray):
        self.frame = min(self.frame + 1, self._end - 1)  # an episode may have one frame
        return self._observe(), 0.0, False, self.frame == self._end - 1, {"success": False}

    def expert_action(self) -> np.ndarray:
        return self.data.actions[self.frame]

    def _observe(self) -> dict[str, Any]:
        images = self.data.frames.take(np.array([self.frame]), axis=0)[0].transpose(0, 2, 3, 1)
        return {
            "images": dict(zip(self.data.features.cameras, images, strict=True)),
            "state": self.data.states[self.frame],
            "instruction": self.data.tasks[self.data.task_index[self.frame]],
        }
