"""PushT (Chi et al. 2023; gym-pusht) as an `Environment`: push a T-shaped block onto its target, seen from above.

The action is where the agent is to move, in pixels of a 512 x 512 table. An episode succeeds when more than 95 % of the target
are covered. There is no scripted expert: it is learned from the 206 human demonstrations of the dataset lerobot/pusht.
"""

from importlib.util import find_spec
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_mini.envs.seeds import scene_seed
from vla_mini.envs.spec import Environment, EnvSpec
from vla_mini.utils.features import Features

SIZE = 96
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."
OPTIONS = {"purpose": "evaluation", "seed": 0, "render_every": 1}
SPEC = EnvSpec(
    id="vla_mini/PushT-v0",
    features=Features(
        cameras=("image",), image_size=(SIZE, SIZE), state=("motor_0", "motor_1"), action=("motor_0", "motor_1"), fps=10
    ),
    robot_type="pusht",
    max_episode_steps=300,
    rates=("max_coverage", "final_coverage"),
    vectorization="async",
)


class PushT(Environment):
    """The task of the module's docstring. ValueError where the package gym-pusht is missing."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": SPEC.features.fps}
    env_spec = SPEC
    action_space = spaces.Box(0.0, 512.0, (2,), np.float32)
    observation_space = spaces.Dict(
        {
            "images": spaces.Dict({"image": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}),
            "state": spaces.Box(0.0, 512.0, (2,), np.float32),
            "instruction": spaces.Text(min_length=0, max_length=64, charset="PTabcdefghijklmnopqrstuvwxyz-. "),
        }
    )

    def __init__(self, *, render_mode: str | None = "rgb_array") -> None:
        if find_spec("gym_pusht") is None:
            raise ValueError("the package gym-pusht is missing: pip install 'vla-mini[pusht]'")
        self.render_mode = render_mode
        self._simulation = gymnasium.make("gym_pusht:gym_pusht/PushT-v0", obs_type="state", disable_env_checker=True).unwrapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        scene = scene_seed(options["purpose"], options["seed"], episode)
        self._values, _ = self._simulation.reset(seed=scene)
        self._render_every, self._steps, self._max_coverage = options["render_every"], 0, 0.0
        return self._observe(), self._info(success=False, coverage=0.0)

    def step(self, action: np.ndarray):
        self._values, reward, success, _, info = self._simulation.step(np.clip(action, 0, 512))
        self._steps += 1
        success, info = bool(success), self._info(success=bool(success), coverage=info["coverage"])
        return self._observe(), float(reward), success, False, info

    def render(self) -> np.ndarray:
        """The table from above, uint8 (96, 96, 3)."""
        return self._simulation._render()

    def _observe(self) -> dict[str, Any]:
        if self._steps % self._render_every == 0:
            self._image = self.render()
        state = np.clip(self._values[:2], 0, 512).astype(np.float32)  # the agent's; where the block is has to be seen
        return {"images": {"image": self._image}, "state": state, "instruction": INSTRUCTION}

    def _info(self, *, success: bool, coverage: float) -> dict[str, Any]:
        """`max_coverage` is over all steps so far."""
        self._max_coverage = max(self._max_coverage, coverage)
        return {"success": success, "max_coverage": self._max_coverage, "final_coverage": coverage}
