"""Something to test with: a policy around a part, and observations and batches of the shapes that it takes."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla_mini.build import build_policy, nearest
from vla_mini.features import Features, Moments, Statistics
from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation

FEATURES = Features(("top",), (64, 64), ("x", "y", "height", "closed"), ("dx", "dy", "dz", "close"), 10)
TASKS = ("pick up the red cube", "grab the blue ball", "lift the green star please")
HORIZON = 8
DEFAULTS = {
    "vision": {"_target_": "vla_mini.vision.conv.ConvVision"},
    "language": {"_target_": "vla_mini.language.table.TableLanguage"},
    "trunk": {"_target_": "vla_mini.trunk.query.QueryTrunk"},
    "action": {"_target_": "vla_mini.action.regression.RegressionHead"},
    "auxiliary": {"_target_": "vla_mini.auxiliary.keyframe.KeyframeLoss"},
    "backbone_action": None,
}


def make_policy(
    *,
    features: Features = FEATURES,
    history: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    blind: Sequence[str] = (),
    **parts: Any,
) -> Policy:
    """The default policy, untrained and in eval mode, with other `parts`: vision, language, trunk, action, auxiliary or
    backbone_action as a class, or as what a YAML file says, {"_target_": ..., argument: value}; auxiliary=None for none."""
    if unknown := [name for name in parts if name not in (*DEFAULTS, "backbone_action")]:
        raise ValueError(f"a policy has no part {unknown[0]!r}{nearest(unknown[0], DEFAULTS)}")
    torch.manual_seed(seed)
    classes = [part for part in parts.values() if isinstance(part, type)]
    specs = {
        name: {"_target_": f"{part.__module__}.{part.__qualname__}"} if isinstance(part, type) else part
        for name, part in (DEFAULTS | parts).items()
    }
    policy = build_policy(
        specs,
        features=features,
        statistics=Statistics(_moments(features.state_size), _moments(features.action_size)),
        tasks=TASKS,
        chunks=_chunks(features.action_size, seed=seed),
        horizon=HORIZON,
        history=history,
        keyframe=("x", "y"),
        execute=2,
        blind=blind,
        source={"env": "vla_mini/ToyPick-v0"},
        classes=classes,
    )
    return policy.to(dtype).eval()


def make_observation(policy: Policy, size: int = 4, *, seed: int = 0) -> Observation:
    """Random pixels and states, and instructions of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    features = policy.features
    tokens, mask = policy.tokenize([TASKS[i % len(TASKS)] for i in range(size)])
    shape = (size, policy.history * len(features.cameras), 3, *features.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    state = torch.randn(size, policy.history * features.state_size, generator=generator)
    return Observation(images, tokens, mask, state.to(policy.normalization.state_mean.dtype))


def make_batch(policy: Policy, size: int = 4, *, seed: int = 0) -> Batch:
    """A batch with unequal numbers of valid actions and a sample without a keyframe."""
    generator = torch.Generator().manual_seed(seed + 1)
    observation = make_observation(policy, size, seed=seed)
    dtype, horizon = observation.state.dtype, policy.action.horizon
    actions = 2 * torch.rand(size, horizon, policy.features.action_size, generator=generator, dtype=dtype) - 1
    valid = 1 + torch.arange(size) * 3 % horizon
    is_pad = torch.arange(horizon) >= valid[:, None]
    keyframe = torch.randn(size, len(policy.keyframe), generator=generator, dtype=dtype)
    return Batch(observation, actions, is_pad, keyframe, torch.arange(size) % 3 != 1)


def split(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """The batch in micro-batches of these sizes."""
    fields = zip(*(tensor.split(list(sizes)) for tensor in (*batch.observation, *batch[1:])), strict=True)
    return [Batch(Observation(*tensors[:4]), *tensors[4:]) for tensors in fields]


def as_float64(policy: Policy, batch: Batch) -> tuple[Policy, Batch]:
    """Copies of both in float64, in which rounding is no excuse."""
    observation = batch.observation._replace(state=batch.observation.state.double())
    batch = batch._replace(observation=observation, actions=batch.actions.double(), keyframe=batch.keyframe.double())
    policy = copy.deepcopy(policy).double()
    policy.zero_grad()
    return policy, batch


def _chunks(size: int, *, seed: int) -> np.ndarray:
    """Actions that wander, (n, horizon, a): for heads that learn tokens from them."""
    steps = np.random.default_rng(seed).normal(0, 0.2, (256, HORIZON, size))
    return steps.cumsum(axis=1).astype(np.float32)


def _moments(size: int) -> Moments:
    """Statistics that are not the identity, so that a forgotten normalisation shows."""
    low, high, mean, std = -0.9, 1.1, 0.1, 0.5
    return Moments(*(np.full(size, value, np.float32) for value in (low, high, mean, std, low, high)))
