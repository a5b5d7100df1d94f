"""All checks in their order: a training run's settings, demonstrations and untrained policy -> findings, one by one."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils._pytree import tree_map

from vla_mini.data.chunks import ActionChunkDataset
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor import data, images, learning, machine, policy, recordings, replay
from vla_mini.doctor.finding import Finding, run_check, run_checks_on
from vla_mini.policy import Policy
from vla_mini.settings import TrainSettings
from vla_mini.setup.policy import augmentation
from vla_mini.training.trainer import choose_device
from vla_mini.types import Batch

NUM_SAMPLES = 16  # in the batch that is checked and overfitted


class TrainingRun(NamedTuple):
    """What is checked, as setup/policy.py makes it."""

    settings: TrainSettings
    demonstrations: Demonstrations
    policy: Policy  # untrained
    train_dataset: ActionChunkDataset
    validation_dataset: ActionChunkDataset


def run_checks(run: TrainingRun) -> Iterator[Finding]:
    """Every check, once. Nothing in `run` changes, but the policy moves to the device that it would be trained on."""
    run.policy.to(choose_device(run.settings.trainer.accelerator))
    yield from check_machine(run)
    finite = run_check("finite values", data.finite_values, run.demonstrations)
    yield finite
    if finite.status == "fail":
        yield Finding("skip", "not possible while some values of the demonstrations are not finite", check="other checks")
        return
    yield from check_data(run)
    yield from check_policy(run)
    yield from check_learning(run)
    yield from check_execution(run)


def check_machine(run: TrainingRun) -> Iterator[Finding]:
    trainer, num_parameters = run.settings.trainer, sum(parameter.numel() for parameter in run.policy.parameters())
    yield run_check("packages", machine.packages)
    yield run_check("cores", machine.cores, precision=trainer.precision, accelerator=trainer.accelerator)
    yield run_check("disk", machine.disk, Path("runs"), num_parameters=num_parameters)


def check_data(run: TrainingRun) -> Iterator[Finding]:
    settings, demonstrations = run.settings, run.demonstrations
    yield from check_recordings(demonstrations, lambda: images.scan(demonstrations))
    yield from run_checks_on(
        lambda: replay.replay(demonstrations, settings.env.address, seed=settings.data.seed),
        {"replay": replay.states, "images": replay.images, "instructions": replay.instructions, "labels": replay.labels},
    )
    yield run_check("tokens", data.tokens, demonstrations, run.policy)
    yield run_check("chunks", data.chunks, run.train_dataset, demonstrations, run.policy)
    if settings.augmentation is not None:
        augment = augmentation(settings, demonstrations.features.image_size)
        yield run_check("augmentation", data.augmentation, augment, demonstrations)
    yield run_check("validation", data.validation, run.validation_dataset, demonstrations, run.policy)


def check_recordings(demonstrations: Demonstrations, scan: Callable[[], images.ImageScan]) -> Iterator[Finding]:
    """What can be said of demonstrations without a policy. `scan` reads their frames."""
    for check in (
        *(recordings.still, recordings.outliers, recordings.jumps, recordings.idle, recordings.lengths),
        *(recordings.duplicates, recordings.tasks, recordings.actions),
    ):
        yield run_check(check.__name__, check, demonstrations)
    checks = {check.__name__: partial(check, demonstrations) for check in (images.readable, images.pixels, images.frozen)}
    yield from run_checks_on(scan, checks)


def check_policy(run: TrainingRun) -> Iterator[Finding]:
    parts = {"vision": run.settings.vision, "language": run.settings.language}
    frozen = [*run.settings.freeze, *(name for name, part in parts.items() if part.arguments().get("frozen"))]
    checks = {
        "vision input": policy.vision_input,
        "acting path": policy.acting_path,
        "padding": policy.padding,
        "first loss": policy.first_loss,
        "gradients": partial(policy.gradients, frozen=frozen),
        "dead units": policy.dead_units,
    }
    yield run_check("normalization", policy.normalization, run.policy, run.demonstrations)
    yield from run_checks_on(lambda: draw_samples(run), {name: partial(check, run.policy) for name, check in checks.items()})


def check_learning(run: TrainingRun) -> Iterator[Finding]:
    yield from run_checks_on(
        lambda: learning.overfit(run.policy, draw_samples(run), run.settings),
        {"one batch": learning.one_batch, "acting": learning.acting, "inputs": learning.inputs},
    )


def check_execution(run: TrainingRun) -> Iterator[Finding]:
    yield run_check("closed loop", policy.closed_loop, run.policy, run.settings.env.address)
    yield run_check("speed", machine.speed, run.policy, run.train_dataset, run.settings)


def draw_samples(run: TrainingRun) -> Batch:
    """Random training samples on the policy's device, one of them padded where there is such a sample."""
    order = np.random.default_rng(0).permutation(len(run.train_dataset))[:1024]
    padded = order[run.train_dataset.__getitems__(order).is_pad.any(dim=1).numpy()]
    last = padded[:1] if len(padded) else order[NUM_SAMPLES - 1 : NUM_SAMPLES]
    batch = run.train_dataset.__getitems__(np.concatenate([order[: NUM_SAMPLES - 1], last]))
    return tree_map(lambda tensor: tensor.to(run.policy.device), batch)
