"""Frames of a validation episode -> where the policy looks in them: its attention, and what its actions are sensitive to."""

from typing import NamedTuple

import numpy as np

from vla_mini.autograd.saliency import attention_maps, sensitivity
from vla_mini.data.reader import Demonstrations
from vla_mini.evaluation.open_loop import batches_of, chunks_of, evenly_spaced
from vla_mini.policy import Policy


class Look(NamedTuple):
    """Where the policy looks in one frame of an episode, by camera."""

    episode: int  # number in the dataset
    frame: int  # number within the episode
    images: np.ndarray  # uint8 (k, h, w, 3)
    attention: np.ndarray | None  # (k, h, w): of the trunk's queries; None where it has none
    sensitivity: np.ndarray  # (k, h, w): of the action chunk to each pixel (autograd/saliency.py)


def looks(policy: Policy, data: Demonstrations, *, num_frames: int = 4, seed: int = 0) -> list[Look]:
    """Frames of the first validation episode, evenly spaced."""
    episode, cameras = data.splits["validation"][0], len(data.features.cameras)
    samples = evenly_spaced(int(data.episode_ends[episode] - data.episode_starts[episode]), num_frames)
    ((_, batch),) = batches_of(policy, chunks_of(policy, data, "validation"), samples, num_frames)
    attention, pixels = attention_maps(policy, batch.observation), sensitivity(policy, batch.observation, seed=seed).pixels
    return [
        Look(
            int(data.episode_index[episode]),
            int(frame),
            batch.observation.images[i, :cameras].permute(0, 2, 3, 1).numpy(force=True),
            None if attention is None else attention[i, :cameras].float().numpy(force=True),
            pixels[i, :cameras].float().numpy(force=True),
        )
        for i, frame in enumerate(samples)
    ]
