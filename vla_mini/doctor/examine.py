"""All checks in their order: a run's settings, its demonstrations and the policy it begins with -> findings."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from vla_mini.data.reader import Demonstrations
from vla_mini.data.windows import ActionWindows
from vla_mini.doctor import data, learning, machine, policy, replay, speed
from vla_mini.doctor.finding import Finding, checked
from vla_mini.policy import Policy
from vla_mini.types import Batch

SAMPLES = 16  # in the batch that is looked at, and learned by heart


def examine(
    settings: Mapping[str, Any],
    demonstrations: Demonstrations,
    patient: Policy,
    windows: ActionWindows,
    *,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Every check, once. What they are given stays as it is.

    - settings: those of configs/train.yaml, checked
    - patient, windows: the untrained policy and the training data, as training/setup.py makes them
    - on_finding: called with each finding as it comes
    """
    findings: list[Finding] = []

    def run(check: str, function: Callable[[], Finding]) -> None:
        findings.append(checked(check, function))
        on_finding(findings[-1])

    trainer = settings["trainer"]
    patient.to("cuda" if trainer["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu")
    num_parameters = sum(parameter.numel() for parameter in patient.parameters())
    run("packages", machine.packages)
    run("cores", partial(machine.cores, precision=trainer["precision"], accelerator=trainer["accelerator"]))
    run("disk", partial(machine.disk, Path("runs"), num_parameters=num_parameters))
    run("numbers", partial(data.numbers, demonstrations))
    if findings[-1].status == "fail":
        run("the rest", lambda: Finding("the rest", "skip", "cannot be judged while the data hold what is no number"))
        return findings
    run("spread", partial(data.spread, demonstrations))
    run("pixels", partial(data.pixels, demonstrations))
    for finding in replayed(settings, demonstrations):
        run(finding.check, lambda finding=finding: finding)
    run("words", partial(data.words, demonstrations, patient))
    run("windows", partial(data.windows, windows, demonstrations, patient))
    batch = some_samples(windows, patient)
    run("normalization", partial(policy.normalization, patient, demonstrations))
    run("vision input", partial(policy.vision_input, patient, batch))
    run("acting path", partial(policy.paths, patient, batch))
    run("padding", partial(policy.padding, patient, batch))
    run("first loss", partial(policy.first_loss, patient, batch))
    run("gradients", partial(policy.gradients, patient, batch, frozen=policy.frozen_by_choice(settings)))
    run("units", partial(policy.units, patient, batch))
    learned: list[learning.Learned] = []

    def learn() -> Finding:
        learned.append(learning.learn(patient, batch, settings))
        return learning.one_batch(learned[0])

    run("one batch", learn)
    if learned:
        run("acting", lambda: learning.acting(learned[0]))
        run("inputs", lambda: learning.inputs(learned[0], told=len(demonstrations.tasks) > 1))
    run("closed loop", partial(speed.closed_loop, patient, settings["env"]["id"]))
    run("speed", partial(speed.speed, patient, windows, settings))
    return findings


def replayed(settings: Mapping[str, Any], demonstrations: Demonstrations) -> list[Finding]:
    """What the expert's own replay says of states, images, instructions and labels; why not, where it cannot be had."""
    try:
        pairs = replay.replay(demonstrations, settings["env"]["id"], seed=settings["data"]["seed"])
    except ValueError as error:
        return [Finding("replay", "skip", str(error))]
    checks = {"replay": replay.states, "images": replay.images, "instructions": replay.instructions, "labels": replay.labels}
    return [checked(name, partial(function, pairs)) for name, function in checks.items()]


def some_samples(windows: ActionWindows, patient: Policy) -> Batch:
    """Random samples of the training data, the last of an episode among them, so that something is padded."""
    order = np.random.default_rng(0).permutation(len(windows))
    indices = order[:SAMPLES].copy()
    padded = windows.__getitems__(order[:1024]).is_pad.any(dim=1).numpy()
    indices[-1:] = order[:1024][padded][:1] if padded.any() else indices[-1:]
    return tree_map(lambda tensor: tensor.to(patient.device), windows.__getitems__(indices))
