"""What the action hangs on: an observation -> vector-Jacobian products of the action chunk by pixels, by words, by state.

The vectors: for each dimension of an action, one that adds up that dimension over the chunk, in normalised units (so that
all dimensions weigh alike). The magnitudes of their products are added. A vector of its own for each dimension, since in a
common sum a pixel that moves dx up and dy down would seem to do nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_mini.autograd.scenes import Scene
from vla_mini.policy import INPUTS, Policy
from vla_mini.types import Observation

SCENES_AT_ONCE = 20  # so that memory stays bounded


class Sensitivity(NamedTuple):
    """How far the normalised chunk of actions moves, to first order, for a unit of each input."""

    pixels: Float[Tensor, "b k h w"]  # of intensity, 0 to 1; added over the three colours
    words: Float[Tensor, "b l"]  # of length of the word vector, in the direction that matters most
    state: Float[Tensor, "b s"]  # of standard deviation


class Look(NamedTuple):
    """One scene under one instruction, and how far the action hangs on what."""

    scene: Scene
    image: np.ndarray  # of the policy's first camera, uint8 (h, w, 3)
    pixels: Float[Tensor, "h w"]  # the sensitivity by them
    words: list[tuple[str, float]]
    state: list[tuple[str, float]]
    on_target: float | None  # mean over the named object's pixels; None where it is not known what lies where
    on_others: float | None  # and over those of all others
    objects: list[tuple[bool, float]]  # whether it is the named one, and the mean, of each


def look(policy: Policy, scenes: Sequence[Scene], observation: Observation) -> list[Look]:
    """The sensitivity in each scene; `observation` holds what the policy sees of them, in their order."""
    looks = []
    for first in range(0, len(scenes), SCENES_AT_ONCE):
        part = slice(first, first + SCENES_AT_ONCE)
        found = sensitivity(policy, Observation(*(tensor[part] for tensor in observation)))
        for scene, pixels, words, state in zip(scenes[part], found.pixels[:, 0], found.words, found.state, strict=True):
            known = scene.masks is not None and len(scene.masks) > 1
            sizes = on_objects(pixels, torch.from_numpy(scene.masks), scene.target) if known else (None, None, [])
            image = scene.observation["images"][policy.features.cameras[0]]
            by_word = list(zip(policy.language.words(scene.observation["instruction"]), words.tolist(), strict=False))
            newest = state[: policy.features.state_size]  # of a policy with a history, what is seen and felt now
            by_state = list(zip(policy.features.state, newest.tolist(), strict=True))
            looks.append(Look(scene, image, pixels, by_word, by_state, *sizes))
    return looks


def sensitivity(policy: Policy, observation: Observation, *, seed: int = 0) -> Sensitivity:
    """The products above for each sample, zero by inputs that the policy never sees; `seed` is for heads that draw noise."""
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(observation))
    inputs = [tensor.requires_grad_() for tensor in (images, words, state)]
    generator = torch.Generator(policy.device).manual_seed(seed)
    seen = [tensor.detach() if name in policy.blind else tensor for name, tensor in zip(INPUTS, inputs, strict=True)]
    actions = policy.normalization.action(policy.predict(*seen, generator, word_mask=mask))
    pixels, by_word, by_state = torch.zeros_like(images), words.new_zeros(words.shape[:2]), torch.zeros_like(state)
    for dimension in range(actions.shape[-1]):
        vector = torch.zeros_like(actions)
        vector[..., dimension] = 1
        products = torch.autograd.grad(actions, inputs, vector, retain_graph=True, materialize_grads=True)
        pixels += products[0].abs()
        by_word += products[1].norm(dim=-1)
        by_state += products[2].abs()
    return Sensitivity(pixels.sum(dim=2), by_word * mask, by_state * policy.normalization.state_std)


def on_objects(
    pixels: Float[Tensor, "h w"], masks: Bool[Tensor, "n h w"], target: int
) -> tuple[float, float, list[tuple[bool, float]]]:
    """The mean over the pixels of the named object and over those of all others; and whether it is the named one, and the mean,
    of each object by itself. Where the named one overlaps another, the pixels are its own. Raises ValueError for no others.
    """
    if len(masks) < 2:
        raise ValueError(f"{len(masks)} object(s): there is none beside the named one")
    named = torch.arange(len(masks)) == target
    own = masks & (named[:, None, None] | ~masks[target])
    means = [pixels[mask].mean().item() for mask in (own[target], own[~named].any(dim=0), *own)]
    return means[0], means[1], list(zip(named.tolist(), means[2:], strict=True))
