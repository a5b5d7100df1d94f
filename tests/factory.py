"""Policies and batches for tests, derived from the configs and from the features: no test invents shapes of its own."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from vla_mini.build import build_policy
from vla_mini.features import Features, Moments, Statistics
from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = ("vision", "language", "trunk", "action", "auxiliary")
VARIANTS = {group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in GROUPS}
DEFAULTS = {"vision": "conv", "language": "table", "trunk": "query", "action": "regression", "auxiliary": "keyframe"}
FEATURES = Features(("top",), (64, 64), ("x", "y", "height", "closed"), ("dx", "dy", "dz", "close"), 10)
TASKS = ("pick up the red cube", "grab the blue ball", "lift the green star please")
HORIZON = 8


def spec(group: str, name: str) -> dict:
    """What configs/<group>/<name>.yaml says."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))


def moments(size: int) -> Moments:
    """Statistics that are not the identity, so that a forgotten normalisation shows."""
    low, high, mean, std = -0.9, 1.1, 0.1, 0.5
    return Moments(*(np.full(size, value, np.float32) for value in (low, high, mean, std, low, high)))


def make_policy(*, features: Features = FEATURES, dtype: torch.dtype = torch.float32, seed: int = 0, **parts) -> Policy:
    """The default policy with other `parts`, by name (vision="patch") or as a spec, in eval mode."""
    torch.manual_seed(seed)
    names = DEFAULTS | parts
    policy = build_policy(
        {group: spec(group, name) if isinstance(name, str) else name for group, name in names.items()},
        features=features,
        statistics=Statistics(moments(features.state_size), moments(features.action_size)),
        tasks=TASKS,
        horizon=HORIZON,
        keyframe=("x", "y"),
        execute=2,
        source={"env": "vla_mini/ToyPick-v0"},
    )
    return policy.to(dtype).eval()


def make_observation(policy: Policy, size: int = 4, *, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    features = policy.features
    tokens, mask = policy.tokenize([TASKS[i % len(TASKS)] for i in range(size)])
    shape = (size, len(features.cameras), 3, *features.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    state = torch.randn(size, features.state_size, generator=generator)
    return Observation(images, tokens, mask, state.to(policy.normalization.state_mean.dtype))


def make_batch(policy: Policy, size: int = 4, *, seed: int = 0) -> Batch:
    """A batch with unequal numbers of valid actions and a sample without a keyframe."""
    generator = torch.Generator().manual_seed(seed + 1)
    observation = make_observation(policy, size, seed=seed)
    dtype = observation.state.dtype
    actions = 2 * torch.rand(size, HORIZON, policy.features.action_size, generator=generator, dtype=dtype) - 1
    valid = 1 + torch.arange(size) * 3 % HORIZON
    is_pad = torch.arange(HORIZON) >= valid[:, None]
    keyframe = torch.randn(size, len(policy.keyframe), generator=generator, dtype=dtype)
    return Batch(observation, actions, is_pad, keyframe, torch.arange(size) % 3 != 1)


def mean_loss(policy: Policy, batch: Batch) -> torch.Tensor:
    loss, _ = policy.loss(batch)
    return loss.sum() / (~batch.is_pad).sum()
