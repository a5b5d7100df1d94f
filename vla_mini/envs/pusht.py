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
from vla_mini.envs.spec import EnvSpec, observation_space
from vla_mini.envs.suite import SuiteEnvironment
from vla_mini.utils.features import Features

MOTORS = ("motor_0", "motor_1")
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."
SPEC = EnvSpec(
    id="vla_mini/PushT-v0",
    features=Features(cameras=("image",), image_size=(96, 96), state=MOTORS, action=MOTORS, fps=10),
    robot_type="pusht",
    max_episode_steps=300,
    tasks={"push-t": INSTRUCTION},
    checks={"blank": "these scenes without a sentence"},
    rates=("max_coverage", "final_coverage"),
    vectorization="async",
)


class PushT(SuiteEnvironment):
    """The task of the module's docstring. ValueError where the package gym-pusht is missing."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": SPEC.features.fps}
    env_spec = SPEC
    action_space = spaces.Box(0.0, 512.0, (2,), np.float32)
    observation_space = observation_space(SPEC.features, 0, 512, [INSTRUCTION])

    def __init__(self, *, render_mode: str | None = "rgb_array") -> None:
        if find_spec("gym_pusht") is None:
            raise ValueError("the package gym-pusht is missing: pip install 'vla-mini[pusht]'")
        self.render_mode = render_mode
        self._simulation = gymnasium.make("gym_pusht:gym_pusht/PushT-v0", obs_type="state", disable_env_checker=True).unwrapped

    def start(self, task: str, number: int, *, purpose: str, seed: int) -> None:
        self._values, _ = self._simulation.reset(seed=scene_seed(purpose, seed, number))
        self._coverage = self._max_coverage = 0.0

    def simulate(self, action: np.ndarray) -> tuple[float, bool]:
        self._values, reward, success, _, info = self._simulation.step(action)
        self._coverage = info["coverage"]
        self._max_coverage = max(self._max_coverage, self._coverage)
        return float(reward), bool(success)

    def draw(self, camera: str) -> np.ndarray:
        return self._simulation._render()

    def state(self) -> np.ndarray:
        return np.clip(self._values[:2], 0, 512).astype(np.float32)  # the agent's; where the block is has to be seen

    def _info(self) -> dict[str, Any]:
        return super()._info() | {"max_coverage": self._max_coverage, "final_coverage": self._coverage}
