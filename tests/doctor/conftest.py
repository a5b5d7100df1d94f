"""A small training run to fall ill: sixteen episodes of toy_pick, a narrow policy; and the doctor's findings about it."""

import copy
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from omegaconf import OmegaConf

from vla_mini import config
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.doctor.examine import of_data, of_learning, of_policy
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.training.setup import data_module, untrained_policy

SMALL = ["vision.width=16", "trunk.width=32", "language.width=16", "data.batch_size=16"]


class TwoCameras(gymnasium.Env):
    """toy_pick seen by two cameras, the second from the other side."""

    features = ToyPick.features._replace(cameras=("top", "opposite"))
    robot_type = "two_cameras"

    def __init__(self):
        self.inner = ToyPick()
        self.action_space, self.observation_space = self.inner.action_space, self.inner.observation_space
        self.expert_action = self.inner.expert_action

    def see(self, observation):
        top = observation["images"]["top"]
        return observation | {"images": {"top": top, "opposite": np.ascontiguousarray(top[::-1, ::-1])}}

    def reset(self, *, seed=None, options=None):
        observation, info = self.inner.reset(seed=seed, options=options)
        return self.see(observation), info

    def step(self, action):
        observation, *rest = self.inner.step(action)
        return self.see(observation), *rest


gymnasium.register(id="vla_mini_tests/TwoCameras-v0", entry_point=TwoCameras, max_episode_steps=48)


def dataset(folder, env_id):
    collect(env_id, folder, episodes=16, validation_episodes=2, num_workers=1)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("doctor") / "data", "vla_mini/ToyPick-v0")


@pytest.fixture(scope="session")
def demonstrations(root):
    return read_dataset(root)


@pytest.fixture(scope="session")
def two_cameras(tmp_path_factory):
    return read_dataset(dataset(tmp_path_factory.mktemp("doctor") / "two", "vla_mini_tests/TwoCameras-v0"))


@pytest.fixture
def run(demonstrations):
    """Makes a run as train.py would begin it: settings, demonstrations, policy, windows. All of it may be spoilt."""

    def make(*arguments, small=SMALL, data=demonstrations):
        settings = copy.deepcopy(OmegaConf.to_container(config.load("doctor", [*small, *arguments]).training))
        policy = untrained_policy(settings, data)
        module = data_module(settings, data, policy)
        windows = {"windows": module.train_windows, "held_out": module.validation_windows}
        return SimpleNamespace(settings=settings, demonstrations=data, policy=policy, **windows)

    return make


@pytest.fixture
def diagnose():
    """The findings about a run's data and policy, by check; and about what it learns, which takes seconds."""

    def find(run, *, learns=True):
        about = (run.settings, run.demonstrations, run.policy, run.windows)
        found = [*of_data(*about), *of_policy(*about)]
        found += of_learning(run.settings, run.policy, run.windows) if learns else ()
        return {finding.check: finding for finding in found}

    return find
