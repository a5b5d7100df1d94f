"""What the action hangs on: an observation -> vector-Jacobian products of the action chunk by pixels, by words, by state.

The vectors: for each dimension of an action, one that adds up that dimension over the chunk, in normalised units (so that
all dimensions weigh alike). The magnitudes of their products are added. A vector of its own for each dimension, since in a
common sum a pixel that moves dx up and dy down would seem to do nothing.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import vla_mini.envs
from vla_mini.policy import Policy
from vla_mini.types import Observation


class Scene(NamedTuple):
    """How an episode begins, under one instruction."""

    episode: int
    observation: dict[str, Any]  # images, state, instruction: as the environment gives them
    masks: np.ndarray | None  # the pixels of each object in the first camera's image, bool (objects, h, w), where known
    target: int  # which of them the instruction names


class Sensitivity(NamedTuple):
    """How far the normalised chunk of actions moves, to first order, for a unit of each input."""

    pixels: Float[Tensor, "b k h w"]  # of intensity, 0 to 1; added over the three colours
    words: Float[Tensor, "b l"]  # of length of the word vector, in the direction that matters most
    state: Float[Tensor, "b s"]  # of standard deviation


def sensitivity(policy: Policy, observation: Observation, *, seed: int = 0) -> Sensitivity:
    """The products above for each sample; `seed` is for heads that draw noise."""
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(observation))
    inputs = [tensor.requires_grad_() for tensor in (images, words, state)]
    generator = torch.Generator(policy.device).manual_seed(seed)
    actions = policy.normalization.action(policy.predict(*inputs, generator, word_mask=mask))
    pixels, by_word, by_state = torch.zeros_like(images), words.new_zeros(words.shape[:2]), torch.zeros_like(state)
    for dimension in range(actions.shape[-1]):
        vector = torch.zeros_like(actions)
        vector[..., dimension] = 1
        products = torch.autograd.grad(actions, inputs, vector, retain_graph=True, materialize_grads=True)
        pixels += products[0].abs()
        by_word += products[1].norm(dim=-1)
        by_state += products[2].abs()
    return Sensitivity(pixels.sum(dim=2), by_word * mask, by_state * policy.normalization.state_std)


def on_objects(pixels: Float[Tensor, "h w"], masks: Bool[Tensor, "n h w"], target: int) -> tuple[float, float]:
    """The mean over the pixels of the named object, and over those of all others. Raises ValueError for no others."""
    if len(masks) < 2:
        raise ValueError(f"{len(masks)} object(s): there is none beside the named one")
    others = masks[torch.arange(len(masks)) != target].any(dim=0) & ~masks[target]
    return pixels[masks[target]].mean().item(), pixels[others].mean().item()


def start_scenes(env_id: str, *, scenes: int, seed: int = 0) -> list[Scene]:
    """How validation episodes 0, 1, ... begin, each under its own instruction and with another object named.

    An environment that cannot name another object gives each scene once. Start frames alone: there the masks are true.
    """
    env = vla_mini.envs.make(env_id)
    swaps = "swapped" in getattr(env.unwrapped, "grounding_checks", ())
    find_masks = getattr(env.unwrapped, "object_masks", lambda: None)
    found = []
    for episode in range(scenes):
        for instruction in ("named", "swapped") if swaps else ("named",):
            options = {"purpose": "validation", "seed": seed, "instruction": instruction}
            observation, info = env.reset(seed=episode, options=options)
            found.append(Scene(episode, observation, find_masks(), int(info.get("target", 0))))
    env.close()
    return found
