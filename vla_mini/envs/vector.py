"""One environment -> one that can pause, for vector environments in which fewer and fewer episodes are running."""

from typing import Any

import gymnasium
import numpy as np


class PauseAfterEpisode(gymnasium.Wrapper):
    """An environment that does nothing after a reset without a seed: it costs nothing once no episode is left for it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._paused, info = seed is None, {}
        if not self._paused:
            self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._paused:
            return self._observation, 0.0, False, False, {}
        self._observation, *outcome = self.env.step(action)
        return self._observation, *outcome
