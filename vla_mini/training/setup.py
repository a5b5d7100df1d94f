"""A run's settings -> the policy it begins with and the data it will learn from.

    settings (configs/train.yaml, checked) + demonstrations ──▶ Policy, DemonstrationDataModule

Every command that begins where train.py begins comes through here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vla_mini import lora, pretrained
from vla_mini.autograd.norms import components
from vla_mini.build import build_policy, nearest
from vla_mini.collection import collect
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.data.windows import Keyframe, check_history
from vla_mini.features import Features, Statistics
from vla_mini.policy import Policy
from vla_mini.training import init_from
from vla_mini.training.adapters import add_adapters
from vla_mini.training.compilation import check_compile
from vla_mini.training.freezing import check_stages, freeze
from vla_mini.training.precision import check_precision


def check_start(settings: Mapping[str, Any]) -> None:
    """ValueError for what can be refused without demonstrations, so before they are collected."""
    from vla_mini.training.processes import check_devices  # Lightning takes seconds, and not all callers train

    trainer = settings["trainer"]
    check_devices(trainer["accelerator"], trainer["devices"])
    check_precision(trainer["precision"], accelerator=trainer["accelerator"])
    check_compile(settings["compile"], accelerator=trainer["accelerator"])
    if settings["lora"]["targets"]:
        lora.require_peft()
    if settings["init_from"] is not None:  # a policy of the same sizes meets all the other checks
        features = pretrained.load(settings["init_from"], trust_remote_code=_trusted(settings), setting="init_from").features
        _begin(settings, features=features, statistics=pretrained.unit_statistics(features))


def untrained_policy(settings: Mapping[str, Any], demonstrations: Demonstrations) -> Policy:
    """The policy that training begins with: drawn from `seed`, or with the weights of `init_from`; sized by the demonstrations,
    with the adapters of `lora`, frozen where asked."""
    check_history(demonstrations, settings["history"])  # before anything is made of so many frames
    policy = _begin(
        settings,
        features=demonstrations.features,
        statistics=demonstrations.statistics,
        tasks=demonstrations.tasks,
        source={"dataset": demonstrations.fingerprint},
    )
    if settings["init_from"] is not None:
        init_from.say(policy, demonstrations)
    return policy


def _begin(
    settings: Mapping[str, Any],
    *,
    features: Features,
    statistics: Statistics,
    tasks: Sequence[str] = (),
    source: Mapping[str, str] | None = None,
) -> Policy:
    torch.manual_seed(settings["seed"])
    parts = {name: settings[name] for name in ("vision", "language", "trunk", "action", "auxiliary")}
    if settings["insulate"]:
        parts["backbone_action"] = {"_target_": "vla_mini.action.bins.BinsHead"}
    saved, folder = settings["init_from"], None
    source = {"env": settings["env"]["id"], **(source or {})}
    if saved is not None:
        folder = pretrained.locate(saved, setting="init_from")
        source["init_from"] = pretrained.identity(folder)
    policy = build_policy(
        parts,
        features=features,
        statistics=statistics,
        tasks=tasks,
        folder=folder,
        horizon=settings["data"]["horizon"],
        history=settings["history"],
        keyframe=(settings["data"]["keyframe"] or {}).get("state", ()),
        execute=settings["execute"],
        ensemble=settings["ensemble"],
        blind=settings["blind"],
        source=source,
    )
    if saved is not None:
        init_from.take_over(policy, pretrained.load(folder, trust_remote_code=_trusted(settings)), source=saved)
    if settings["lora"]["targets"]:
        add_adapters(policy, **settings["lora"])
    freeze(policy, settings["freeze"])
    check_stages(policy, settings["unfreeze_at"])
    for name in settings["schedule"]["multipliers"]:
        if name not in components(policy):
            raise ValueError(f"schedule.multipliers: the policy has no component {name!r}{nearest(name, components(policy))}")
    return policy


def _trusted(settings: Mapping[str, Any]) -> bool:
    return any(settings[part].get("trust_remote_code") for part in ("vision", "language"))


def data_module(settings: Mapping[str, Any], demonstrations: Demonstrations, policy: Policy) -> Any:
    """The LightningDataModule that batches the demonstrations in the policy's own words."""
    from vla_mini.data.module import DemonstrationDataModule  # Lightning takes seconds, and not all callers train

    keyframe, augment = settings["data"]["keyframe"], None
    if settings["augmentation"]:
        from vla_mini.data.augmentation import Augmentation  # torchvision takes seconds, too

        augment = Augmentation(**settings["augmentation"], seed=settings["seed"], image_size=demonstrations.features.image_size)
    return DemonstrationDataModule(
        demonstrations,
        tokenize=policy.tokenize,
        horizon=settings["data"]["horizon"],
        batch_size=settings["data"]["batch_size"],
        num_processes=settings["trainer"]["devices"],
        seed=settings["seed"],
        history=settings["history"],
        keyframe=Keyframe(**keyframe) if keyframe else None,
        augment=augment,
    )


def rehearse(settings: Mapping[str, Any]) -> None:
    """Build both once, from two episodes: what does not fit is refused before thousands are collected."""
    settings = {**settings, "data": {**settings["data"], "batch_size": 1}}
    with TemporaryDirectory() as folder:
        collect(settings["env"]["id"], Path(folder) / "data", episodes=1, validation_episodes=1, num_workers=1)
        demonstrations = read_dataset(Path(folder) / "data")
        data_module(settings, demonstrations, untrained_policy(settings, demonstrations))
