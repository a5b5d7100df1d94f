"""What flows through the house: observations and batches go in, context in between, actions come out.

The legend of shape letters, used in every signature, einops pattern and docstring:

    b batch · k cameras · c h w image · n image tokens · l words · s state · m context tokens · q attended positions
    d width · t action horizon · a action size · g keyframe size

Where a policy sees `history` frames, each past one counts as further cameras and further state features: k and s then run over
the newest frame first, and over the one before it next.

All are NamedTuples of tensors: they collate, pin and move between devices in torch and Lightning without help.
Floating-point fields are annotated `Float`, so that float64 tests pass through the same code.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vla_mini.features import Features, Moments, Statistics

__all__ = ["Batch", "Context", "Features", "Moments", "Observation", "Statistics"]


class Observation(NamedTuple):
    """What the robot sees, is told and feels. Images travel as bytes and become floats inside the policy."""

    images: UInt8[Tensor, "*b k c h w"]  # RGB, 0..255
    tokens: Int64[Tensor, "*b l"]
    token_mask: Bool[Tensor, "*b l"]  # True = a real word
    state: Float[Tensor, "*b s"]  # raw units


class Batch(NamedTuple):
    """Observations with the actions that an expert took from there on."""

    observation: Observation
    actions: Float[Tensor, "*b t a"]  # raw units
    is_pad: Bool[Tensor, "*b t"]  # True = past the episode's end
    keyframe: Float[Tensor, "*b g"]  # raw units: where the robot is when the gripper next closes
    has_keyframe: Bool[Tensor, "*b"]


class Context(NamedTuple):
    """What a trunk makes of image, word and state tokens; all that action heads and auxiliary losses see."""

    tokens: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]  # True = attend
    positions: Float[Tensor, "b q 2"]  # in [-1, 1]: where in the image each query looks (q = 0 where a trunk has none)
    attention: Float[Tensor, "b q n"]  # how much it looks at each image token, as log-probabilities
