"""An environment with two cameras, the findings about a run by check, and methods that are replaced to plant mistakes."""

import dataclasses
from functools import partial

import gymnasium
import numpy as np

from vla_mini.doctor.checks import check_data, check_learning, check_policy
from vla_mini.envs import Environment
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.envs.toy_pick.spec import SPEC


class TwoCameras(Environment):
    """toy_pick with a second camera on the opposite side."""

    env_spec = dataclasses.replace(
        SPEC,
        id="vla_mini_tests/TwoCameras-v0",
        features=SPEC.features._replace(cameras=("top", "opposite")),
        has_object_masks=False,
    )

    def __init__(self):
        self.inner = ToyPick()
        self.action_space, self.observation_space = self.inner.action_space, self.inner.observation_space

    def reset(self, *, seed=None, options=None):
        observation, info = self.inner.reset(seed=seed, options=options)
        return with_second_image(observation), info

    def step(self, action):
        observation, *others = self.inner.step(action)
        return with_second_image(observation), *others

    def expert_action(self):
        return self.inner.expert_action()


def with_second_image(observation):
    top = observation["images"]["top"]
    return observation | {"images": {"top": top, "opposite": np.ascontiguousarray(top[::-1, ::-1])}}


gymnasium.register(id=TwoCameras.env_spec.id, entry_point=TwoCameras, max_episode_steps=TwoCameras.env_spec.max_episode_steps)


def findings_of(run, *, learning=True):
    """The findings about data and policy, by check; and about what the policy learns, which takes seconds."""
    found = [*check_data(run), *check_policy(run), *(check_learning(run) if learning else ())]
    return {finding.check: finding for finding in found}


def not_passed(findings):
    """What was measured by each check that warned or failed."""
    return {name: finding.measured for name, finding in findings.items() if finding.status in ("warn", "fail")}


def replace_method(monkeypatch, owner, name):
    """Decorates a function that replaces a method of the owner's class, and gets that method as its first argument."""

    def decorate(function):
        original = getattr(type(owner), name)

        def replacement(self, *arguments, **options):
            return function(partial(original, self), *arguments, **options)

        monkeypatch.setattr(type(owner), name, replacement)

    return decorate
