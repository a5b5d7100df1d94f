"""Variants x seeds under one budget, one run after the other, each in its own process.

    {variant: what train.py is told} x seeds ──▶ runs/<name>/<variant>-<hash>-seed<N>/

What makes it fair:

- All runs get the same number of optimizer steps, or of training seconds, and the same number of evaluations from which
  the policy that counts is chosen. All are evaluated on the same scenes, which no choice ever saw.
- Seconds are turned into steps beforehand: a short run of each variant measures its speed (`calibration`). A clock that stops
  training would cut off the decay of the learning rate, which runs over `max_steps`, and a decay that follows a clock would
  never be the same twice. So every run ends its decay, and can be repeated; the seconds it really took stand in the table.
- One run at a time, since two would slow each other; the seeds in turn, so that all variants meet the same machine.

A finished run is known by the hash of its resolved settings, of the weights and demonstrations that they name, and of the code
that trains and evaluates, comments aside, and is never repeated: a figure stands for the code beside it, and a comparison that
was interrupted goes on where it stopped. A run's folder counts as finished by a file that is written last.
"""

import ast
import functools
import getpass
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from tqdm import tqdm

from vla_mini import config, files, hub, pretrained
from vla_mini.data.reader import read_dataset
from vla_mini.evaluation.report import read_curves
from vla_mini.training import setup

PACKAGE = Path(__file__).parents[1]
TRAIN = PACKAGE.parent / "scripts" / "train.py"
ASIDE = {"comparison", "config", "doctor", "pages", "testing"}  # rooms on which no figure of a run depends
FINISHED = "finished.json"


class Run(NamedTuple):
    variant: str
    seed: int
    arguments: list[str]  # of train.py
    folder: Path


class Trained(NamedTuple):
    """All runs of a comparison: those that failed, by folder, with the reason; and the speeds that were measured for it."""

    runs: list[Run]
    failures: dict[Path, str]
    steps_per_second: dict[str, float]  # by variant; empty for a budget in steps


# ---- before


def rehearse(variants: Mapping[str, Sequence[str]], budget: Mapping[str, Any]) -> None:
    """What train.py checks before its work, for every variant: what does not fit is refused before the first run."""
    for variant, arguments in variants.items():
        settings = settings_of(arguments, budget)
        root = settings["data"]["root"]
        try:
            setup.check_start(settings)
            if Path(root).exists() or not settings["data"]["episodes"]:
                demonstrations = read_dataset(root)
                setup.data_module(settings, demonstrations, setup.untrained_policy(settings, demonstrations))
            else:
                setup.rehearse(settings)
        except ValueError as error:
            raise ValueError(f"variant {variant}: {error}") from error


def collect_missing(variants: Mapping[str, Sequence[str]], budget: Mapping[str, Any]) -> None:
    """The demonstrations of all variants, before the first run: a run is known by them."""
    for arguments in variants.values():
        setup.collect_missing(settings_of(arguments, budget))


def settings_of(arguments: Sequence[str], budget: Mapping[str, Any]) -> dict[str, Any]:
    """What train.py makes of `arguments`, for the steps of the budget; of seconds, nobody knows yet how many steps they are."""
    steps = [f"trainer.max_steps={budget['steps']}"] if budget["steps"] else []
    return OmegaConf.to_container(config.load("train", [*arguments, *steps]))


def plan(variant: str, arguments: Sequence[str], *, seed: int, within: Path, purpose: str = "") -> Run:
    """The run, in the folder that its settings, what lies where they point, and the code give it: the same for the same."""
    arguments = [*arguments, f"seed={seed}"]
    settings = OmegaConf.to_container(config.load("train", arguments))
    same = {key: value for key, value in settings.items() if key not in ("seed", "run_dir")}  # these are said by the name
    same["contents"] = contents(settings)
    digest = hashlib.sha256((json.dumps(same, sort_keys=True) + code_digest()).encode()).hexdigest()[:10]
    name = re.sub(r"[^\w.=+-]+", "_", variant)
    return Run(variant, seed, arguments, within / "-".join(filter(None, [name, digest, purpose, f"seed{seed}"])))


def contents(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what lies where the settings point: other weights or demonstrations under the same name make another run."""
    found: dict[str, Any] = {}
    if settings["init_from"] is not None:
        found["init_from"] = pretrained.identity(settings["init_from"])
    places = {name: settings[name].get("path") for name in ("vision", "language")} | {"data": settings["data"]["root"]}
    for name, place in places.items():
        if place is not None and Path(place).exists():
            root = Path(place)
            found[name] = files.digests(
                root.parent, [root] if root.is_file() else sorted(filter(Path.is_file, root.rglob("*")))
            )
        elif place is not None and "trust_remote_code" in settings[name]:  # a hub id: the commit that it stands for now
            found[name] = hub.fetch(place, trust_remote_code=settings[name]["trust_remote_code"]).name
    return found


def code_digest() -> str:
    """SHA-256 over the syntax trees of the package, so that neither comments nor layout count."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ASIDE)
    return _digest(tuple(path.read_text(encoding="utf-8") for path in (*paths, TRAIN)))


@functools.lru_cache(maxsize=1)
def _digest(sources: tuple[str, ...]) -> str:
    trees = [ast.dump(ast.parse(source)) for source in sources]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()


@contextmanager
def alone() -> Iterator[None]:
    """Refuses, by a ValueError, a second comparison on this machine at the same time: each would slow the other's runs."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"vla-mini-compare-{_user()}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError("another compare.py is at work on this machine, and two would slow each other: wait for it") from None


def _user() -> str | int:
    return os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # not every user has a name


def budgeted(arguments: Sequence[str], budget: Mapping[str, Any], *, speed: float | None) -> list[str]:
    """`arguments` of train.py, for the steps of the budget (at `speed` steps a second), with its evaluations on the way."""
    parts = budget["selections"] or 1
    # Seconds make other steps of each variant: whole stretches of them, so that none gets more chances than another.
    steps = budget["steps"] or parts * max(1, round(speed * budget["seconds"] / parts))
    every = [f"evaluation.every_n_steps={-(-steps // parts)}"] if budget["selections"] else []
    return [*arguments, f"trainer.max_steps={steps}", *every]


def calibration(variant: str, arguments: Sequence[str], budget: Mapping[str, Any], *, within: Path) -> Run:
    """The short run that tells a variant's speed: no evaluation but the smallest, and its clock written down often."""
    steps = budget["calibration_steps"]
    short = [f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={max(1, steps // 6)}"]
    short += ["evaluation.episodes=1", "evaluation.selection_episodes=1", "evaluation.every_n_steps=0"]
    return plan(variant, [*arguments, *short], seed=0, within=within, purpose="calibration")


def steps_per_second(run: Run) -> float:
    """A calibration's speed from the first look at the clock to the last: the first steps, which also set up, are left out."""
    steps, seconds = read_curves(run.folder / "metrics.csv")["seconds"]
    return (steps[-1] - steps[0]) / (seconds[-1] - seconds[0])


# ---- the runs


def train_all(
    variants: Mapping[str, Sequence[str]], *, seeds: Sequence[int], budget: Mapping[str, Any], within: Path
) -> Trained:
    """Every variant with every seed, calibrations first, and how each ended printed. A failed run does not stop the others."""
    trained = Trained([], {}, {})
    total = len(variants) * (len(seeds) + bool(budget["seconds"]))
    with tqdm(total=total, unit=" runs", disable=None) as bar:

        def carry_out(run: Run, kind: str) -> bool:
            bar.set_description(f"{run.variant}, {kind}")
            again = (run.folder / FINISHED).is_file()
            if reason := train(run):
                trained.failures[run.folder] = reason
            bar.write(f"{run.variant}, {kind}: {f'failed: {reason}' if reason else 'finished before' if again else 'finished'}")
            bar.update()
            return reason is None

        for variant, arguments in variants.items() if budget["seconds"] else ():
            run = calibration(variant, arguments, budget, within=within)
            if carry_out(run, "calibration"):
                trained.steps_per_second[variant] = steps_per_second(run)
            else:
                trained.runs.append(run)
        for seed, (variant, arguments) in itertools.product(seeds, variants.items()):
            speed = trained.steps_per_second.get(variant)
            if budget["seconds"] and speed is None:
                continue  # its calibration failed, and that is what the table will say
            run = plan(variant, budgeted(arguments, budget, speed=speed), seed=seed, within=within)
            trained.runs.append(run)
            carry_out(run, f"seed {seed}")
    return trained


def train(run: Run) -> str | None:
    """Train, unless that was done before, in a process of its own; in one line why that failed, or None.

    What an interrupted or failed run left behind is moved aside. The process ends with us, if we are told to end.
    """
    if (run.folder / FINISHED).is_file():
        return None
    _move_aside(run.folder)
    code_before = code_digest()
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    command = [sys.executable, str(TRAIN), *run.arguments, f"hydra.run.dir={run.folder}"]
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if code:
        return _reason(log, code)
    if code_digest() != code_before:  # and nobody knows which of it the run is of
        return "the code in vla_mini/ was changed while it ran: start it again"
    os.replace(log, run.folder / "log.txt")
    files.write_text(run.folder / FINISHED, json.dumps({"arguments": run.arguments, "code": code_before}, indent=2) + "\n")
    return None


def _move_aside(folder: Path) -> None:
    if folder.exists():
        number = sum(1 for _ in folder.parent.glob(f"{folder.name}.unfinished-*"))
        folder.rename(folder.with_name(f"{folder.name}.unfinished-{number + 1}"))


def _reason(log: Path, code: int) -> str:
    """The line in which train.py said why it failed, or how it ended where it could not."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("train: ") for line in lines if line.startswith("train: ")]
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return said[-1] if said else f"{ended}; see {log}"
