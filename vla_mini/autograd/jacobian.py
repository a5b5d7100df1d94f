"""The Jacobian of the action chunk, computed in two ways: by torch.func.jacrev, and by one vector-Jacobian product per row.

    rows      the chunk's t x a values, in raw units
    columns   the state's s values, then the k x 3 x grid x grid values of a coarse image, which is added to the real one
              block by block: the Jacobian by every pixel would be too large

Both ways give the same numbers. A policy needs neither: training and saliency multiply the Jacobian by a vector, which takes
one backward pass and no matrix.
"""

import timeit
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vla_mini.autograd.inference import peak_memory
from vla_mini.policy import Policy
from vla_mini.types import Observation

REPEATS = 3  # the fastest run counts


class Jacobian(NamedTuple):
    """Seconds are those of the fastest of a few runs; peak bytes are those of tensors alive at once."""

    matrix: Float[Tensor, "rows columns"]
    max_abs_difference: float  # between the two ways
    jacrev_seconds: float
    vjp_seconds: float  # row by row
    product_seconds: float  # one product with one vector
    jacrev_peak_bytes: int
    vjp_peak_bytes: int
    product_peak_bytes: int


def jacobian(policy: Policy, observation: Observation, *, grid: int = 8, seed: int = 0) -> Jacobian:
    """The Jacobian at the first sample of `observation`, in both ways. Raises ValueError for a grid finer than the image."""
    if not 1 <= grid <= min(policy.features.image_size):
        raise ValueError(f"grid={grid}: the image is {policy.features.image_size}")
    function, point = chunk_function(policy, observation, grid=grid, seed=seed)
    ones = torch.ones_like(function(point))
    ways = (
        lambda: torch.func.jacrev(function)(point),
        lambda: torch.autograd.functional.jacobian(function, point),  # one forward pass, then one product for each row
        lambda: torch.autograd.functional.vjp(function, point, ones)[1],
    )
    matrix, rows, _ = (way() for way in ways)  # also warms up
    seconds = (min(timeit.repeat(way, number=1, repeat=REPEATS)) for way in ways)
    peaks = map(peak_memory, ways)  # measured in separate runs, since counting takes time
    return Jacobian(matrix, (matrix - rows).abs().max().item(), *seconds, *peaks)


def chunk_function(
    policy: Policy, observation: Observation, *, grid: int, seed: int = 0
) -> tuple[Callable[[Float[Tensor, " columns"]], Float[Tensor, " rows"]], Float[Tensor, " columns"]]:
    """The function from (state, coarse image) to the chunk, vector to vector, and the point at which it is `observation`.

    An input in `policy.ablate` has no effect on the chunk. A head that samples starts from the same noise at each call.
    """
    images, words, mask, state = (tensor[:1].detach() for tensor in policy.prepare(observation))
    noise = policy.draw_noise(1, torch.Generator(policy.device).manual_seed(seed))
    cameras, size = images.shape[1], images.shape[-2:]

    def function(point: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        state_values, coarse = point.split([state.shape[1], cameras * 3 * grid * grid])
        blocks = F.interpolate(coarse.reshape(cameras, 3, grid, grid), size=size, mode="nearest")
        image_input = images if "images" in policy.ablate else images + blocks
        state_input = state if "state" in policy.ablate else state_values[None]
        return policy.predict(image_input, words, state_input, noise, word_mask=mask).flatten()

    return function, torch.cat([state[0], state.new_zeros(cameras * 3 * grid * grid)])
