"""A tiny environment whose state is all that counts, for tests of acting. No torch: its processes start fast."""

import os
from dataclasses import replace

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_mini.envs import Environment, EnvSpec
from vla_mini.utils.features import Features

FEATURES = Features(cameras=("top",), image_size=(8, 6), state=("x", "goal"), action=("dx",), fps=10)
REACH = "vla_mini_tests/Reach-v0"
REACH_ASYNC = "vla_mini_tests/ReachAsync-v0"
STEPS = 12


class Reach(Environment):
    """Move x to the goal, to the left or to the right as the instruction says."""

    env_spec = EnvSpec(
        id=REACH,
        features=FEATURES,
        robot_type="point",
        max_episode_steps=STEPS,
        tasks={"left": "go to the left", "right": "go to the right"},
        groups={"both": ("left", "right")},
        rates=("overshot",),
        subsets=("far",),
    )
    observation_space = spaces.Dict(
        {
            "images": spaces.Dict({"top": spaces.Box(0, 255, (8, 6, 3), np.uint8)}),
            "state": spaces.Box(-20, 20, (2,), np.float32),
            "instruction": spaces.Text(max_length=32),
        }
    )
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = seed
        self.x, self.goal = np.sort(self.np_random.uniform(-5, 5, 2))[:: 1 if seed % 2 else -1]
        self.sign, self.overshot = np.sign(self.goal - self.x), False
        self.far = bool(abs(self.goal - self.x) > 4)
        self.instruction = f"go to the {'right' if self.sign > 0 else 'left'}"
        return self._observe(), self._info()

    def step(self, action):
        assert np.abs(action).max() <= 1
        self.x += float(action[0])
        self.overshot |= bool(self.sign * (self.x - self.goal) > 0)
        return self._observe(), 0.0, bool(abs(self.x - self.goal) < 0.5), False, self._info()

    def _observe(self):
        image = np.zeros((8, 6, 3), np.uint8)
        image[int(np.clip(self.x + 4, 0, 7))] = (255, 0, 0)
        return {"images": {"top": image}, "state": np.float32([self.x, self.goal]), "instruction": self.instruction}

    def _info(self):
        return {"success": bool(abs(self.x - self.goal) < 0.5), "overshot": self.overshot, "far": self.far}


class ReachAsync(Reach):
    """The same, each environment in a process of its own."""

    env_spec = replace(Reach.env_spec, id=REACH_ASYNC, vectorization="async")

    def step(self, action):
        # For tests: "DIE_AT=3 1 FOLDER" ends the process in episode 3, the first time, which is counted in the folder.
        episode, times, folder = os.environ.get("DIE_AT", "-1 0 .").split()
        deaths = len(os.listdir(folder))
        if self.episode == int(episode) and deaths < int(times):
            open(f"{folder}/{deaths}", "x").close()
            os._exit(1)
        return super().step(action)


gymnasium.register(REACH, Reach, max_episode_steps=STEPS)
gymnasium.register(REACH_ASYNC, ReachAsync, max_episode_steps=STEPS)
