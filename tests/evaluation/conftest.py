"""The expert of toy_pick as a policy, for tests of evaluation."""

import numpy as np
import pytest
import torch

from tests.reach_policy import ReachPolicy
from vla_mini.envs import get_spec
from vla_mini.envs.toy_pick.environment import ToyPick

TOY_PICK = "vla_mini/ToyPick-v0"


class ExpertPolicy(ReachPolicy):
    """toy_pick's scripted expert. It finds the environment of an observation by the state, which differs in each."""

    features, horizon = get_spec(TOY_PICK).features, 2

    def __init__(self, envs: set[ToyPick], *, obey: bool = True):
        super().__init__(execute=1)
        self.envs, self.obey = envs, obey

    def predict(self, images, word_vectors, state, noise=None, *, word_mask=None, prefix=None):
        by_state = {np.float32([*env.position, env.closedness]).tobytes(): env for env in self.envs}
        actions = [self._action(by_state[row.tobytes()]) for row in state.numpy()]
        return torch.from_numpy(np.stack(actions))[:, None].repeat(1, self.horizon, 1)

    def _action(self, env: ToyPick) -> np.ndarray:
        scene = env.scene
        if not self.obey:
            env.scene = scene._replace(target=env.original_target)
        action = env.expert_action()
        env.scene = scene
        return action


@pytest.fixture
def expert(monkeypatch):
    """Makes the expert a policy; with obey=False it picks the object that the instruction named before it was changed."""
    envs, reset = set(), ToyPick.reset

    def noting(self, **settings):
        envs.add(self)
        return reset(self, **settings)

    monkeypatch.setattr(ToyPick, "reset", noting)
    return lambda *, obey=True: ExpertPolicy(envs, obey=obey)
