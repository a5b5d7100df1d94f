"""Policies for the environment of tests/reach.py that show what they were called with."""

import torch
from torch import nn

from tests.reach import FEATURES
from vla_mini.parts import ActingDefaults
from vla_mini.policy import Policy
from vla_mini.types import Observation


class ReachPolicy(Policy):
    """Without parts: goes to the goal in chunks of four; with `noise`, not straight. Keeps the observations of its calls."""

    features, device, horizon, takes_prefix = FEATURES, torch.device("cpu"), 4, False

    def __init__(self, *, execute=2, ensemble=None, history=1, noise=0.0, speed=1.0):
        nn.Module.__init__(self)
        self.acting, self.history = ActingDefaults(execute, ensemble), history
        self.noise, self.speed = noise, speed
        self.calls: list[Observation] = []

    def tokenize(self, instructions):
        tokens = torch.tensor([[len(instruction)] for instruction in instructions])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def draw_noise(self, size, generator=None):
        if not self.noise:
            return None
        return torch.cat([torch.randn((1, self.horizon, 1), generator=each) for each in generator])  # one for each chunk

    def prepare(self, observation):
        self.calls.append(observation)
        return observation.images, observation.tokens, observation.token_mask, observation.state

    def predict(self, images, word_vectors, state, noise=None, *, word_mask=None, prefix=None):
        direction = torch.sign(state[:, 1] - state[:, 0]) * self.speed
        actions = direction[:, None, None].repeat(1, self.horizon, 1)
        return actions if noise is None else actions + self.noise * noise


class CountingPolicy(ReachPolicy):
    """Chunk number n is 10 n, 10 n + 1, ...: each action shows the chunk and the place that it comes from."""

    def predict(self, images, word_vectors, state, noise=None, *, word_mask=None, prefix=None):
        return (10.0 * (len(self.calls) - 1) + torch.arange(4.0))[None, :, None].repeat(len(state), 1, 1)
