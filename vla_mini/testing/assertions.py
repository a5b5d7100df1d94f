"""What every part is held to, as assertions that say what is wrong and by how much."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_mini.autograd.draws import Draws, seeded
from vla_mini.autograd.flow import mean_loss
from vla_mini.autograd.nonfinite import named_tensors
from vla_mini.autograd.norms import combined_norms, gradients_of
from vla_mini.build import nearest
from vla_mini.policy import Policy
from vla_mini.testing.samples import as_float64, make_observation, split
from vla_mini.types import Batch

# Relative errors of a gradient that rounding alone explains.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}


def assert_gradients_reach(
    policy: Policy, batch: Batch, *, except_for: Mapping[str, str] | None = None, threshold: float = 1e-7
) -> None:
    """Every trainable parameter has a finite gradient whose norm is more than `threshold` of the largest component's, in
    float64 and after one optimizer step, when zero initialisations have moved; every frozen one has none.

    - except_for: parameter's name -> the reason why its gradient may vanish
    """
    policy, batch = as_float64(policy, batch)
    parameters = dict(policy.named_parameters())
    for name, reason in (except_for or {}).items():
        if name not in parameters or not reason:
            raise ValueError(f"except_for: {name!r} needs a reason and to be a parameter{nearest(name, parameters)}")
    optimizer = torch.optim.AdamW([parameter for parameter in parameters.values() if parameter.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        mean_loss(policy, batch).backward()
        optimizer.step()
    norms = {name: gradient.norm().item() for name, gradient in gradients_of(policy).items()}  # frozen ones: asserted there
    least = threshold * max(combined_norms(norms).values())
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in (except_for or {}):
            assert name in norms, f"no gradient reaches {name}"
            assert np.isfinite(norms[name]), f"the gradient of {name} is not finite"
            assert norms[name] > least, f"the gradient of {name} vanishes: its norm is {norms[name]:.1e}, of {least:.1e} wanted"


def assert_accumulation_equivalent(
    policy: Policy, batch: Batch, *, sizes: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> None:
    """The gradients of micro-batches of unequal `sizes` add up to the gradient of the one big batch: no loss is averaged
    over, and no layer looks across, the batch. Under bf16 autocast with `dtype` torch.bfloat16.

    A head that draws noise draws for a sample the same in both, provided that its draws begin with the batch's dimension."""
    dtype = dtype or next(policy.parameters()).dtype
    size = len(batch.actions)
    sizes = sizes or [1, (size - 1) // 2, size - 1 - (size - 1) // 2]
    policy, valid = copy.deepcopy(policy), (~batch.is_pad).sum()

    def gradient(parts: Sequence[Batch]) -> Tensor:
        policy.zero_grad()
        first = 0
        for part in parts:
            bf16 = torch.autocast(policy.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
            with bf16, seeded(0, policy.device), Draws(first, size):
                loss, _ = policy.loss(part)
            loss.sum().backward()
            first += len(part.actions)
        return torch.cat([gradient.flatten() for gradient in gradients_of(policy).values()]) / valid

    _assert_near("the accumulated gradient", gradient(split(batch, sizes)), gradient([batch]), ROUNDING[dtype])


def assert_no_graph(function: Callable[..., Any], *arguments: Any) -> None:
    """Nothing is saved for a backward pass while `function` runs, and nothing that it returns is part of a graph."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        result = function(*arguments)
    assert not saved, f"{len(saved)} tensors were saved for backward, the first of shape {tuple(saved[0].shape)}"
    for name, tensor in named_tensors(result, "result"):
        assert not tensor.requires_grad, f"{name} is part of a graph: {tensor.grad_fn}"


def assert_matches_central_differences(
    function: Callable[[], Tensor],
    tensors: nn.Module | Mapping[str, Tensor],
    *,
    directions: int = 2,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """The gradient of the scalar `function()` by each of the float64 `tensors` (or a module's trainable parameters) is the
    slope found by NumPy in float64: (f(x + hu) - f(x - hu)) / 2h along random unit vectors u.

    A wrong gradient is wrong for every h. A right one may miss where a ReLU's or an L1's kink lies within h, or where h is
    so small that f's digits run out: so three are tried.
    """
    if isinstance(tensors, nn.Module):
        tensors = {name: parameter for name, parameter in tensors.named_parameters() if parameter.requires_grad}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64 or not tensor.requires_grad:
            raise ValueError(f"{name} is {tensor.dtype}: float64 tensors that require a gradient are compared")
    value = function()
    gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    generator, digits = np.random.default_rng(seed), 1e-9 * max(1.0, abs(value.item()))
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
        for _ in range(directions):
            direction = generator.standard_normal(tuple(tensor.shape))
            direction /= np.linalg.norm(direction)
            exact = 0.0 if gradient is None else float(np.sum(gradient.numpy(force=True) * direction))
            slopes = []
            for step in (1e-5, 1e-6, 1e-4):
                slopes.append(_slope(function, tensor, direction, step))
                # Below the second term, the digits of f end.
                if abs(slopes[-1] - exact) <= tolerance * max(abs(slopes[-1]), abs(exact)) + digits:
                    break
            else:
                slope = min(slopes, key=lambda slope: abs(slope - exact))
                raise AssertionError(f"{name}: autograd says {exact:.9g}, central differences {slope:.9g}")


def assert_precision_close(
    policy: Policy,
    batch: Batch,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = 2e-2,
    gradient_tolerance: float = 5e-2,
) -> None:
    """Under autocast: parameters, loss and gradients stay float32, layers work in `dtype`, and loss and gradient are those of
    float32 up to a relative error. The gradient's is the larger, where a ReLU or an L1 falls on the other side of its kink."""
    policy = copy.deepcopy(policy).float()
    used: set[torch.dtype] = set()
    for module in policy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: used.add(output.dtype))

    def compute(enabled: bool) -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        with torch.autocast(policy.device.type, dtype, enabled=enabled), seeded(0, policy.device):
            loss = mean_loss(policy, batch)
        loss.backward()
        gradients = gradients_of(policy)
        assert loss.dtype == torch.float32, f"the loss is {loss.dtype}"
        for name, gradient in gradients.items():
            assert gradient.dtype == torch.float32, f"the gradient of {name} is {gradient.dtype}"
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients.values()])

    exact = compute(False)
    assert used == {torch.float32}, f"layers work in {used} without autocast"
    used.clear()
    close = compute(True)
    assert dtype in used, f"no layer works in {dtype}"
    _assert_near("the loss", close[0], exact[0], tolerance)
    _assert_near("the gradient", close[1], exact[1], gradient_tolerance)


def assert_round_trip(policy: Policy, *, classes: Sequence[type] = ()) -> None:
    """Saved, and loaded by description and weights alone, it acts the same to the bit. `classes`: those of your own."""
    observation = make_observation(policy)
    policy = copy.deepcopy(policy).eval()
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(Path(folder) / "policy")
        loaded = Policy.from_pretrained(Path(folder) / "policy", classes=classes)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), f"{name} came back changed"
    actions = [each.act(observation, torch.Generator().manual_seed(0)) for each in (policy, loaded)]
    assert torch.equal(*actions), "the loaded policy acts differently"


def assert_compiled_equal(
    policy: Policy,
    batch: Batch,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    backend: str = "inductor",
    **options: Any,
) -> None:
    """The loss and the gradient of the compiled policy, as training calls it, are the eager ones up to `tolerance`, relative.

    - dtype: of autocast; None: none
    - tolerance: None: 1e-5, or 1e-2 under autocast, since fused kernels round less often
    - backend, options: what `torch.compile` takes; backend="aot_eager" checks the capture, in seconds, without a C++ compiler
    """
    policy = copy.deepcopy(policy)
    tolerance = tolerance or (1e-2 if dtype else 1e-5)

    def compute(function: Callable[[Batch], tuple[Tensor, Any]]) -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        # The seed is for heads that draw noise.
        with seeded(0, policy.device), torch.autocast(policy.device.type, dtype, enabled=dtype is not None):
            loss = function(batch)[0].sum() / (~batch.is_pad).sum()
        loss.backward()
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients_of(policy).values()])

    eager = compute(policy.loss)
    policy.compile(backend=backend, **options)
    with torch._inductor.config.patch(fallback_random=True):  # the noise that eager mode draws
        compiled = compute(policy)
    _assert_near("the compiled loss", compiled[0], eager[0], tolerance)
    _assert_near("the compiled gradient", compiled[1], eager[1], tolerance)


def _assert_near(what: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((value.double() - expected.double()).norm() / expected.double().norm())
    assert error <= tolerance, f"{what} is off by {error:.1e}, relative; {tolerance:.0e} is allowed"


def _slope(function: Callable[[], Tensor], tensor: Tensor, direction: np.ndarray, step: float) -> float:
    """Central differences; the tensor is moved in place and put back to the bit."""
    before = tensor.detach().clone()
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            tensor.copy_(before + torch.from_numpy(np.asarray(sign * step * direction)))
            values.append(np.float64(function().item()))
        tensor.copy_(before)
    return float((values[0] - values[1]) / (2 * step))
