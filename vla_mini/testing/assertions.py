"""What has to hold for every part, as assertions whose messages name what is wrong and by how much."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_mini.autograd.batches import NoiseSlice, mean_loss, seeded
from vla_mini.autograd.nonfinite import named_tensors
from vla_mini.autograd.norms import gradients_of
from vla_mini.policy import Policy
from vla_mini.testing.samples import as_float64, make_observation, split
from vla_mini.types import Batch
from vla_mini.utils.errors import did_you_mean

# The largest relative errors of a gradient that rounding can cause.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}


def assert_gradients_reach(
    policy: Policy, batch: Batch, *, except_for: Mapping[str, str] = {}, threshold: float = 1e-7
) -> None:
    """Every trainable parameter has a finite gradient whose norm is above `threshold` times the largest component's; no frozen
    parameter has a gradient. Tested in float64 and after one optimizer step, since weights may start at zero.

    - except_for: parameter's name -> the reason why its gradient may vanish
    """
    policy, batch = as_float64(policy, batch)
    parameters = dict(policy.named_parameters())
    for name, reason in except_for.items():
        if name not in parameters or not reason:
            raise ValueError(f"except_for: {name!r} needs a reason and has to be a parameter; {did_you_mean(name, parameters)}")
    optimizer = torch.optim.AdamW([parameter for parameter in parameters.values() if parameter.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        mean_loss(policy, batch).backward()
        optimizer.step()
    # gradients_of also asserts that no frozen parameter has a gradient.
    norms = {name: gradient.norm().item() for name, gradient in gradients_of(policy).items()}
    components = ([p.grad for p in part.parameters() if p.grad is not None] for part in policy.children())
    least = threshold * max(float(nn.utils.get_total_norm(gradients)) for gradients in components)
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in except_for:
            assert name in norms, f"no gradient reaches {name}"
            assert np.isfinite(norms[name]), f"the gradient of {name} is not finite"
            assert norms[name] > least, f"the gradient of {name} vanishes: its norm is {norms[name]:.1e}, not above {least:.1e}"


def assert_accumulation_equivalent(
    policy: Policy, batch: Batch, *, sizes: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> None:
    """The gradients of micro-batches of unequal `sizes` add up to the gradient of the whole batch: no loss is averaged over
    the batch, and no layer mixes its samples.

    - dtype: torch.bfloat16 for bf16 autocast; None: that of the policy

    Noise in a head's `loss` is the same for a sample in both, if the first dimension of the noise is the batch's.
    """
    dtype = dtype or next(policy.parameters()).dtype
    size = len(batch.actions)
    sizes = sizes or [1, (size - 1) // 2, size - 1 - (size - 1) // 2]
    policy, valid = copy.deepcopy(policy), (~batch.is_pad).sum()

    def gradient(parts: Sequence[Batch]) -> Tensor:
        policy.zero_grad()
        first = 0
        for part in parts:
            bf16 = torch.autocast(policy.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
            with bf16, seeded(0, policy.device), NoiseSlice(first, size):
                loss, _ = policy.loss(part)
            loss.sum().backward()
            first += len(part.actions)
        return _flat_gradient(policy) / valid

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
    """The gradient of the scalar `function()` by each of the float64 `tensors` (or a module's trainable parameters) equals the
    slope that NumPy finds in float64: (f(x + hu) - f(x - hu)) / 2h along random unit vectors u.

    Three values of h are tried. A wrong gradient differs for each of them; a right one differs only where the kink of a ReLU
    or an L1 lies within h, or where h is so small that rounding of f dominates. Raises ValueError for other dtypes.
    """
    if isinstance(tensors, nn.Module):
        tensors = {name: parameter for name, parameter in tensors.named_parameters() if parameter.requires_grad}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64 or not tensor.requires_grad:
            raise ValueError(f"{name} is {tensor.dtype}: only float64 tensors that require a gradient can be compared")
    value = function()
    gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    generator, rounding = np.random.default_rng(seed), 1e-9 * max(1.0, abs(value.item()))
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
        for _ in range(directions):
            direction = generator.standard_normal(tuple(tensor.shape))
            direction /= np.linalg.norm(direction)
            exact = 0.0 if gradient is None else float(np.sum(gradient.numpy(force=True) * direction))
            slopes = []
            for step in (1e-5, 1e-6, 1e-4):
                slopes.append(_slope(function, tensor, direction, step))
                if abs(slopes[-1] - exact) <= tolerance * max(abs(slopes[-1]), abs(exact)) + rounding:
                    break
            else:
                slope = min(slopes, key=lambda slope: abs(slope - exact))
                raise AssertionError(f"{name}: autograd gives {exact:.9g}, central differences {slope:.9g}")


def assert_precision_close(
    policy: Policy,
    batch: Batch,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = 2e-2,
    gradient_tolerance: float = 5e-2,
) -> None:
    """Under autocast, layers compute in `dtype`, loss and gradients are float32, and both equal those without autocast up to a
    relative error; the gradient's may be larger, since rounding moves some inputs of a ReLU or an L1 across its kink."""
    policy = copy.deepcopy(policy).float()
    used: set[torch.dtype] = set()
    for module in policy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: used.add(output.dtype))
    exact_loss, exact_gradient = _loss_and_gradient(policy, policy.loss, batch)
    assert used == {torch.float32}, f"layers compute in {used} without autocast"
    used.clear()
    loss, gradient = _loss_and_gradient(policy, policy.loss, batch, autocast=dtype)
    assert dtype in used, f"no layer computes in {dtype}"
    assert loss.dtype == torch.float32, f"the loss is {loss.dtype}"
    for name, own in gradients_of(policy).items():
        assert own.dtype == torch.float32, f"the gradient of {name} is {own.dtype}"
    _assert_near("the loss", loss, exact_loss, tolerance)
    _assert_near("the gradient", gradient, exact_gradient, gradient_tolerance)


def assert_round_trip(policy: Policy, *, classes: Sequence[type] = ()) -> None:
    """The policy that is saved and loaded again predicts bit-identical actions. `classes`: classes of your own parts."""
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
    """Loss and gradient of the compiled policy, called as in training, equal those of eager mode up to `tolerance`, relative.

    - dtype: of autocast; None: no autocast
    - tolerance: None: 1e-5, or 1e-2 under autocast, since fused kernels round less often
    - backend, options: arguments of `torch.compile`; backend="aot_eager" tests the graph capture alone, without a C++ compiler
    """
    policy = copy.deepcopy(policy)
    tolerance = tolerance or (1e-2 if dtype else 1e-5)
    eager = _loss_and_gradient(policy, policy.loss, batch, autocast=dtype)
    policy.compile(backend=backend, **options)
    with torch._inductor.config.patch(fallback_random=True):  # the same noise as in eager mode
        compiled = _loss_and_gradient(policy, policy, batch, autocast=dtype)
    _assert_near("the compiled loss", compiled[0], eager[0], tolerance)
    _assert_near("the compiled gradient", compiled[1], eager[1], tolerance)


def _loss_and_gradient(
    policy: Policy, function: Callable[[Batch], tuple[Tensor, Any]], batch: Batch, *, autocast: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The mean loss by `function` (policy.loss, or the policy itself) and its gradient; heads that sample use a fixed seed."""
    policy.zero_grad()
    with seeded(0, policy.device), torch.autocast(policy.device.type, autocast, enabled=autocast is not None):
        loss = function(batch)[0].sum() / (~batch.is_pad).sum()
    loss.backward()
    return loss.detach(), _flat_gradient(policy)


def _flat_gradient(policy: Policy) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients_of(policy).values()])


def _assert_near(what: str, value: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((value.double() - expected.double()).norm() / expected.double().norm())
    assert error <= tolerance, f"{what} has a relative error of {error:.1e}, above {tolerance:.0e}"


def _slope(function: Callable[[], Tensor], tensor: Tensor, direction: np.ndarray, step: float) -> float:
    """Central differences; the tensor is changed in place and restored exactly."""
    before = tensor.detach().clone()
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            tensor.copy_(before + torch.from_numpy(np.asarray(sign * step * direction)))
            values.append(np.float64(function().item()))
        tensor.copy_(before)
    return float((values[0] - values[1]) / (2 * step))
