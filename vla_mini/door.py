"""The policy's door: an Observation or a Batch -> nothing, or one line that names the tensor that does not fit.

What fits is what types.py annotates: `UInt8[Tensor, "*b k c h w"]` is at once the dtype and the shape that is asked for, and
the policy says where, and how large which letter is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_mini.types import Batch, Observation


class Rule(NamedTuple):
    """What an annotation of types.py says."""

    dtype: torch.dtype | None  # None: any floating-point one
    letters: tuple[str, ...]  # one for each dimension


def rules_of(kind: type) -> dict[str, Rule]:
    """The rules of the tensors that a NamedTuple holds itself."""
    tensors = {name: annotation for name, annotation in kind.__annotations__.items() if annotation is not Observation}
    return {
        name: Rule(
            None if annotation.dtype is Float else getattr(torch, annotation.dtypes[0]),
            tuple(annotation.dim_str.removeprefix("*").split()),  # one dimension of samples, neither none nor several
        )
        for name, annotation in tensors.items()
    }


RULES = {kind: rules_of(kind) for kind in (Observation, Batch)}
MAKERS = {Observation: "vla_mini.evaluation.rollout.observe", Batch: "vla_mini.data.windows.ActionWindows"}


def admit(value: Any, kind: type, *, device: torch.device, letters: Mapping[str, int | Sequence[str]]) -> None:
    """TypeError where `value` is no `kind`; ValueError where one of its tensors is on another device, of another dtype or of
    another shape, with its name, what or where it is, and what it should be.

    - letters: how large a dimension is, or the names of its entries; others may be of any size, the same throughout
    """
    if not isinstance(value, kind):
        wanted = f"{kind.__name__}({', '.join(kind._fields)})"
        raise TypeError(f"the policy takes {wanted}, as {MAKERS[kind]} makes it, not {type(value).__name__}")
    if kind is Batch:
        admit(value.observation, Observation, device=device, letters=letters)
        letters = {**letters, "b": len(value.observation.state)}
    sizes = {letter: size if isinstance(size, int) else len(size) for letter, size in letters.items()}
    for name, rule in RULES[kind].items():
        if misfit := _misfit(getattr(value, name), rule, device, sizes, letters):
            raise ValueError(f"{kind.__name__.lower()}.{name} is {misfit}")


def _misfit(
    tensor: Any, rule: Rule, device: torch.device, sizes: dict[str, int], names: Mapping[str, int | Sequence[str]]
) -> str | None:
    """Why a tensor does not fit. `sizes` learns the letters that it did not know."""
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}, the policy takes torch.Tensor"
    if tensor.device != device:
        return f"on {tensor.device}, the policy is on {device}"
    if tensor.dtype != rule.dtype if rule.dtype else not tensor.is_floating_point():
        return f"{tensor.dtype}, the policy takes {rule.dtype or 'floating-point numbers'}"
    shape, wrong = tuple(tensor.shape), rule.letters
    if len(shape) == len(rule.letters):
        wrong = [at for at, size in zip(rule.letters, shape, strict=True) if sizes.setdefault(at, size) != size]
    if not wrong:
        return None
    wanted = ", ".join(f"{at}={sizes[at]}" if at in sizes else at for at in rule.letters)
    entries = [f"{at}: {', '.join(names[at])}" for at in wrong if not isinstance(names.get(at, 0), int)]
    return "; ".join([f"{shape}, the policy takes ({wanted})", *entries])
