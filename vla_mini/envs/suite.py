"""`SuiteEnvironment`: what simulators with several tasks share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_mini.envs.seeds import episode_generator
from vla_mini.envs.spec import OPTIONS, Environment

STEPS_AFTER_SUCCESS = 5  # of demonstrations, so that they show how to stay


class SuiteEnvironment(Environment):
    """The task of an episode is the next of the suite's: episode e plays task e modulo their number.

    The option `instruction` of `reset` is "named", "blank" (it is empty) or, where `others` names tasks, "swapped": the
    sentence of one of these. A class that derives from it has:

    - start(task, number, *, purpose, seed): begins an episode in scene `number` of `self.task`; the sentence is that of `task`
    - simulate(action) -> the reward of one step, and whether the task is done now
    - state() -> float32 (s,)
    - draw(camera) -> what a camera sees, uint8 (image_size, image_size, 3)
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        number, index = divmod(episode, self.env_spec.num_tasks)
        self.task = list(self.env_spec.tasks)[index]
        asked = {"named": self.task, "blank": self.task}
        if others := self.others(self.task):
            generator = episode_generator(options["purpose"], options["seed"], episode, stream=2)
            asked["swapped"] = others[generator.integers(len(others))]
        if options["instruction"] not in asked:
            raise ValueError(f"instruction={options['instruction']!r} is not one of {', '.join(asked)}")
        task = asked[options["instruction"]]
        self.instruction = "" if options["instruction"] == "blank" else self.env_spec.tasks[task]
        self._demonstrates = options["purpose"] in ("demonstration", "validation")
        self._steps, self._successes, self._render_every = 0, 0, options["render_every"]
        self.start(task, number, purpose=options["purpose"], seed=options["seed"])
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        reward, success = self.simulate(np.clip(action, self.action_space.low, self.action_space.high))
        self._steps, self._successes = self._steps + 1, self._successes + success
        over = self._successes >= (STEPS_AFTER_SUCCESS if self._demonstrates else 1)
        return self._observe(), reward, over, False, self._info()

    def others(self, task: str) -> Sequence[str]:
        """The tasks whose sentences may be given in a scene of this one."""
        return ()

    def render(self) -> np.ndarray:
        """The first camera's image, uint8 (image_size, image_size, 3)."""
        return self.draw(self.env_spec.features.cameras[0])

    def _observe(self) -> dict[str, Any]:
        if self._steps % self._render_every == 0:
            self._images = {camera: self.draw(camera) for camera in self.env_spec.features.cameras}
        return {"images": self._images, "state": self.state(), "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        return {"success": self._successes > 0, "task": self.task}
