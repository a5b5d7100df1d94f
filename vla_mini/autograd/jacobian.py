"""The whole Jacobian of the action chunk, computed twice: by torch.func.jacrev, and row by row from vector-Jacobian products.

    rows      the chunk's t x a values, in raw units
    columns   the state's s values, then the k x 3 x grid x grid values of a reduced image: an image so coarse that its
              Jacobian can be had, added to the real one, block by block

Both give the same numbers. What a policy needs is neither: training and saliency multiply the Jacobian by a vector, which
takes one backward pass and no matrix at all.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vla_mini.autograd.saved import peak_memory
from vla_mini.policy import Policy
from vla_mini.types import Observation

REPEATS = 3  # the quickest counts


class Jacobian(NamedTuple):
    """Seconds are of the quickest of a few runs; peak bytes are those of tensors alive at once."""

    matrix: Float[Tensor, "rows columns"]
    max_abs_difference: float  # between the two ways
    jacrev_seconds: float
    vjp_seconds: float  # row by row
    product_seconds: float  # one product with one vector
    jacrev_peak_bytes: int
    vjp_peak_bytes: int
    product_peak_bytes: int


def jacobian(policy: Policy, observation: Observation, *, grid: int = 8, seed: int = 0) -> Jacobian:
    """The Jacobian at the first sample of `observation`, both ways. Raises ValueError for a grid finer than the image."""
    if not 1 <= grid <= min(policy.features.image_size):
        raise ValueError(f"grid={grid}: the image is {policy.features.image_size}")
    function, point = chunk_function(policy, observation, grid=grid, seed=seed)
    one = torch.ones_like(function(point))

    def by_jacrev() -> Tensor:
        return torch.func.jacrev(function)(point)

    def by_products() -> Tensor:
        return jacobian_by_rows(function, point)

    def product() -> Tensor:
        leaf = point.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, one, materialize_grads=True)[0]

    ways = (by_jacrev, by_products, product)
    (matrix, rows, _), seconds = zip(*map(_quickest, ways), strict=True)
    peaks = map(peak_memory, ways)  # runs of their own: counting takes time
    return Jacobian(matrix, (matrix - rows).abs().max().item(), *seconds, *peaks)


def chunk_function(
    policy: Policy, observation: Observation, *, grid: int, seed: int = 0
) -> tuple[Callable[[Float[Tensor, " columns"]], Float[Tensor, " rows"]], Float[Tensor, " columns"]]:
    """The function (state and reduced image) -> chunk, flat to flat, and the point that is the observation itself.

    An input that the policy never sees changes nothing.
    """
    images, words, mask, state = (tensor[:1].detach() for tensor in policy.prepare(observation))
    generator = torch.Generator(policy.device)
    cameras, size = images.shape[1], images.shape[-2:]

    def function(point: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        state_values, reduced = point.split([state.shape[1], cameras * 3 * grid * grid])
        blocks = F.interpolate(reduced.reshape(cameras, 3, grid, grid), size=size, mode="nearest")
        shown = images if "images" in policy.blind else images + blocks
        felt = state if "state" in policy.blind else state_values[None]
        generator.manual_seed(seed)  # a head that draws noise draws the same each time
        return policy.predict(shown, words, felt, generator, word_mask=mask).flatten()

    return function, torch.cat([state[0], state.new_zeros(cameras * 3 * grid * grid)])


def jacobian_by_rows(
    function: Callable[[Float[Tensor, " columns"]], Float[Tensor, " rows"]], point: Float[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """One forward pass, then one product for each row, each with a vector that is 1 there and 0 elsewhere."""
    point = point.clone().requires_grad_()
    values = function(point)
    units = torch.eye(len(values), dtype=values.dtype, device=values.device)
    products = (torch.autograd.grad(values, point, unit, retain_graph=True, materialize_grads=True) for unit in units)
    return torch.stack([product for (product,) in products])


def _quickest(way: Callable[[], Tensor]) -> tuple[Tensor, float]:
    way()  # the first pass also pays for setting up
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = way()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)
