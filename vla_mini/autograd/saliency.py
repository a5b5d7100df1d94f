"""Which inputs the actions depend on: observations -> size of the action chunk's gradient by pixels, words and state.

For each dimension of an action, one vector-Jacobian product with a vector that sums this dimension over the chunk, in
normalised units, so that each counts the same. The absolute values of the products are added. One product for the sum of
all dimensions would be wrong: a pixel that moves dx up and dy down by the same amount would seem to have no effect.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

import vla_mini.envs
from vla_mini.autograd.batches import select
from vla_mini.policy import INPUTS, Policy
from vla_mini.types import Observation
from vla_mini.utils.features import Features

SCENES_PER_BATCH = 20  # so that memory stays bounded


class Sensitivity(NamedTuple):
    """By how much the normalised action chunk changes, to first order, for one unit of each input."""

    pixels: Float[Tensor, "b k h w"]  # per unit of intensity (0 to 1), summed over the three colours
    words: Float[Tensor, "b l"]  # per unit of length of the word vector, in the direction with the largest effect
    state: Float[Tensor, "b s"]  # per standard deviation


class Scene(NamedTuple):
    """The first frame of an episode, with one instruction."""

    episode: int
    observation: dict[str, Any]  # images, state, instruction, as an environment returns them
    masks: np.ndarray | None  # the pixels of each object in the first camera's image, bool (objects, h, w), where known
    target: int  # index of the object that the instruction names


class Saliency(NamedTuple):
    """The sensitivity in one scene; of a policy with a history, by the newest frame."""

    scene: Scene
    image: np.ndarray  # of the policy's first camera, uint8 (h, w, 3)
    pixels: Float[Tensor, "h w"]
    words: list[tuple[str, float]]
    state: list[tuple[str, float]]
    on_target: float | None  # mean over the pixels of the named object; None where the masks are not known
    on_others: float | None  # mean over the pixels of all other objects
    objects: list[tuple[bool, float]]  # of each object, whether it is the named one, and the mean over its pixels


def saliency(policy: Policy, scenes: Sequence[Scene], observation: Observation) -> list[Saliency]:
    """The saliency in each scene; `observation` holds the policy's input for them, in the same order."""
    results = []
    for first in range(0, len(scenes), SCENES_PER_BATCH):
        part = slice(first, first + SCENES_PER_BATCH)
        found = sensitivity(policy, select(observation, part))
        for scene, pixels, words, state in zip(scenes[part], found.pixels[:, 0], found.words, found.state, strict=True):
            several = scene.masks is not None and len(scene.masks) > 1
            means = on_objects(pixels, torch.from_numpy(scene.masks), scene.target) if several else (None, None, [])
            image = scene.observation["images"][policy.features.cameras[0]]
            tokens = policy.language.tokens_of(scene.observation["instruction"])
            by_word = list(zip(tokens, words.tolist(), strict=False))  # `words` is padded
            newest = state[: policy.features.state_size]
            by_state = list(zip(policy.features.state, newest.tolist(), strict=True))
            results.append(Saliency(scene, image, pixels, by_word, by_state, *means))
    return results


def sensitivity(policy: Policy, observation: Observation, *, action: int | slice = slice(None), seed: int = 0) -> Sensitivity:
    """The sensitivity at each sample; zero by the inputs in `policy.ablate`.

    - action: which of the chunk's actions count
    - seed: for heads that sample
    """
    images, words, mask, state = (tensor.detach() for tensor in policy.prepare(observation))
    inputs = [tensor.requires_grad_() for tensor in (images, words, state)]
    used = [tensor.detach() if name in policy.ablate else tensor for name, tensor in zip(INPUTS, inputs, strict=True)]
    noise = policy.draw_noise(len(state), torch.Generator(policy.device).manual_seed(seed))
    actions = policy.normalization.action(policy.predict(*used, noise, word_mask=mask))
    pixels, by_word, by_state = torch.zeros_like(images), words.new_zeros(words.shape[:2]), torch.zeros_like(state)
    for dimension in range(actions.shape[-1]):
        vector = torch.zeros_like(actions)
        vector[:, action, dimension] = 1
        products = torch.autograd.grad(actions, inputs, vector, retain_graph=True, materialize_grads=True)
        pixels += products[0].abs()
        by_word += products[1].norm(dim=-1)
        by_state += products[2].abs()
    return Sensitivity(pixels.sum(dim=2), by_word, by_state * policy.normalization.state_std)


@torch.no_grad()
def attention_maps(policy: Policy, observation: Observation) -> Float[Tensor, "b k h w"] | None:
    """How much the trunk's queries attend to each place of the images: the mean over the queries of their probabilities,
    enlarged to the images' size. None of a trunk that has no attention maps."""
    images, words, mask, state = policy.prepare(observation)
    attention = policy.context(images, words, state, mask).attention
    if attention is None:
        return None
    rows, columns = policy.vision.grid
    maps = rearrange(attention.exp().mean(dim=1), "b (k h w) -> b k h w", h=rows, w=columns)
    return F.interpolate(maps, images.shape[-2:], mode="bilinear")


def on_objects(
    pixels: Float[Tensor, "h w"], masks: Bool[Tensor, "n h w"], target: int
) -> tuple[float, float, list[tuple[bool, float]]]:
    """The mean over the named object's pixels, over the other objects' pixels, and of each object (whether named, its mean).

    Pixels that the named object shares with another count as the named object's. Raises ValueError for a single object.
    """
    if len(masks) < 2:
        raise ValueError(f"{len(masks)} object(s): the named object cannot be compared with others")
    named = torch.arange(len(masks)) == target
    own = masks & (named[:, None, None] | ~masks[target])
    means = [pixels[mask].mean().item() for mask in (own[target], own[~named].any(dim=0), *own)]
    return means[0], means[1], list(zip(named.tolist(), means[2:], strict=True))


def env_scenes(env_id: str, *, scenes: int, seed: int = 0) -> list[Scene]:
    """The first frames of validation episodes 0, 1, ..., each with its instruction and, if possible, with another object named.

    An environment without the check `swapped` gives each scene once. The masks are those of the objects' first positions.
    """
    spec, env = vla_mini.envs.get_spec(env_id), vla_mini.envs.make(env_id)
    found = []
    for episode in range(scenes):
        for instruction in ("named", "swapped") if "swapped" in spec.checks else ("named",):
            options = {"purpose": "validation", "seed": seed, "instruction": instruction}
            observation, info = env.reset(seed=episode, options=options)
            masks = env.unwrapped.object_masks() if spec.has_object_masks else None
            found.append(Scene(episode, observation, masks, int(info["target"]) if spec.has_object_masks else 0))
    env.close()
    return found


def data_scenes(observation: Observation, instructions: Sequence[str], *, features: Features, scenes: int) -> list[Scene]:
    """Without an environment: frames of a dataset, each with its own instruction and with another sample's."""
    others = {own: next((other for other in instructions if other != own), own) for own in set(instructions)}
    found = []
    for index, own in enumerate(instructions[:scenes]):
        newest = observation.images[index, : len(features.cameras)].permute(0, 2, 3, 1).numpy()
        images, state = dict(zip(features.cameras, newest, strict=True)), observation.state[index, : features.state_size]
        for instruction in dict.fromkeys((own, others[own])):
            frame = {"images": images, "state": state.numpy(), "instruction": instruction}
            found.append(Scene(index, frame, masks=None, target=0))
    return found
