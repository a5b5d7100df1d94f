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
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from vla_mini.autograd.graph import LOSS
from vla_mini.play.trace import PIXELS, STATE, Step
from vla_mini.policy import Policy

MAX_MAP = 64, 64  # cells of a map
MAX_MATRIX = 32, 64  # rows, columns
MAX_BARS = 16
# Operations whose gradients may have tokens and channels exchanged: no image tokens where both are equally many.
EXCHANGED = {"T", "Transpose", "Permute", "ReshapeAlias", "Bmm", "Mm", "Expand"}


class Facts(NamedTuple):
    """What the sizes of a gradient mean, of one sample of one policy."""

    image_size: tuple[int, int]
    grid: tuple[int, int]
    num_tokens: int  # image tokens, of all cameras
    num_queries: int  # attention maps
    width: int  # of the trunk's tokens
    words: list[str]  # padding included
    vocabulary: dict[int, str]
    state: list[str]
    action: list[str]


def facts_of(policy: Policy, tokens: Int64[Tensor, " l"]) -> Facts:
    """`tokens`: of the sample's instruction."""
    grid, tokenizer, trunk = policy.vision.grid, policy.language.tokenizer, policy.trunk
    return Facts(
        image_size=policy.features.image_size,
        grid=grid,
        num_tokens=policy.history * len(policy.features.cameras) * grid[0] * grid[1],
        num_queries=trunk.num_queries,
        width=trunk.width,
        words=[tokenizer.id_to_token(token) for token in tokens.tolist()],
        vocabulary={index: word for word, index in tokenizer.get_vocab().items()},
        state=list(policy.letters["s"]),
        action=list(policy.features.action),
    )


def picture(step: Step, facts: Facts) -> dict[str, Any] | None:
    """That of the first gradient that arrives; None for a single number, and for one that is not finite."""
    gradient = next((gradient for gradient in step.gradients if gradient is not None), None)
    if gradient is None or gradient.numel() == 1 or not gradient.isfinite().all():
        return None
    gradient = gradient.float().cpu()
    if step.parameter:
        return by_row(step, gradient, facts) or matrix(
            "value of the parameter", gradient.flatten(1) if gradient.ndim > 1 else gradient
        )
    for draw in (by_pixel, by_attention, by_image_token, by_word, by_state, by_action):
        if drawn := draw(step, gradient, facts):
            return drawn
    return matrix("number", gradient)


# ---- what a gradient is by; None where it is by something else


def by_pixel(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    """Of the images, "... 3 h w", or of a feature map on the tokens' grid, channels first or last."""
    if step.component not in ("vision", PIXELS) or gradient.ndim < 4:
        return None
    if gradient.shape[-3:] == (3, *facts.image_size):
        return as_maps("at each pixel, its three colours added", gradient.flatten(0, -4).abs().sum(dim=1))
    if gradient.ndim != 4 or facts.grid not in (gradient.shape[2:], gradient.shape[1:3]):
        return None
    channels = 1 if gradient.shape[2:] == facts.grid else 3
    return as_maps("at each place of the feature map, all channels together", gradient.norm(dim=channels))


def by_attention(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    fits = gradient.numel() == facts.num_queries * facts.num_tokens and gradient.shape[-1] == facts.num_tokens != facts.width
    if not (step.attention or (fits and step.component.startswith(("trunk", "auxiliary")))):
        return None
    maps = rearrange(gradient.abs(), "... (k h w) -> (...) h (k w)", h=facts.grid[0], w=facts.grid[1])
    return as_maps("by the attention to each place, one map for each query", maps)


def by_image_token(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    fits = (
        gradient.ndim > 1
        and gradient.shape[-2] == facts.num_tokens
        and gradient.numel() == facts.num_tokens * gradient.shape[-1]
    )
    if facts.num_tokens == gradient.shape[-1] and step.operation in EXCHANGED:
        return None
    if not fits or step.component not in ("vision", "projection.vision", "trunk"):
        return None
    maps = rearrange(gradient.norm(dim=-1).flatten(), "(k h w) -> k h w", h=facts.grid[0], w=facts.grid[1])
    return as_maps("at each image token, all channels together", maps)


def by_word(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    length = len(facts.words)
    fits = gradient.ndim > 1 and gradient.shape[-2] == length and gradient.numel() == length * gradient.shape[-1]
    if not fits or step.component not in ("language", "projection.language"):
        return None
    return bars("by the vector of each word", facts.words, gradient.norm(dim=-1).flatten())


def by_row(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    """Of a table of word vectors: the rows that are not zero."""
    if step.component != "language" or gradient.ndim != 2 or len(gradient) != len(facts.vocabulary):
        return None
    sizes = gradient.norm(dim=1)
    rows = sizes.nonzero().flatten().tolist()
    others = len(sizes) - len(rows)
    caption = f"of each row of the table; the rows of the {others} other words are zero"
    return bars(caption, [facts.vocabulary[row] for row in rows], sizes[rows])


def by_state(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    if step.component not in ("state", STATE) or gradient.shape != (1, len(facts.state)):
        return None
    return bars("by each number of the state", facts.state, gradient[0].abs())


def by_action(step: Step, gradient: Tensor, facts: Facts) -> dict[str, Any] | None:
    if step.component not in ("action", LOSS) or gradient.ndim < 3 or gradient.shape[-1] != len(facts.action):
        return None
    caption = "number of the chunk (a row is an action, the first on top)"
    return matrix(caption, gradient.flatten(0, -3)[0], facts.action)


# ---- kinds of pictures


def as_maps(caption: str, maps: Float[Tensor, "p h w"]) -> dict[str, Any]:
    small = pooled(maps, MAX_MAP)
    return {
        "kind": "maps",
        "caption": f"Size of the gradient {caption}" + _of_several(maps, small),
        "panels": len(small),
        **_encoded(small),
    }


def matrix(caption: str, values: Float[Tensor, "*r c"], labels: list[str] | None = None) -> dict[str, Any]:
    rows = values.reshape(1, -1, values.shape[-1])
    small = pooled(rows, MAX_MATRIX)
    return {
        "kind": "matrix",
        "caption": f"The gradient by each {caption}" + _of_several(rows, small),
        "labels": labels,
        **_encoded(small),
    }


def bars(caption: str, labels: list[str], values: Float[Tensor, " n"]) -> dict[str, Any]:
    kept = slice(MAX_BARS)
    more = f" (the first {MAX_BARS} of {len(labels)})" if len(labels) > MAX_BARS else ""
    return {
        "kind": "bars",
        "caption": f"Size of the gradient {caption}{more}",
        "labels": labels[kept],
        "values": values[kept].tolist(),
    }


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
