"""Checks of a policy's inputs: an Observation or a Batch -> nothing, or one line that names the tensor that does not fit.

What fits is what types.py annotates: `UInt8[Tensor, "*b k c h w"]` gives the dtype and the letters of the shape; the policy
gives the device and the sizes of the letters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_mini.types import Batch, Observation

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
