"""The types that flow through the package: Observation and Batch go in, Context is in between, actions come out.

The legend of shape letters, used in every signature, einops pattern and docstring:

    b batch · k cameras · c h w image · n image tokens · l words · s state · m context tokens · q queries
    d width · t action horizon · a action size

Image tokens n are those of one camera in a vision part, and of all cameras from the trunk on; d is the width of the part in
question. Elsewhere n counts what the docstring says (frames, chunks).

Where a policy observes `history` frames, each past one counts as further cameras and further state features: k and s then
run over the newest frame first, and over the one before it next.

All are NamedTuples of tensors: they collate, pin and move between devices in torch and Lightning without help.
Floating-point fields are annotated `Float`, so that float64 tests pass through the same code.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vla_mini.utils.features import Features, FeatureStatistics, Statistics

__all__ = ["Batch", "Context", "FeatureStatistics", "Features", "Observation", "Statistics"]


class Observation(NamedTuple):
    """Camera images, the tokenized instruction and the proprioceptive state. Images are bytes until the policy uses them."""

    images: UInt8[Tensor, "*b k c h w"]  # RGB, 0..255
    tokens: Int64[Tensor, "*b l"]
    token_mask: Bool[Tensor, "*b l"]  # True = a real word, False = padding
    state: Float[Tensor, "*b s"]  # raw units


class Batch(NamedTuple):
    """Observations with the actions to imitate: those of the demonstrations from there on."""

    observation: Observation
    actions: Float[Tensor, "*b t a"]  # raw units
    is_pad: Bool[Tensor, "*b t"]  # True = past the episode's end
    targets: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple) "*b ..." in raw units, of auxiliary losses; zeros = none


class Context(NamedTuple):
    """What a trunk computes from image, word and state tokens: the only input of action heads."""

    tokens: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]  # True = attend
    attention: Float[Tensor, "b q n"] | None = None  # log-probabilities over the image tokens, where the trunk has queries
    layers: tuple[tuple[Tensor, Tensor], ...] = ()  # keys and values of each layer, for a head that attends to them; or none
