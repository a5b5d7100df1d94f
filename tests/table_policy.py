"""Demonstrations in memory, and a policy whose predictions are a table: by the number of the frame, which its state holds."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from vla_mini.data.reader import Demonstrations
from vla_mini.data.statistics import training_statistics
from vla_mini.normalization import NormalizationSettings
from vla_mini.policy import Policy
from vla_mini.utils.features import Features

FEATURES = Features(cameras=("top",), image_size=(8, 8), state=("frame", "x"), action=("x", "grip"), fps=10)
TASKS = ("go to the left", "go to the right")
LENGTHS, HORIZON = (6, 5, 7, 3), 4  # two episodes to train on, two to validate with
ENDS = np.cumsum(LENGTHS)


def demonstrations(*, tasks=TASKS, **changes) -> Demonstrations:
    """Random numbers, and states whose first element is the number of the frame."""
    generator, n = np.random.default_rng(0), sum(LENGTHS)
    numbers = generator.standard_normal((2, n, 2)).astype(np.float32)
    states, actions = numbers
    states[:, 0] = np.arange(n)
    found = Demonstrations(
        features=FEATURES,
        tasks=tasks,
        episode_index=np.array([0, 2, 5, 6]),  # numbers may have gaps
        episode_starts=ENDS - LENGTHS,
        episode_ends=ENDS,
        splits={"train": (0, 2), "validation": (2, 4)},
        states=states,
        actions=actions,
        task_index=np.repeat([0, 1, 0, 1], LENGTHS) % len(tasks),
        frames=generator.integers(0, 256, (n, 1, 3, 8, 8), dtype=np.uint8),
        statistics=None,
        fingerprint="",
        notes=(),
        mixture=(),
    )._replace(**changes)
    train = slice(0, ENDS[1])
    return found._replace(statistics=training_statistics(found.states[train], found.actions[train]))


class TablePolicy(Policy):
    """Predicts `chunks` (n, t, a) of the frame, whose number is in the state, plus `listens` times the number of the task."""

    features, horizon, history, device = FEATURES, HORIZON, 1, torch.device("cpu")

    def __init__(self, chunks, *, listens=0.0, relative=()):
        nn.Module.__init__(self)
        self.chunks, self.listens, self.auxiliary = torch.from_numpy(np.float32(chunks)), listens, {}
        self.normalization = SimpleNamespace(settings=NormalizationSettings(relative=relative))

    def tokenize(self, instructions):
        tokens = torch.tensor([[TASKS.index(text) if text else 2] for text in instructions])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def draw_noise(self, size, generator=None):
        return None

    def prepare(self, observation):
        return observation.images, observation.tokens, observation.token_mask, observation.state

    def predict(self, images, word_vectors, state, noise=None, *, word_mask=None, prefix=None):
        return self.chunks[state[:, 0].long()] + self.listens * word_vectors[..., None]

    def loss(self, batch):
        loss = (self.act(batch.observation) - batch.actions).abs().mean(dim=-1) * ~batch.is_pad
        return loss, {"action": loss}


def recorded_chunks(data) -> np.ndarray:
    """What was recorded from each frame on; past the end of its episode, zeros."""
    chunks = np.zeros((len(data.actions), HORIZON, 2), np.float32)
    for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
        for frame in range(start, end):
            rest = data.actions[frame:end][:HORIZON]
            chunks[frame, : len(rest)] = rest
    return chunks
