"""A gradient as a picture, where its entries have a place: pixels, image tokens, attention, words, actions; else as a matrix.

gradient, Facts -> {"kind", "caption", ...} for static/pictures.js, or None for a single number:

    maps     size without sign, from 0 to the largest: `panels` maps of rows x columns
    matrix   values with their sign, from minus the largest to the largest: rows x columns, `labels` of the columns
    bars     size without sign: `values` by `labels`

The numbers of maps and matrices are bytes in base64, -127 to 127 = -largest to largest, so that hundreds of steps stay small.
"""

import base64
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vla_mini.play.trace import PIXELS, STATE, Step
from vla_mini.policy import Policy

MAX_MAP = 64, 64  # cells of a map
MAX_MATRIX = 32, 64  # rows, columns
MAX_BARS = 16
# Operations whose gradients have rows and columns exchanged, or are a weight's: no image tokens where both sides are equal.
EXCHANGED = {"T", "Transpose", "Permute", "ReshapeAlias", "Bmm", "Mm", "Expand", "AccumulateGrad"}


class Facts(NamedTuple):
    """What the sizes of a gradient may mean in one policy."""

    image_size: tuple[int, int]
    num_cameras: int  # in all frames of history
    grid: tuple[int, int]
    width: int  # of the trunk's tokens
    words: list[str]  # of the sample, padding included
    vocabulary: dict[int, str]
    state: list[str]
    action: list[str]


def facts_of(policy: Policy, words: list[str]) -> Facts:
    cameras, vocabulary = policy.history * len(policy.features.cameras), policy.language.tokenizer.get_vocab()
    names = {index: word for word, index in vocabulary.items()}
    state, action = list(policy.letters["s"]), list(policy.features.action)
    return Facts(policy.features.image_size, cameras, policy.vision.grid, policy.trunk.width, words, names, state, action)


def picture(step: Step, facts: Facts) -> dict[str, Any] | None:
    """That of the first gradient that arrives; None for a single number, and for one that is not finite."""
    gradient = next((gradient for gradient in step.gradients if gradient is not None), None)
    if gradient is None or gradient.numel() == 1 or not gradient.isfinite().all():
        return None
    gradient, grid = gradient.float().cpu(), facts.grid
    shape, cells = tuple(gradient.shape), facts.grid[0] * facts.grid[1] * facts.num_cameras
    sees = step.component in ("vision", "projection.vision", PIXELS)
    if step.component == STATE or (step.component == "state" and shape[-1:] == (len(facts.state),) and gradient.numel() == shape[-1]):
        return bars("each number of the state", facts.state, gradient.flatten().abs())
    if step.parameter is None and sees and gradient.ndim >= 4 and shape[-3] == 3 and shape[-2:] == facts.image_size:
        maps = rearrange(gradient, "... c h w -> (...) c h w").abs().sum(dim=1)
        return as_maps("each pixel, its three colours added", maps)
    if step.parameter is None and sees and gradient.ndim == 4 and shape[2:] == grid:
        return as_maps("each place of the feature map, all channels together", gradient.norm(dim=1))
    if step.parameter is None and sees and gradient.ndim == 4 and shape[1:3] == grid:
        return as_maps("each place of the feature map, all channels together", gradient.norm(dim=3))
    if step.attention or (step.component == "trunk" and shape[-1] == cells != facts.width and step.parameter is None):
        maps = rearrange(gradient, "... (k h w) -> (...) h (k w)", h=grid[0], w=grid[1])
        return as_maps("each place that a query attends to, one map for each query", maps.abs())
    if gradient.ndim >= 2 and shape[-2] == cells and gradient.numel() == cells * shape[-1] and is_tokens(step, facts):
        maps = rearrange(gradient.norm(dim=-1).flatten(), "(k h w) -> k h w", h=grid[0], w=grid[1])
        return as_maps("each image token, all channels together", maps)
    if step.component in ("language", "projection.language") and gradient.ndim >= 2:
        if step.parameter is None and gradient.numel() == len(facts.words) * shape[-1] and shape[-2] == len(facts.words):
            return bars("the vector of each word", facts.words, gradient.norm(dim=-1).flatten())
        if step.parameter and shape[0] == len(facts.vocabulary):
            sizes = gradient.norm(dim=1)
            rows = sizes.nonzero().flatten().tolist()
            caption = f"the rows of the table that are not zero, {len(rows)} of {len(sizes)}: words of this sample"
            return bars(caption, [facts.vocabulary[row] for row in rows], sizes[rows])
    if step.component in ("action", "loss") and gradient.ndim >= 2 and shape[-1] == len(facts.action):
        rows = rearrange(gradient, "... t a -> (...) t a")[0]
        return matrix("each action of the chunk (rows, the next one on top)", rows, facts.action)
    if step.component in ("action", "loss") and gradient.ndim == 2 and shape[0] == 1 and step.parameter is None:
        return matrix("each number", gradient)
    place = "each value of the parameter" if step.parameter else "each number"
    return matrix(place, gradient.reshape(-1, shape[-1]) if gradient.ndim < 3 or not step.parameter else gradient.flatten(1))


def is_tokens(step: Step, facts: Facts) -> bool:
    """Whether the last but one dimension is that of the image tokens, and not another of the same size."""
    inside = step.component in ("vision", "projection.vision", "trunk") and step.parameter is None
    return inside and (step.operation not in EXCHANGED or facts.width != facts.grid[0] * facts.grid[1] * facts.num_cameras)


def as_maps(caption: str, maps: Float[Tensor, "p h w"]) -> dict[str, Any]:
    small = pooled(maps, MAX_MAP)
    return {"kind": "maps", "caption": caption + _of_several(maps, small), "panels": len(small), **_encoded(small)}


def matrix(caption: str, values: Float[Tensor, "r c"], labels: list[str] | None = None) -> dict[str, Any]:
    small = pooled(values[None], MAX_MATRIX)
    return {"kind": "matrix", "caption": caption + _of_several(values[None], small), "labels": labels, **_encoded(small)}


def bars(caption: str, labels: list[str], values: Float[Tensor, " n"]) -> dict[str, Any]:
    kept = slice(MAX_BARS)
    more = f" (the first {MAX_BARS} of {len(labels)})" if len(labels) > MAX_BARS else ""
    return {"kind": "bars", "caption": caption + more, "labels": labels[kept], "values": values[kept].tolist()}


def pooled(maps: Float[Tensor, "p h w"], bounds: tuple[int, int]) -> Float[Tensor, "p h2 w2"]:
    """At most so many rows and columns: of each cell the value that is largest without its sign."""
    size = [min(bound, length) for bound, length in zip(bounds, maps.shape[1:], strict=True)]
    _, index = F.adaptive_max_pool2d(maps.abs(), size, return_indices=True)
    return maps.flatten(1).gather(1, index.flatten(1)).unflatten(1, size)


def _of_several(maps: Tensor, small: Tensor) -> str:
    if maps.shape == small.shape:
        return ""
    return f" ({maps.shape[-2]} x {maps.shape[-1]} values; a cell shows the largest of several)"


def _encoded(maps: Float[Tensor, "p h w"]) -> dict[str, Any]:
    largest = maps.abs().max().item()
    scaled = (maps / (largest or 1.0) * 127).round().to(torch.int8)
    data = base64.b64encode(scaled.contiguous().numpy().tobytes()).decode()
    return {"rows": maps.shape[-2], "columns": maps.shape[-1], "largest": largest, "data": data}
