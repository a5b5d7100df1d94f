"""A tiny task whose state says all, a policy that solves it, and the expert of toy_pick as a policy."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import vla_mini.envs
from vla_mini.features import Features
from vla_mini.types import Observation

REACH = "vla_mini_tests/Reach-v0"
TOY_PICK = "vla_mini/ToyPick-v0"


class Reach(gymnasium.Env):
    """Move x to the goal: an environment from elsewhere, with no splits and nothing but `success` in its info."""

    features = Features(cameras=("top",), image_size=(8, 6), state=("x", "goal"), action=("dx",), fps=10)
    observation_space = spaces.Dict()
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(-5, 5, 2)
        return self._observe(), {"success": False}

    def step(self, action):
        assert np.abs(action).max() <= 1
        self.x += float(action[0])
        success = abs(self.x - self.goal) < 0.5
        return self._observe(), 0.0, success, False, {"success": success}

    def _observe(self):
        image = np.zeros((8, 6, 3), np.uint8)
        image[int(np.clip(self.x + 4, 0, 7))] = (255, 0, 0)
        return {"images": {"top": image}, "state": np.float32([self.x, self.goal]), "instruction": "go to the goal"}


gymnasium.register(id=REACH, entry_point=Reach, max_episode_steps=12)


class ReachPolicy:
    """Walks to the goal in chunks of four; with `noise`, not straight. Remembers what it was asked."""

    features = Reach.features
    device = torch.device("cpu")
    history = 1

    def __init__(self, *, execute: int = 2, noise: float = 0.0, speed: float = 1.0, ensemble: float | None = None):
        self.execute, self.noise, self.speed, self.ensemble = execute, noise, speed, ensemble
        self.asked: list[Observation] = []

    def tokenize(self, instructions: list[str]):
        tokens = torch.tensor([[len(instruction)] for instruction in instructions])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def act(self, observation: Observation, *, generator: torch.Generator | None = None):
        self.asked.append(observation)
        direction = torch.sign(observation.state[:, 1] - observation.state[:, 0]) * self.speed
        actions = direction[:, None, None].repeat(1, 4, 1)
        return actions + self.noise * torch.randn(actions.shape, generator=generator)


class ExpertPolicy(ReachPolicy):
    """toy_pick's scripted expert. It finds the environment it is asked about by the state, which is another in each."""

    features = gymnasium.make(TOY_PICK, disable_env_checker=True).unwrapped.features

    def __init__(self, envs: list[gymnasium.Env], *, obey: bool = True):
        super().__init__(execute=1)
        self.envs, self.obey = envs, obey

    def act(self, observation: Observation, *, generator: torch.Generator | None = None):
        toys = [env.unwrapped for env in self.envs if hasattr(env.unwrapped, "position")]  # as far as they were reset
        by_state = {np.float32([*toy.position, toy.closedness]).tobytes(): toy for toy in toys}
        actions = [self._action(by_state[state.tobytes()]) for state in observation.state.numpy()]
        return torch.from_numpy(np.stack(actions))[:, None]

    def _action(self, toy) -> np.ndarray:
        scene = toy.scene
        if not self.obey:
            toy.scene = scene._replace(target=toy.original_target)
        action = toy.expert_action()
        toy.scene = scene
        return action


@pytest.fixture
def made_envs(monkeypatch) -> list[gymnasium.Env]:
    """The environments that were made during the test."""
    made, make = [], vla_mini.envs.make

    def noting(env_id: str) -> gymnasium.Env:
        made.append(make(env_id))
        return made[-1]

    monkeypatch.setattr(vla_mini.envs, "make", noting)
    return made


@pytest.fixture
def reach() -> str:
    return REACH


@pytest.fixture
def toy_pick() -> str:
    return TOY_PICK


@pytest.fixture
def reach_policy():
    return ReachPolicy


@pytest.fixture
def expert(made_envs):
    """Makes the expert of toy_pick a policy; with obey=False it goes for what was named before another object was."""

    def make(*, obey: bool = True) -> ExpertPolicy:
        return ExpertPolicy(made_envs, obey=obey)

    return make
