"""The types that flow through the package: Observation and Batch go in, Context is in between, actions come out.

The legend of shape letters, used in every signature, einops pattern and docstring:

    b batch · k cameras · c h w image · n image tokens · l words · s state · m context tokens · q queries
    d width · t action horizon · a action size

Image tokens n are those of one camera in a vision part, and of all cameras from the trunk on; d is the width of the part in
question. Elsewhere n counts what the docstring says (frames, chunks).

Where a policy observes `history` frames, each past one counts as further cameras and further state features: k and s then
run over the newest frame first, and over the one before it next.

All are NamedTuples of tensors: they collate, pin and move between devices in torch and Lightning without help.
Floating-point fields are annotated `Float`, so that float64 tests pass through the same code. `check_inputs` holds a policy's
inputs against these annotations, which give the dtype and the letters of the shape; the policy gives the device and the sizes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vla_mini.utils.features import Features, FeatureStatistics, Statistics, Units

__all__ = ["Batch", "Context", "FeatureStatistics", "Features", "Observation", "Prefix", "Statistics", "Units", "check_inputs"]


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


class Prefix(NamedTuple):
    """What a chunk is to begin with: the actions of the chunk before it, which is executed while this one is computed."""

    actions: Float[Tensor, "b t a"]
    weights: Float[Tensor, "b t"]  # 1 = the action is fixed, 0 = it is free


SOURCES = {Observation: "vla_mini.acting.observe", Batch: "vla_mini.data.chunks.ActionChunkDataset"}


class Rule(NamedTuple):
    """The dtype and shape of an annotation of types.py."""

    dtype: torch.dtype | None  # None: any floating-point one
    letters: tuple[str, ...]  # one for each dimension; exactly one batch dimension


def rules_of(kind: type) -> dict[str, Rule]:
    """The rules of the tensors that a NamedTuple holds itself, by `kind.field`."""
    return {
        f"{kind.__name__.lower()}.{name}": Rule(
            None if hint.dtype is Float else getattr(torch, hint.dtypes[0]), tuple(hint.dim_str.removeprefix("*").split())
        )
        for name, hint in kind.__annotations__.items()
        if name not in ("observation", "targets")
    }


RULES = {Observation: rules_of(Observation), Batch: rules_of(Observation) | rules_of(Batch)}


def check_inputs(value: Any, kind: type, *, device: torch.device, letters: Mapping[str, int | Sequence[str]]) -> None:
    """TypeError where `value` is not a `kind`; ValueError where one of its tensors is on another device, of another dtype or of
    another shape, with its name, what it is and what it should be.

    - letters: the size of a dimension, or the names of its entries; other letters may have any size, the same throughout
    """
    _check_type(value, kind)
    observation = value.observation if kind is Batch else value
    _check_type(observation, Observation)
    sizes = {letter: size if isinstance(size, int) else len(size) for letter, size in letters.items()}
    tensors = {"batch": value, "observation": observation}
    for name, (dtype, shape) in RULES[kind].items():
        holder, _, field = name.partition(".")
        tensor = getattr(tensors[holder], field)
        fits = isinstance(tensor, Tensor) and tensor.device == device and tensor.ndim == len(shape)
        fits = fits and (tensor.dtype == dtype if dtype else tensor.is_floating_point())
        # A list, so that each letter gets a size for the message.
        if not fits or any([sizes.setdefault(at, size) != size for at, size in zip(shape, tensor.shape, strict=True)]):
            raise ValueError(f"{name} is {_mistake(tensor, Rule(dtype, shape), device, sizes, letters)}")
    for name, tensor in value.targets.items() if kind is Batch else ():
        if tensor.device != device or len(tensor) != sizes["b"]:
            found = f"{tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"batch.targets[{name!r}] is {found}, the policy takes (b={sizes['b']}, ...) on {device}")


def _check_type(value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        expected = f"{kind.__name__}({', '.join(kind._fields)})"
        raise TypeError(f"the policy takes {expected}, such as {SOURCES[kind]} makes, not {type(value).__name__}")


def _mistake(
    tensor: Any, rule: Rule, device: torch.device, sizes: Mapping[str, int], names: Mapping[str, int | Sequence[str]]
) -> str:
    """What is wrong with a tensor that does not fit, and what would be right."""
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}, the policy takes torch.Tensor"
    if tensor.device != device:
        return f"on {tensor.device}, the policy is on {device}"
    if tensor.dtype != rule.dtype if rule.dtype else not tensor.is_floating_point():
        return f"{tensor.dtype}, the policy takes {rule.dtype or 'floating-point numbers'}"
    shape, wrong = tuple(tensor.shape), rule.letters
    if len(shape) == len(wrong):
        wrong = [letter for letter, size in zip(rule.letters, shape, strict=True) if sizes[letter] != size]
    expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in rule.letters)
    entries = [f"{letter}: {', '.join(names[letter])}" for letter in wrong if not isinstance(names.get(letter, 0), int)]
    return "; ".join([f"{shape}, the policy takes ({expected})", *entries])
