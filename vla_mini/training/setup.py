"""A run's settings -> the policy it begins with and the data it will learn from.

    settings (configs/train.yaml, checked) + demonstrations ──▶ Policy, DemonstrationDataModule

Every command that begins where train.py begins comes through here.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vla_mini.envs
from vla_mini import pretrained
from vla_mini.autograd.norms import components
from vla_mini.build import build_policy, nearest
from vla_mini.collection import collect
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.data.windows import Keyframe, check_history, sample_chunks
from vla_mini.evaluation.evaluate import examinations
from vla_mini.policy import Policy
from vla_mini.training import init_from
from vla_mini.training.adapters import add_adapters
from vla_mini.training.freezing import check_stages, freeze, refuse_frozen
from vla_mini.training.precision import check_precision


def check_start(settings: Mapping[str, Any]) -> None:
    """ValueError for what can be refused before there are any demonstrations: what the machine and the environment lack."""
    from vla_mini.training.compilation import check_compile, device_of  # Lightning takes seconds, and not all callers train
    from vla_mini.training.loggers import check_loggers
    from vla_mini.training.module import check_optimizer
    from vla_mini.training.processes import check_devices
    from vla_mini.training.trainer import check_trainer

    trainer = settings["trainer"]
    check_devices(trainer["accelerator"], trainer["devices"])
    check_precision(trainer["precision"], accelerator=trainer["accelerator"])
    check_trainer(settings)
    check_optimizer(settings["optimizer"], device=device_of(trainer["accelerator"]))
    check_loggers(settings["logger"])
    check_compile(settings["compile"], accelerator=trainer["accelerator"])
    examinations(settings["env"]["id"], further_splits=settings["evaluation"]["further_splits"])


def untrained_policy(settings: Mapping[str, Any], demonstrations: Demonstrations) -> Policy:
    """The policy that training begins with: drawn from `seed`, or with the weights of `init_from`; sized by the demonstrations,
    with the adapters of `lora`, frozen where asked."""
    policy = _begin(settings, demonstrations)
    if settings["init_from"] is not None:
        init_from.say(policy, demonstrations)
    return policy


def trusts_remote_code(settings: Mapping[str, Any]) -> bool:
    """Whether a model of the run may run code that came with it."""
    return any(settings[part].get("trust_remote_code") for part in ("vision", "language"))


def _begin(settings: Mapping[str, Any], demonstrations: Demonstrations) -> Policy:
    check_history(demonstrations, settings["history"])  # before anything is made of so many frames
    folder = saved = None
    if settings["init_from"] is not None:  # first, since loading finds what is damaged
        folder = pretrained.locate(settings["init_from"], setting="init_from")
        saved = pretrained.load(folder, trust_remote_code=trusts_remote_code(settings), setting="init_from")
    torch.manual_seed(settings["seed"])
    parts = {name: settings[name] for name in ("vision", "language", "trunk", "action", "auxiliary")}
    if settings["insulate"]:
        parts["backbone_action"] = {"_target_": "vla_mini.action.bins.BinsHead"}
    source = {"env": settings["env"]["id"], "dataset": demonstrations.fingerprint}
    if saved is not None:
        source["init_from"] = pretrained.identity(folder)
    policy = build_policy(
        parts,
        features=demonstrations.features,
        statistics=demonstrations.statistics,
        tasks=demonstrations.tasks,
        chunks=sample_chunks(demonstrations, horizon=settings["data"]["horizon"]),
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
        init_from.take_over(policy, saved, source=settings["init_from"])
    if settings["lora"]["targets"]:
        add_adapters(policy, **settings["lora"])
    freeze(policy, settings["freeze"])
    if policy.lora is not None:
        refuse_frozen(policy, policy.lora["layers"], setting="lora.targets")
        noisy = {"language"} if settings["language"].get("noise") else set()  # in training mode, though it does not learn
        refuse_frozen(policy, [name for name in settings["lora"]["also_train"] if name not in noisy], setting="lora.also_train")
    check_stages(policy, settings["unfreeze_at"])
    for name in settings["schedule"]["multipliers"]:
        if name not in components(policy):
            raise ValueError(f"schedule.multipliers: the policy has no component {name!r}{nearest(name, components(policy))}")
    refuse_frozen(policy, settings["schedule"]["multipliers"], setting="schedule.multipliers")
    return policy


def data_module(settings: Mapping[str, Any], demonstrations: Demonstrations, policy: Policy) -> Any:
    """The LightningDataModule that batches the demonstrations in the policy's own words."""
    from vla_mini.data.module import DemonstrationDataModule  # Lightning takes seconds, and not all callers train

    keyframe = settings["data"]["keyframe"]
    augment = augmentation(settings, demonstrations.features.image_size) if settings["augmentation"] else None
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


def collect_missing(settings: Mapping[str, Any]) -> None:
    """Collect the demonstrations that the settings ask for, where they are missing."""
    data = settings["data"]
    if Path(data["root"]).exists() or not data["episodes"]:
        return
    rehearse(settings)
    total = data["episodes"] + data["validation_episodes"]
    with tqdm(desc="collecting", unit=" episodes", total=total, disable=None) as bar:
        collect(
            settings["env"]["id"],
            data["root"],
            episodes=data["episodes"],
            validation_episodes=data["validation_episodes"],
            seed=data["seed"],
            progress=lambda done, total: bar.update(done - bar.n),
        )


def augmentation(settings: Mapping[str, Any], image_size: tuple[int, int]) -> Any:
    """What changes the images of training batches."""
    from vla_mini.data.augmentation import Augmentation  # torchvision takes seconds, and not all callers train

    return Augmentation(**settings["augmentation"], seed=settings["seed"], image_size=image_size)


def rehearse(settings: Mapping[str, Any]) -> None:
    """Build both once, from two episodes: what does not fit is refused before thousands are collected."""
    env_id, data = settings["env"]["id"], settings["data"]
    with contextlib.closing(vla_mini.envs.make(env_id)) as env:
        longest = env.spec.max_episode_steps
    several = settings["trainer"]["devices"] * data["batch_size"]
    if longest and several > data["episodes"] * longest:
        most = f"{data['episodes']} episodes of at most {longest} frames"
        raise ValueError(f"data.batch_size={data['batch_size']}: a batch would need {several} frames, and there will be {most}")
    with TemporaryDirectory() as folder:
        collect(env_id, Path(folder) / "data", episodes=1, validation_episodes=1, num_workers=1)
        demonstrations = read_dataset(Path(folder) / "data")
        if longest:  # no two episodes tell how long the longest of thousands will be
            demonstrations = _lengthened(demonstrations, longest)
        settings = {**settings, "data": {**data, "batch_size": 1}}
        data_module(settings, demonstrations, _begin(settings, demonstrations))


def _lengthened(demonstrations: Demonstrations, length: int) -> Demonstrations:
    """The same episodes, each `length` frames long: where it was shorter its last frame stands still."""
    bounds = zip(demonstrations.episode_starts, demonstrations.episode_ends, strict=True)
    frames = np.concatenate([np.minimum(np.arange(start, start + length), end - 1) for start, end in bounds])
    ends = length * np.arange(1, 1 + len(demonstrations.episode_ends))
    per_frame = {name: getattr(demonstrations, name)[frames] for name in ("states", "actions", "task_index", "frames")}
    return demonstrations._replace(episode_starts=ends - length, episode_ends=ends, **per_frame)
