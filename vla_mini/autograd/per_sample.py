"""Per-sample gradients: a policy and a batch -> each sample's own gradient, by vmap(grad) in one pass over all of them.

A sample's loss is its sum over its valid actions, times the number of samples over the number of valid actions in the
batch: so the mean of the samples' gradients is the gradient of the batch, however unequal the samples are.
"""

import time
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from vla_mini.autograd.draws import Draws, seeded
from vla_mini.autograd.flow import mean_loss
from vla_mini.autograd.norms import noise_scale
from vla_mini.policy import Policy
from vla_mini.types import Batch

CHUNK = 16  # samples whose gradients are held at once


class Gradients(NamedTuple):
    """The gradients of each parameter that learns, by name, and how they were had."""

    samples: dict[str, Float[Tensor, "b ..."]]
    method: str  # vmap, or loop
    reason: str | None  # why no vmap


class PerSample(NamedTuple):
    norms: list[float]
    mean_norm: float  # of the mean of the gradients
    mean_minus_batch_max_abs: float  # over all parameters
    batch_max_abs: float  # the largest value of the batch's gradient, for comparison
    gradient_noise_scale: float | None  # None: too few samples to tell
    method: str
    reason: str | None
    seconds: float


def per_sample(policy: Policy, batch: Batch, *, seed: int = 0) -> PerSample:
    """Norms, noise scale and the check against the batch; a few samples at a time, so that memory stays bounded."""
    num_samples, num_valid = len(batch.actions), int((~batch.is_pad).sum())
    squares: list[float] = []
    means: dict[str, Tensor] = {}
    seconds, methods = 0.0, []
    for first in range(0, num_samples, CHUNK):
        part = _select(batch, slice(first, first + CHUNK))
        start = time.perf_counter()
        found = per_sample_gradients(policy, part, scale=num_samples / num_valid, seed=seed + first)
        seconds += time.perf_counter() - start
        methods.append((found.method, found.reason))
        squares += sum(g.reshape(len(g), -1).square().sum(dim=1) for g in found.samples.values()).tolist()
        for name, gradient in found.samples.items():
            means[name] = means.get(name, 0) + gradient.sum(dim=0) / num_samples
    whole = _batch_gradient(policy, batch, seed=seed)
    square, noise = sum(float(mean.square().sum()) for mean in means.values()), None
    if num_samples > 1:
        estimate = noise_scale(squares, [1.0] * num_samples, square=square)
        noise = estimate.scale if estimate.signal > 0 else None
    return PerSample(
        norms=[own**0.5 for own in squares],
        mean_norm=square**0.5,
        mean_minus_batch_max_abs=max((means[name] - whole[name]).abs().max().item() for name in whole),
        batch_max_abs=max(gradient.abs().max().item() for gradient in whole.values()),
        gradient_noise_scale=noise,
        method=methods[0][0],
        reason=methods[0][1],
        seconds=seconds,
    )


def per_sample_gradients(policy: Policy, batch: Batch, *, scale: float = 1.0, seed: int = 0) -> Gradients:
    """Each sample's gradient of `scale` times its loss. Where a module does not allow vmap, by a loop, with the reason."""
    module = _SampleLoss(policy, scale)
    learning = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    by_vmap = vmap(grad(lambda values, one: functional_call(module, values, (one,))), in_dims=(None, 0), randomness="different")
    with seeded(seed, policy.device):  # heads that draw noise draw for all samples together what they draw for a batch
        try:
            found, reason = by_vmap({name: parameter.detach() for name, parameter in learning.items()}, batch), None
        except RuntimeError as error:
            found, reason = _by_loop(module, learning, batch, seed=seed), str(error).partition("\n")[0]
    samples = {name.removeprefix("policy."): gradient for name, gradient in found.items()}
    return Gradients(samples, "loop" if reason else "vmap", reason)


def _by_loop(
    module: nn.Module, learning: dict[str, nn.Parameter], batch: Batch, *, seed: int
) -> dict[str, Float[Tensor, "b ..."]]:
    """One sample after the other, each with its part of what is drawn for the batch."""
    samples = []
    for index in range(len(batch.actions)):
        torch.manual_seed(seed)
        with Draws(index, len(batch.actions)):
            loss = module(_select(batch, index))
        samples.append(torch.autograd.grad(loss, list(learning.values()), allow_unused=True, materialize_grads=True))
    return {name: torch.stack(gradients) for name, gradients in zip(learning, zip(*samples, strict=True), strict=True)}


class _SampleLoss(nn.Module):
    """A sample without a batch dimension -> its loss, a scalar. functional_call calls a module's forward, and no other."""

    def __init__(self, policy: Policy, scale: float):
        super().__init__()
        self.policy, self.scale = policy, scale

    def forward(self, sample: Batch) -> Float[Tensor, ""]:
        loss, _ = self.policy.loss(tree_map(lambda tensor: tensor[None], sample))
        return self.scale * loss.sum()


def _batch_gradient(policy: Policy, batch: Batch, *, seed: int) -> dict[str, Tensor]:
    """The gradient of the batch's mean loss, drawn from the same noise as the samples' own, chunk by chunk."""
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    num_valid = int((~batch.is_pad).sum())
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for first in range(0, len(batch.actions), CHUNK):
        part = _select(batch, slice(first, first + CHUNK))
        with seeded(seed + first, policy.device):
            loss = mean_loss(policy, part) * (int((~part.is_pad).sum()) / num_valid)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(totals.values(), found, strict=True):
            total += gradient
    return totals


def _select(batch: Batch, index: int | slice) -> Batch:
    return tree_map(lambda tensor: tensor[index], batch)
