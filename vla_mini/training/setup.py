"""A run's settings -> the untrained policy and the data it will learn from.

    settings (configs/train.yaml, checked) + demonstrations ──▶ Policy, DemonstrationDataModule

Every command that begins where train.py begins comes through here.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vla_mini.build import build_policy
from vla_mini.collection import collect
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.data.windows import Keyframe
from vla_mini.policy import Policy
from vla_mini.training.freezing import freeze


def untrained_policy(settings: Mapping[str, Any], demonstrations: Demonstrations) -> Policy:
    """The policy that training begins with: drawn from `seed`, sized by the demonstrations, frozen where asked."""
    torch.manual_seed(settings["seed"])
    parts = {name: settings[name] for name in ("vision", "language", "trunk", "action", "auxiliary")}
    if settings["insulate"]:
        parts["backbone_action"] = {"_target_": "vla_mini.action.bins.BinsHead"}
    policy = build_policy(
        parts,
        features=demonstrations.features,
        statistics=demonstrations.statistics,
        tasks=demonstrations.tasks,
        horizon=settings["data"]["horizon"],
        keyframe=(settings["data"]["keyframe"] or {}).get("state", ()),
        execute=settings["execute"],
        ensemble=settings["ensemble"],
        blind=settings["blind"],
        source={"env": settings["env"]["id"], "dataset": demonstrations.fingerprint},
    )
    freeze(policy, settings["freeze"])
    return policy


def data_module(settings: Mapping[str, Any], demonstrations: Demonstrations, policy: Policy) -> Any:
    """The LightningDataModule that batches the demonstrations in the policy's own words."""
    from vla_mini.data.module import DemonstrationDataModule  # Lightning takes seconds, and not all callers train

    keyframe = settings["data"]["keyframe"]
    return DemonstrationDataModule(
        demonstrations,
        tokenize=policy.tokenize,
        horizon=settings["data"]["horizon"],
        batch_size=settings["data"]["batch_size"],
        num_processes=settings["trainer"]["devices"],
        seed=settings["seed"],
        keyframe=Keyframe(**keyframe) if keyframe else None,
    )


def rehearse(settings: Mapping[str, Any]) -> None:
    """Build both once, from two episodes: what does not fit is refused before thousands are collected."""
    settings = {**settings, "data": {**settings["data"], "batch_size": 1}}
    with TemporaryDirectory() as folder:
        collect(settings["env"]["id"], Path(folder) / "data", episodes=1, validation_episodes=1, num_workers=1)
        demonstrations = read_dataset(Path(folder) / "data")
        data_module(settings, demonstrations, untrained_policy(settings, demonstrations))
