"""What an answer is compared with: autograd and central differences, in float64, for sizes that differ from case to case.

random tensors ── the student's function ── found ─┐
               └─ the right one ─────────── right ─┴─ the first wrong element, by how much it is wrong, where to look
"""

import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from math import isfinite, prod, sqrt
from typing import Any

import torch
from torch import Tensor

SIZES = (3, 5, 7, 11, 13)  # primes, so that a factor such as 1/15 tells which sizes it is made of
STEP = 1e-6  # of central differences


class WrongAnswerError(Exception):
    """An answer is not right: what is wrong and, in a line of its own, where to look."""

    def __init__(self, mistake: str, look: str):
        super().__init__(f"{mistake}\nwhere to look: {look}")


class Case:
    """Sizes by shape letter, and random float64 numbers, the same for the same seed."""

    def __init__(self, letters: str, sizes: Sequence[int], seed: int):
        self.sizes, self.seed = dict(zip(letters.split(), sizes, strict=False)), seed
        self.generator = torch.Generator().manual_seed(seed)

    def __str__(self) -> str:
        return f"{' '.join(f'{letter}={size}' for letter, size in self.sizes.items())} (seed {self.seed})"

    def shape(self, letters: str) -> list[int]:
        return [self.sizes[letter] for letter in letters.split()]

    def randn(self, letters: str) -> Tensor:
        return torch.randn(self.shape(letters), generator=self.generator, dtype=torch.float64)

    def mask(self, letters: str) -> Tensor:
        """True and False at random; the first of the last dimension is always True."""
        mask = torch.rand(self.shape(letters), generator=self.generator) < 0.6
        mask[..., 0] = True
        return mask


def cases(letters: str) -> list[Case]:
    """Different sizes, in four orders; then one sample, and sizes of one throughout."""
    sizes = SIZES[: len(letters.split())]
    shuffled = [random.Random(seed).sample(sizes, len(sizes)) for seed in (1, 2, 3)]
    return [Case(letters, each, seed) for seed, each in enumerate([sizes, *shuffled, (1, *sizes[1:]), [1] * len(sizes)])]


def check_backward(
    backward: Callable[..., Any],
    forward: Callable[..., Tensor],
    letters: str,
    inputs: Callable[[Case], Mapping[str, Tensor]],
    *,
    look: Mapping[str, str],
    by: Sequence[str] = (),
    prefix: str = "grad_",
) -> str:
    """Compare `backward(*inputs, gradient by the output)` with the gradients of `forward(*inputs)` in all `cases(letters)`.

    The gradient by a scalar output, a loss, is 1 and not handed over. Returns what was compared, in words.

    - look: input's name -> where to look if its gradient is wrong; the first wrong one in this order is named
    - by: the inputs whose gradients `backward` returns, in this order; all floating-point ones by default
    - prefix: of the gradients' names
    """
    all_cases = cases(letters)
    for case in all_cases:
        values = inputs(case)
        names = by or [name for name, tensor in values.items() if tensor.is_floating_point()]
        leaves = {name: tensor.clone().requires_grad_(name in names) for name, tensor in values.items()}
        output = forward(*leaves.values())
        vector = torch.randn(output.shape, generator=case.generator, dtype=output.dtype) if output.ndim else None
        rights = torch.autograd.grad(output, [leaves[name] for name in names], vector)
        arguments = [tensor.clone() for tensor in (*values.values(), vector) if tensor is not None]
        try:
            with torch.no_grad():  # by hand, not by autograd
                found = _values(backward(*arguments), [prefix + name for name in names])
        except Exception as error:
            error.add_note(f"in the case {case}")
            raise
        answers = dict(zip(names, zip(found, rights, strict=True), strict=True))
        for name, where_to_look in look.items():

            def loss(change: Tensor, name: str = name, values: Mapping[str, Tensor] = values, vector=vector) -> Tensor:
                output = forward(*{**values, name: values[name] + change}.values())
                return output if vector is None else (output * vector).sum()

            gradient, right = answers[name]
            compare(prefix + name, gradient, right, look=where_to_look, case=case, slope=partial(slope, loss))
            direction = torch.randn(right.shape, generator=case.generator, dtype=right.dtype)
            along, numeric = (gradient * direction).sum().item(), slope(loss, direction)
            assert abs(along - numeric) <= 1e-5 * max(1, abs(numeric)), f"{case}: autograd and central differences disagree"
    return f"{len(all_cases)} cases: each gradient is that of autograd, and fits central differences along a random direction"


def slope(loss: Callable[[Tensor], Tensor], direction: Tensor) -> float:
    """The change of `loss(change)` along a direction, by central differences."""
    with torch.no_grad():
        return ((loss(STEP * direction) - loss(-STEP * direction)) / (2 * STEP)).item()


def compare(
    name: str,
    found: Any,
    right: Tensor,
    *,
    look: str,
    case: Case | None = None,
    slope: Callable[[Tensor], float] | None = None,
    where: tuple[str, Tensor] | None = None,
) -> None:
    """WrongAnswerError where `found` is not the tensor `right`, up to rounding.

    - slope: direction -> slope by central differences, beside that of autograd
    - where: elements in words, and their mask: said where all wrong elements are among them
    """
    shape, place = tuple(right.shape), f"\nin the case {case}" if case else ""
    if not isinstance(found, Tensor):
        shown = "None" if found is None else f"of type {type(found).__name__}"
        raise WrongAnswerError(f"{name} is {shown}, and should be a tensor of shape {shape}{place}", look)
    if found.shape != right.shape:
        raise WrongAnswerError(f"{name} has the shape {tuple(found.shape)}, and should have {shape}{place}", look)
    if found.dtype != right.dtype:
        raise WrongAnswerError(f"{name} is {found.dtype}, and should be {right.dtype}, as the arguments are{place}", look)
    found = found.detach()
    wrong = ~torch.isclose(found, right, rtol=1e-8, atol=1e-10)
    if not wrong.any():
        return
    index = tuple(wrong.nonzero()[0].tolist())
    unit = torch.zeros_like(right)
    unit[index] = 1
    value, should = found[index].item(), right[index].item() + 0.0  # which makes -0 a 0
    digits = 6 if f"{value:.6g}" != f"{should:.6g}" else 12
    element = f"{name}[{', '.join(map(str, index))}]" if index else name
    sources = f" (autograd; central differences: {slope(unit):.{digits}g})" if slope else ""
    text = f"{element} is {value:.{digits}g}, and should be {should:.{digits}g}{sources}"
    parts = [f"it is off by {value - should:+.2g}"] if isfinite(value) else []
    if index:
        pattern = _pattern(found, right, wrong, case, where)
        parts.append(f"{int(wrong.sum())} of {right.numel()} elements are wrong{pattern and ': '}{pattern}")
    raise WrongAnswerError("\n".join([text, *(["; ".join(parts)] if parts else [])]) + place, look)


def _values(found: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """What a function returned, as so many values."""
    values = tuple(found) if isinstance(found, tuple | list) else (found,)
    if len(values) != len(names):
        returned = "None" if found is None else f"{len(values)} value{'s' if len(values) != 1 else ''}"
        expected = f"{len(names)}: {', '.join(names)}"
        raise WrongAnswerError(f"the function returns {returned}, and should return {expected}", "its last line, the return")
    return values


def _pattern(found: Tensor, right: Tensor, wrong: Tensor, case: Case | None, where: tuple[str, Tensor] | None) -> str:
    """What all wrong elements have in common, in words; "" where that is not known."""
    if not found.isfinite().all():
        return f"{int((~found.isfinite()).sum())} are not finite"
    if where and not (wrong & ~where[1]).any():
        return f"all of them {where[0]}"
    if not found.any():
        return "all are zero"
    if right.ndim > 1 and right.shape[-1] == right.shape[-2] and torch.allclose(found, right.mT):
        return "it is the right matrix, transposed"
    factor = ((found * right).sum() / right.square().sum()).item()
    if torch.allclose(found, factor * right, rtol=1e-6, atol=1e-10):
        return f"each is the right one times {_name_factor(factor, case.sizes if case else {})}"
    if torch.allclose(error := found - right, error.mean(dim=-1, keepdim=True), atol=1e-10) and right.shape[-1] > 1:
        return "along the last dimension, all are off by the same amount"
    return ""


def _name_factor(factor: float, sizes: Mapping[str, int]) -> str:
    """0.2 -> "0.2 = 1/m", where m is the size 5."""
    groups = [group for count in range(1, len(sizes) + 1) for group in combinations(sizes, count)]
    for group in groups:
        size, name = prod(sizes[letter] for letter in group), "·".join(group)
        bracketed = f"({name})" if len(group) > 1 else name
        named = {size: name, 1 / size: f"1/{bracketed}", sqrt(size): f"sqrt({name})", 1 / sqrt(size): f"1/sqrt({name})"}
        for value, text in named.items():
            if size > 1 and abs(factor / value - 1) < 1e-6:
                return f"{factor:.4g} = {text}"
    return f"{factor:.4g}"


@contextmanager
def saved_tensors() -> Iterator[tuple[weakref.WeakSet, list[tuple[int, ...]]]]:
    """Yields the set of what autograd keeps for backward passes now, and the list of the shapes that it ever kept."""
    kept: weakref.WeakSet = weakref.WeakSet()
    shapes: list[tuple[int, ...]] = []

    class Kept:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor.detach()  # an output of the node that saves it would otherwise keep the node alive

    def pack(tensor: Tensor) -> Kept:
        shapes.append(tuple(tensor.shape))
        kept.add(holder := Kept(tensor))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        yield kept, shapes
