"""A run's settings and demonstrations -> the policy that training begins with and the data that it is trained on.

Lightning and torchvision, which take seconds to import, are imported only by the functions that need them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

import vla_mini.envs
from vla_mini import pretrained
from vla_mini.data.chunks import check_lengths, relative_statistics, sample_chunks
from vla_mini.data.frames import is_decoded
from vla_mini.data.reader import Demonstrations
from vla_mini.finetuning.adapters import add_adapters
from vla_mini.finetuning.freezing import check_stages, check_trainable, freeze
from vla_mini.finetuning.initial_weights import load_initial_weights, warn_about_mismatch
from vla_mini.normalization import NormalizationSettings, relative_sources
from vla_mini.parts import KINDS, ActingDefaults
from vla_mini.policy import Policy
from vla_mini.settings import Data, TrainSettings
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

GRIPPERS = ("gripper", "finger", "claw", "jaw")  # whose actions stay absolute unless a list says otherwise


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
    policy = build_policy(settings, demonstrations)
    if settings.init_from is not None:
        warn_about_mismatch(policy, demonstrations)
    return policy


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
        "num_processes": settings.num_processes,
        "num_workers": 0 if is_decoded(demonstrations.frames) else settings.data.num_workers,
        "seed": settings.seed,
        "history": settings.history,
        "targets": policy.auxiliary_targets(demonstrations),
    }
    if not settings.augmentation:
        return DemonstrationDataModule(demonstrations, **arguments)
    augment = augmentation(settings, demonstrations.features.image_size)
    return AugmentedDataModule(demonstrations, augment=augment, mirror=mirror(settings, demonstrations.features), **arguments)


def augmentation(settings: TrainSettings, image_size: tuple[int, int]) -> Any:
    """What changes the images of training batches."""
    from vla_mini.data.augmentation import Augmentation

    transforms = {name: each and each.as_dict() for name, each in settings.augmentation.transforms.items()}
    return Augmentation(transforms, draws=settings.augmentation.draws, seed=settings.seed, image_size=image_size)


def mirror(settings: TrainSettings, features: Features) -> Any:
    """What mirrors every second sample of a training batch, or None."""
    from vla_mini.data.augmentation import Mirror

    found = settings.augmentation.mirror
    return found and Mirror(found.flip, found.values, features=features)


def trusts_remote_code(settings: TrainSettings) -> bool:
    """Whether a model of the run may execute code that came with it."""
    return any(part.arguments().get("trust_remote_code") for part in (settings.vision, settings.language))


def build_policy(settings: TrainSettings, demonstrations: Demonstrations) -> Policy:
    """As `untrained_policy`, without a look at the environment."""
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
