"""All checks in their order: a run's settings, its demonstrations and the policy it begins with -> findings, as they come."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from vla_mini.data.reader import Demonstrations
from vla_mini.data.windows import ActionWindows
from vla_mini.doctor import data, learning, machine, policy, replay, running
from vla_mini.doctor.finding import Finding, broken, checked
from vla_mini.policy import Policy
from vla_mini.training.setup import augmentation
from vla_mini.types import Batch

SAMPLES = 16  # in the batch that is looked at, and learned by heart
Settings = Mapping[str, Any]  # those of configs/train.yaml, checked


def examine(
    settings: Settings,
    demonstrations: Demonstrations,
    patient: Policy,
    windows: ActionWindows,
    held_out: ActionWindows,
) -> Iterator[Finding]:
    """Every check, once. `patient`, `windows` and `held_out`: the untrained policy, its training and validation data, as
    training/setup.py makes them. All stay as they are, but that the policy goes to the device that it would be trained on."""
    wants_gpu = settings["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
    patient.to("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")
    yield from of_machine(settings, patient)
    numbers = checked("numbers", partial(data.numbers, demonstrations))
    yield numbers
    if numbers.status == "fail":
        yield Finding("the rest", "skip", "cannot be judged while the data hold what is no number")
        return
    yield from of_data(settings, demonstrations, patient, windows)
    yield checked("validation", partial(data.validation, held_out, demonstrations, patient))
    yield from of_policy(settings, demonstrations, patient, windows)
    yield from of_learning(settings, patient, windows)
    yield from of_running(settings, patient, windows)


def of_machine(settings: Settings, patient: Policy) -> Iterator[Finding]:
    trainer, num_parameters = settings["trainer"], sum(parameter.numel() for parameter in patient.parameters())
    yield checked("packages", machine.packages)
    yield checked("cores", partial(machine.cores, precision=trainer["precision"], accelerator=trainer["accelerator"]))
    yield checked("disk", partial(machine.disk, Path("runs"), num_parameters=num_parameters))


def of_data(settings: Settings, demonstrations: Demonstrations, patient: Policy, windows: ActionWindows) -> Iterator[Finding]:
    yield checked("spread", partial(data.spread, demonstrations))
    yield checked("pixels", partial(data.pixels, demonstrations))
    try:
        pairs = replay.replay(demonstrations, settings["env"]["id"], seed=settings["data"]["seed"])
    except ValueError as error:  # the reason why it cannot be
        yield Finding("replay", "skip", str(error))
    except Exception as error:  # whatever an environment may raise
        yield broken("replay", error)
    else:
        yield checked("replay", partial(replay.states, pairs))
        yield checked("images", partial(replay.images, pairs))
        yield checked("instructions", partial(replay.instructions, pairs))
        yield checked("labels", partial(replay.labels, pairs))
    yield checked("words", partial(data.words, demonstrations, patient))
    yield checked("windows", partial(data.windows, windows, demonstrations, patient))
    if settings["augmentation"]:
        augment = augmentation(settings, demonstrations.features.image_size)
        yield checked("augmentation", partial(data.augmentation, augment, demonstrations))


def of_policy(settings: Settings, demonstrations: Demonstrations, patient: Policy, windows: ActionWindows) -> Iterator[Finding]:
    yield checked("normalization", partial(policy.normalization, patient, demonstrations))
    try:
        batch = some_samples(windows, patient)
    except Exception as error:  # without samples there is nothing else to look at
        yield broken("samples", error)
        return
    yield checked("vision input", partial(policy.vision_input, patient, batch))
    yield checked("acting path", partial(policy.paths, patient, batch))
    yield checked("padding", partial(policy.padding, patient, batch))
    yield checked("first loss", partial(policy.first_loss, patient, batch))
    yield checked("gradients", partial(policy.gradients, patient, batch, frozen=policy.frozen_by_choice(settings)))
    yield checked("units", partial(policy.units, patient, batch))


def of_learning(settings: Settings, patient: Policy, windows: ActionWindows) -> Iterator[Finding]:
    learned: list[learning.Learned] = []

    def learn() -> Finding:
        batch = some_samples(windows, patient)
        learned.append(learning.learn(patient, batch, settings))
        return learning.one_batch(learned[0])

    yield checked("one batch", learn)
    if learned:
        yield checked("acting", partial(learning.acting, learned[0]))
        yield checked("inputs", partial(learning.inputs, learned[0]))


def of_running(settings: Settings, patient: Policy, windows: ActionWindows) -> Iterator[Finding]:
    yield checked("closed loop", partial(running.closed_loop, patient, settings["env"]["id"]))
    yield checked("speed", partial(running.speed, patient, windows, settings))


def some_samples(windows: ActionWindows, patient: Policy) -> Batch:
    """Random samples of the training data, one of them with padding where there is any."""
    order = np.random.default_rng(0).permutation(len(windows))[:1024]
    padded = order[windows.__getitems__(order).is_pad.any(dim=1).numpy()]
    indices = np.concatenate([order[: SAMPLES - 1], padded[:1] if len(padded) else order[SAMPLES - 1 : SAMPLES]])
    return tree_map(lambda tensor: tensor.to(patient.device), windows.__getitems__(indices))
