"""Before a policy is built: whether the machine can do what a run's settings ask for, and the run's demonstrations, which are
collected where they are missing.

Lightning, which takes seconds to import, is imported only where it is needed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import vla_mini.envs
from vla_mini.collection import collect
from vla_mini.data.mixture import read_demonstrations
from vla_mini.data.reader import Demonstrations, read_features
from vla_mini.data.statistics import training_statistics
from vla_mini.envs.spec import EnvSpec
from vla_mini.envs.toy_pick.spec import SPEC as TOY_PICK
from vla_mini.evaluation.evaluate import evaluation_splits
from vla_mini.registry import resolve
from vla_mini.settings import Env, TrainSettings
from vla_mini.setup.policy import build_policy, data_module
from vla_mini.utils.download import is_hub_id
from vla_mini.utils.errors import show


def check_start(settings: TrainSettings) -> None:
    """ValueError for what can be refused before there are demonstrations: what the machine and the environment lack."""
    from vla_mini.training.loggers import check_loggers
    from vla_mini.training.module import check_optimizer
    from vla_mini.training.trainer import check_trainer, choose_device

    check_trainer(settings)
    check_optimizer(settings.optimizer, device=choose_device(settings.trainer.accelerator))
    check_loggers(settings.logger)
    if settings.env.address is not None:
        evaluation_splits(settings.env.address, settings.evaluation.further_splits, setting="evaluation.further_splits")


def reading(settings: TrainSettings) -> dict[str, Any]:
    """The arguments of `read_demonstrations`. Without an environment, images of the dataset
    get the size that the vision part wants, unless the settings say another."""
    arguments, vision = settings.data.reading(), settings.vision
    if settings.env.address is None and arguments["image_size"] is None:
        arguments["image_size"] = resolve(vision.target, "vision").wanted_size(vision.arguments())
    return arguments


def training_demonstrations(settings: TrainSettings) -> Demonstrations:
    """The demonstrations that the settings name. With `data.recorded_in_env` states, actions and frames per second are called
    as in the environment; ValueError where it has another number of them."""
    demonstrations = read_demonstrations(**reading(settings))
    if not settings.data.recorded_in_env:
        return demonstrations
    spec, ours = vla_mini.envs.get_spec(settings.env.address), demonstrations.features
    for name, those in (("state", spec.features.state), ("action", spec.features.action)):
        if len(getattr(ours, name)) != len(those):
            raise ValueError(
                f"data.recorded_in_env=true: {name} is {show(getattr(ours, name))}, but of {spec.id} it is {show(those)}"
            )
    names = {"state": spec.features.state, "action": spec.features.action, "fps": spec.features.fps}
    return demonstrations._replace(features=ours._replace(**names))


def must_collect(settings: TrainSettings, is_given: Callable[[str], bool] = lambda key: False) -> bool:
    """Whether demonstrations are missing that the settings say how to collect. Else `read_dataset` refuses what is missing.

    A root of the form owner/name that the user gave, with nothing about what to collect, is one of the hub's.
    """
    data = settings.data
    if settings.env.address is None or not data.episodes or data.root is None or Path(data.root).exists() or data.revision:
        return False
    return not (is_given("data.root") and is_hub_id(data.root)) or is_given("env") or is_given("data.episodes")


def collect_missing(settings: TrainSettings, is_given: Callable[[str], bool] = lambda key: False) -> None:
    """Collect the demonstrations if they are missing. `is_given`: whether the user gave a setting (`must_collect`)."""
    if not must_collect(settings, is_given):
        return
    dry_run(settings)
    data, num_tasks = settings.data, vla_mini.envs.get_spec(settings.env.address).num_tasks
    total = num_tasks * (data.episodes + data.validation_episodes)
    with tqdm(desc="collecting", unit=" episodes", total=total, disable=None) as bar:
        collect(
            settings.env.address,
            data.root,
            episodes=data.episodes,
            validation_episodes=data.validation_episodes,
            seed=data.seed,
            progress=bar.update,
        )


def dry_run(settings: TrainSettings) -> None:
    """Build policy and data once, for two blank episodes: what does not fit is refused before thousands are collected."""
    data, spec = settings.data, vla_mini.envs.get_spec(settings.env.address)
    samples = settings.num_processes * data.batch_size
    episodes = spec.num_tasks * data.episodes
    if samples > episodes * spec.max_episode_steps:
        most = f"{episodes} episodes of at most {spec.max_episode_steps} frames"
        raise ValueError(f"data.batch_size={data.batch_size}: a batch needs {samples} frames, and there will be {most}")
    demonstrations = blank_demonstrations(spec)
    small = settings.model_copy(update={"data": data.model_copy(update={"batch_size": 1})})
    data_module(small, demonstrations, build_policy(small, demonstrations))


def blank_demonstrations(spec: EnvSpec) -> Demonstrations:
    """Two of the longest episodes that the environment may have, in which everything is zero."""
    features, length = spec.features, spec.max_episode_steps
    states, actions = (np.zeros((2 * length, size), np.float32) for size in (features.state_size, features.action_size))
    shape = (2 * length, len(features.cameras), 3, *features.image_size)
    return Demonstrations(
        features=features,
        tasks=("",),
        episode_index=np.arange(2),
        episode_starts=np.array([0, length]),
        episode_ends=np.array([length, 2 * length]),
        splits={"train": (0, 1), "validation": (1, 2)},
        states=states,
        actions=actions,
        task_index=np.zeros(2 * length, np.int64),
        frames=np.broadcast_to(np.uint8(0), shape),
        statistics=training_statistics(states, actions),
        fingerprint="",
        notes=(),
        mixture=(),
    )


def fit_environment(settings: TrainSettings, is_given: Callable[[str], bool]) -> tuple[TrainSettings, list[str]]:
    """Before the dataset is read: the settings, with env=none and without auxiliary losses where it is not one of the default
    environment and the user gave no other; and notes that say so. `untrained_policy` refuses any other environment that does
    not fit."""
    if is_given("env") or settings.env.id != TOY_PICK.id or settings.evaluation.further_splits:
        return settings, []
    options = reading(settings)
    root = next(iter(options["roots"] or [options["root"]]))
    if read_features(**options | {"root": root}) == TOY_PICK.features:
        return settings, []
    changed: dict[str, Any] = {"env": Env(id=None)} | ({} if is_given("auxiliary") else {"auxiliary": {}})
    note = f"the dataset is not one of {TOY_PICK.id}: training without an environment (env=none auxiliary=none)"
    return settings.model_copy(update=changed), [note, "experiment=real has settings that suit recordings"]
