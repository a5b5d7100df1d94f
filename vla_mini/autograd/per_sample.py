"""Per-sample gradients: a policy and a batch -> each sample's own gradient, computed by vmap(grad) for all samples at once.

A sample's loss is its sum over its valid actions, times the number of samples divided by the number of valid actions in the
batch: so the mean of the samples' gradients is the gradient of the batch, even if samples have unequal numbers of actions.
"""

import time
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from vla_mini.autograd.batches import NoiseSlice, seeded, select
from vla_mini.autograd.norms import noise_scale
from vla_mini.policy import Policy
from vla_mini.types import Batch

CHUNK = 16  # samples whose gradients are in memory at once


class PerSample(NamedTuple):
    norms: list[float]
    mean_norm: float  # of the mean of the gradients
    mean_minus_batch_max_abs: float  # largest difference to the batch's gradient, over all parameters
    batch_max_abs: float  # the largest value of the batch's gradient, for comparison
    gradient_noise_scale: float | None  # None: too few samples for an estimate
    method: str  # vmap or loop
    reason: str | None  # why vmap was not possible
    seconds: float


def per_sample(policy: Policy, batch: Batch, *, seed: int = 0) -> PerSample:
    """Norms, noise scale and comparison with the batch's gradient; CHUNK samples at a time, so that memory stays bounded."""
    num_samples, num_valid = len(batch.actions), int((~batch.is_pad).sum())
    squares: list[float] = []
    means: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}  # the gradient of the batch's mean loss
    seconds = 0.0
    for first in range(0, num_samples, CHUNK):
        part = select(batch, slice(first, first + CHUNK))
        start = time.perf_counter()
        gradients, reason = per_sample_gradients(policy, part, scale=num_samples / num_valid, seed=seed + first)
        seconds += time.perf_counter() - start
        squares += sum(g.reshape(len(g), -1).square().sum(dim=1) for g in gradients.values()).tolist()
        for name, gradient in gradients.items():
            means[name] = means.get(name, 0) + gradient.sum(dim=0) / num_samples
        for name, gradient in _summed_gradient(policy, part, seed=seed + first).items():
            expected[name] = expected.get(name, 0) + gradient / num_valid
    square, noise = sum(float(mean.square().sum()) for mean in means.values()), None
    if num_samples > 1:
        estimate = noise_scale(squares, [1.0] * num_samples, square=square)
        noise = estimate.scale if estimate.signal > 0 else None
    return PerSample(
        norms=[own**0.5 for own in squares],
        mean_norm=square**0.5,
        mean_minus_batch_max_abs=max((means[name] - expected[name]).abs().max().item() for name in expected),
        batch_max_abs=max(gradient.abs().max().item() for gradient in expected.values()),
        gradient_noise_scale=noise,
        method="loop" if reason else "vmap",
        reason=reason,
        seconds=seconds,
    )


def per_sample_gradients(
    policy: Policy, batch: Batch, *, scale: float = 1.0, seed: int = 0
) -> tuple[dict[str, Float[Tensor, "b ..."]], str | None]:
    """Each sample's gradient of `scale` times its loss, by trainable parameter; by a loop where a module does not support vmap,
    and then with the reason."""

    def loss_of(parameters: dict[str, Tensor], sample: Batch) -> Float[Tensor, ""]:
        loss, _ = functional_call(policy, parameters, (tree_map(lambda tensor: tensor[None], sample),))
        return scale * loss.sum()

    parameters = {name: parameter.detach() for name, parameter in policy.named_parameters() if parameter.requires_grad}
    # vmap draws noise for all samples at once, as a batch does. A call of the policy is compiled where training compiles it.
    with seeded(seed, policy.device), torch.compiler.set_stance("force_eager"):
        try:
            return vmap(grad(loss_of), in_dims=(None, 0), randomness="different")(parameters, batch), None
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
    size, samples = len(batch.actions), []
    for index in range(size):
        with NoiseSlice(index, size):  # the sample's rows of the noise that is drawn for the batch
            samples.append(_summed_gradient(policy, select(batch, slice(index, index + 1)), scale=scale, seed=seed))
    return {name: torch.stack([sample[name] for sample in samples]) for name in parameters}, reason


def _summed_gradient(policy: Policy, batch: Batch, *, scale: float = 1.0, seed: int) -> dict[str, Tensor]:
    """The gradient of `scale` times the loss, summed over the batch, with the same noise as in `per_sample_gradients`."""
    parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    with seeded(seed, policy.device):
        loss, _ = policy.loss(batch)
    found = torch.autograd.grad(scale * loss.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))
