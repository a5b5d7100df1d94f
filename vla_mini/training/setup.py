"""A run's settings and demonstrations -> the policy that training begins with and the data that it is trained on.

Every command that begins where train.py begins uses these functions. Lightning and torchvision, which take seconds to import,
are imported only by those that need them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import vla_mini.envs
from vla_mini import pretrained
from vla_mini.collection import collect
from vla_mini.data.chunks import check_lengths, relative_statistics, sample_chunks
from vla_mini.data.frames import is_decoded
from vla_mini.data.mixture import read_demonstrations
from vla_mini.data.reader import Demonstrations, read_features
from vla_mini.data.statistics import training_statistics
from vla_mini.envs.spec import EnvSpec
from vla_mini.envs.toy_pick.spec import SPEC as TOY_PICK
from vla_mini.evaluation.evaluate import evaluation_splits
from vla_mini.finetuning.adapters import add_adapters
from vla_mini.finetuning.freezing import check_stages, check_trainable, freeze
from vla_mini.finetuning.initial_weights import load_initial_weights, warn_about_mismatch
from vla_mini.normalization import NormalizationSettings, relative_sources
from vla_mini.parts import KINDS, ActingDefaults
from vla_mini.policy import Policy
from vla_mini.registry import resolve
from vla_mini.settings import Data, Env, TrainSettings
from vla_mini.utils.download import is_hub_id
from vla_mini.utils.errors import did_you_mean, show
from vla_mini.utils.features import Features

GRIPPERS = ("gripper", "finger", "claw", "jaw")  # whose actions stay absolute unless a list says otherwise


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
    samples = settings.trainer.devices * data.batch_size
    episodes = spec.num_tasks * data.episodes
    if samples > episodes * spec.max_episode_steps:
        most = f"{episodes} episodes of at most {spec.max_episode_steps} frames"
        raise ValueError(f"data.batch_size={data.batch_size}: a batch needs {samples} frames, and there will be {most}")
    demonstrations = blank_demonstrations(spec)
    small = settings.model_copy(update={"data": data.model_copy(update={"batch_size": 1})})
    data_module(small, demonstrations, _build(small, demonstrations))


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


def untrained_policy(settings: TrainSettings, demonstrations: Demonstrations) -> Policy:
    """The policy that training begins with: drawn from `seed`, or with the weights of `init_from`; with the adapters of `lora`,
    frozen where the settings say so.

    Raises ValueError where settings, environment and demonstrations do not fit.
    """
    if settings.env.address is not None:
        spec = vla_mini.envs.get_spec(settings.env.address)
        hint = "choose the environment that it was recorded in, or env=none to train without one"
        whose = f"the dataset {settings.data.root or 'data.roots'}"
        vla_mini.envs.check_fits(spec, demonstrations.features, whose=whose, hint=hint)
    policy = _build(settings, demonstrations)
    if settings.init_from is not None:
        warn_about_mismatch(policy, demonstrations)
    return policy


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


def notes_on(policy: Policy, demonstrations: Demonstrations) -> Iterator[str]:
    """What a user should know of the dataset before training, a line each."""
    yield from demonstrations.notes
    actions, relative = policy.features.action, policy.normalization.settings.relative
    if relative:
        absolute = ", ".join(name for name in actions if name not in relative) or "none"
        yield f"{len(relative)} of {len(actions)} actions are relative to the state; absolute: {absolute}"
    tokens = dict(zip(demonstrations.tasks, _token_rows(policy, demonstrations.tasks), strict=True))
    several = [task for task in tokens if len(task.split()) > 1]
    without_end = _token_rows(policy, [task.rsplit(maxsplit=1)[0] for task in several])
    if cut := [task for task, row in zip(several, without_end, strict=True) if tokens[task] == row]:
        yield f"{len(cut)} instructions are longer than the tokenizer's limit, and are cut, such as {cut[0]!r}"
    of_row = {row: task for task, row in reversed(tokens.items())}  # the first task with each
    if same := [task for task, row in tokens.items() if of_row[row] != task]:
        other = of_row[tokens[same[0]]]
        yield f"{len(same)} instructions become the tokens of another one, such as {same[0]!r} those of {other!r}"


def _token_rows(policy: Policy, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each text."""
    if not texts:
        return []
    tokens, mask = policy.tokenize(list(texts))
    return [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]


def data_module(settings: TrainSettings, demonstrations: Demonstrations, policy: Policy) -> Any:
    """The LightningDataModule of the demonstrations, with the tokens and the auxiliary targets of the policy."""
    from vla_mini.data.module import AugmentedDataModule, DemonstrationDataModule

    arguments = {
        "tokenize": policy.tokenize,
        "horizon": settings.data.horizon,
        "batch_size": settings.data.batch_size,
        "num_processes": settings.trainer.devices,
        "num_workers": 0 if is_decoded(demonstrations.frames) else settings.data.num_workers,
        "seed": settings.seed,
        "history": settings.history,
        "targets": policy.auxiliary_targets(demonstrations),
    }
    if not settings.augmentation:
        return DemonstrationDataModule(demonstrations, **arguments)
    augment = augmentation(settings, demonstrations.features.image_size)
    return AugmentedDataModule(demonstrations, augment=augment, **arguments)


def augmentation(settings: TrainSettings, image_size: tuple[int, int]) -> Any:
    """What changes the images of training batches."""
    from vla_mini.data.augmentation import Augmentation

    transforms = {name: each and each.as_dict() for name, each in settings.augmentation.transforms.items()}
    return Augmentation(transforms, draws=settings.augmentation.draws, seed=settings.seed, image_size=image_size)


def trusts_remote_code(settings: TrainSettings) -> bool:
    """Whether a model of the run may execute code that came with it."""
    return any(part.arguments().get("trust_remote_code") for part in (settings.vision, settings.language))


def _build(settings: TrainSettings, demonstrations: Demonstrations) -> Policy:
    check_lengths(demonstrations, history=settings.history, horizon=settings.data.horizon)  # before any work with so many
    source = {"dataset": demonstrations.fingerprint} | ({"env": settings.env.address} if settings.env.address else {})
    folder = saved = None
    if settings.init_from is not None:  # first, since loading finds what is damaged
        folder = pretrained.locate(settings.init_from, setting="init_from")
        saved = Policy.from_pretrained(folder, trust_remote_code=trusts_remote_code(settings), setting="init_from")
        source["init_from"] = pretrained.fingerprint(folder)
    torch.manual_seed(settings.seed)
    parts = settings.model_dump(include=KINDS.keys())
    if settings.insulate:
        parts["backbone_action"] = {"_target_": "vla_mini.action.bins.BinsHead"}
    normalization = normalization_settings(settings.data, demonstrations.features)
    sources, statistics = None, demonstrations.statistics
    if normalization.relative:
        sources = relative_sources(demonstrations.features, normalization.relative)
        statistics = relative_statistics(demonstrations, settings.data.horizon, sources)
    policy = Policy(
        parts,
        features=demonstrations.features,
        statistics=statistics,
        horizon=settings.data.horizon,
        instructions=demonstrations.tasks,
        normalization=normalization,
        action_chunks=sample_chunks(demonstrations, settings.data.horizon, sources=sources)[0],
        assets=folder,
        history=settings.history,
        acting=ActingDefaults(settings.execute, settings.ensemble, settings.data.resize),
        units=demonstrations.units,
        ablate=settings.ablate,
        source=source,
    )
    if saved is not None:
        load_initial_weights(policy, saved, source=settings.init_from)
    _choose_trainable(policy, settings)
    return policy


def normalization_settings(data: Data, features: Features) -> NormalizationSettings:
    """How states and actions are normalised, and which actions are predicted relative to the state: those that it has, too.
    ValueError for a name in `data.absolute_actions` that there is not, and where state and action share none."""
    modes = data.normalization
    if data.actions == "absolute":
        return NormalizationSettings(modes.state, modes.action, modes.clip)
    absolute = data.absolute_actions
    if absolute is None:
        absolute = tuple(name for name in features.action if any(word in name.lower() for word in GRIPPERS))
    for name in absolute:
        if name not in features.action:
            raise ValueError(f"data.absolute_actions: there is no action {name!r}; {did_you_mean(name, features.action)}")
    relative = tuple(name for name in features.action if name in features.state and name not in absolute)
    if not relative:
        names = f"the state is {', '.join(features.state)}, the action {', '.join(features.action)}"
        raise ValueError(f"data.actions=relative: no action has the name of a state that it could be relative to: {names}")
    return NormalizationSettings(modes.state, modes.action, modes.clip, relative)


def _choose_trainable(policy: Policy, settings: TrainSettings) -> None:
    """Adapters and freezing; ValueError where other settings are about the training of what is frozen."""
    lora, multipliers = settings.lora, settings.schedule.multipliers
    if lora.targets:
        add_adapters(policy, **lora.model_dump())
    freeze(policy, settings.freeze)
    if policy.lora is not None:
        check_trainable(policy, policy.lora["layers"], setting="lora.targets")
        # A frozen language part may be named for its noise, which it adds in training mode.
        noisy = {"language"} if settings.language.arguments().get("noise") else set()
        check_trainable(policy, [name for name in lora.also_train if name not in noisy], setting="lora.also_train")
    check_stages(policy, settings.unfreeze_at)
    for name in multipliers:
        if name not in policy.components():
            raise ValueError(f"schedule.multipliers: there is no component {name!r}; {did_you_mean(name, policy.components())}")
    check_trainable(policy, multipliers, setting="schedule.multipliers")
