"""What tests compute on: a policy around a given part, and random observations and batches of the shapes that it takes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.utils._pytree import tree_map

from vla_mini.autograd.batches import blank_batch, select
from vla_mini.parts import ActingDefaults
from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features, FeatureStatistics, Statistics

FEATURES = Features(("top",), (64, 64), ("x", "y", "height", "closed"), ("dx", "dy", "dz", "close"), 10)
TASKS = ("pick up the red cube", "grab the blue ball", "lift the green star please")
HORIZON = 8
DEFAULTS = {
    "vision": {"_target_": "vla_mini.vision.conv.ConvVision"},
    "language": {"_target_": "vla_mini.language.table.TableLanguage"},
    "trunk": {"_target_": "vla_mini.trunk.query.QueryTrunk"},
    "action": {"_target_": "vla_mini.action.regression.RegressionHead"},
    "backbone_action": None,
    "auxiliary": {"keyframe": {"_target_": "vla_mini.auxiliary.keyframe.KeyframeLoss", "state": ["x", "y"], "closes": "close"}},
}


def make_policy(
    *,
    features: Features = FEATURES,
    history: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    ablate: Sequence[str] = (),
    **parts: Any,
) -> Policy:
    """The default policy, untrained and in eval mode, with other `parts`.

    - vision, language, trunk, action, backbone_action: a class, or the settings of a YAML file, `{"_target_": ...}`
    - auxiliary: {name: class or settings}; {} or None for no auxiliary loss

    Raises ValueError for unknown parts and for settings that do not fit.
    """
    if unknown := [name for name in parts if name not in DEFAULTS]:
        raise ValueError(f"a policy has no part {unknown[0]!r}; {did_you_mean(unknown[0], DEFAULTS)}")
    torch.manual_seed(seed)
    parts = DEFAULTS | parts
    auxiliary = parts.pop("auxiliary") or {}
    policy = Policy(
        {name: _settings(part) for name, part in parts.items()}
        | {"auxiliary": {name: _settings(part) for name, part in auxiliary.items()}},
        features=features,
        statistics=Statistics(_statistics(features.state_size), _statistics(features.action_size)),
        horizon=HORIZON,
        instructions=TASKS,
        action_chunks=_action_chunks(features.action_size, seed=seed),
        history=history,
        acting=ActingDefaults(execute=2),
        ablate=ablate,
        source={"env": "vla_mini/ToyPick-v0"},
        classes=[part for part in (*parts.values(), *auxiliary.values()) if isinstance(part, type)],
    )
    return policy.to(dtype).eval()


def make_observation(policy: Policy, size: int = 4, *, seed: int = 0) -> Observation:
    """Random images and states, and instructions of unequal length."""
    generator = Generator().manual_seed(seed)
    features = policy.features
    tokens, mask = policy.tokenize([TASKS[i % len(TASKS)] for i in range(size)])
    shape = (size, policy.history * len(features.cameras), 3, *features.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    state = torch.randn(size, policy.history * features.state_size, generator=generator)
    return Observation(images, tokens, mask, state.to(policy.normalization.state_mean.dtype))


def make_batch(policy: Policy, size: int = 4, *, seed: int = 0) -> Batch:
    """A batch with unequal numbers of valid actions and, for auxiliary losses, samples with and without a target."""
    generator = Generator().manual_seed(seed + 1)
    observation = make_observation(policy, size, seed=seed)
    dtype, horizon = observation.state.dtype, policy.horizon
    actions = 2 * torch.rand(size, horizon, policy.features.action_size, generator=generator, dtype=dtype) - 1
    valid = 1 + torch.arange(size) * 3 % horizon
    is_pad = torch.arange(horizon) >= valid[:, None]
    targets = {}
    for name, target in blank_batch(policy, size).targets.items():
        if target.is_floating_point():
            target = torch.randn(target.shape, generator=generator, dtype=dtype)
        elif target.dtype == torch.bool:  # every third is False
            target = (torch.arange(target.numel()) % 3 != 1).reshape(target.shape)
        targets[name] = target
    return Batch(observation, actions, is_pad, targets)


def split(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """The batch in micro-batches of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return [select(batch, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def as_float64(policy: Policy, batch: Batch) -> tuple[Policy, Batch]:
    """Copies of both in float64, for comparisons in which rounding must not matter."""
    policy = copy.deepcopy(policy).double()
    policy.zero_grad()
    return policy, tree_map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, batch)


def _settings(part: type | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return {"_target_": f"{part.__module__}.{part.__qualname__}"} if isinstance(part, type) else part


def _action_chunks(size: int, *, seed: int) -> np.ndarray:
    """Random walks, (n, horizon, size), for heads that learn tokens or bins from the dataset's actions."""
    steps = np.random.default_rng(seed).normal(0, 0.2, (256, HORIZON, size))
    return steps.cumsum(axis=1).astype(np.float32)


def _statistics(size: int) -> FeatureStatistics:
    """Statistics for which normalization is not the identity, so that a missing normalization is noticed."""
    low, high, mean, std = -0.9, 1.1, 0.1, 0.5
    return FeatureStatistics(*(np.full(size, value, np.float32) for value in (low, high, mean, std, low, high)))
