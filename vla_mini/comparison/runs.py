"""Variants x seeds under one budget, each trained in a process of its own: one after the other here, or as jobs of a cluster.

    {variant: arguments of train.py} x seeds ──train_all──▶ runs/<name>/<variant>-<hash>-seed<N>/

What makes the comparison fair:

- All runs get the same number of optimizer steps, or of training seconds, and as many evaluations to choose their best policy
  from. All are evaluated on the same scenes, on which no choice depends.
- Seconds are converted to steps beforehand: a short run of each variant (`plan_calibration`) measures its speed. So every run
  completes its learning-rate schedule, which a clock would cut off, and can be repeated. The table gives the seconds it took.
- Here (launcher=local) one run at a time, since two would slow each other down; all variants with one seed, then all with the
  next.

A finished run is identified by a hash of its resolved settings, of the weights and demonstrations that they name, and of the
code that trains and evaluates (comments do not count). It is not repeated, so an interrupted comparison resumes where it
stopped. A run has finished once its folder contains FINISHED, which is written last.
"""

import ast
import atexit
import functools
import getpass
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from vla_mini import config, pretrained
from vla_mini.commands import PACKAGE, shipped
from vla_mini.config.command_settings import Budget, CompareSettings
from vla_mini.config.sources import config_dir_arguments
from vla_mini.evaluation.curves import read_curves
from vla_mini.settings import TrainSettings
from vla_mini.setup import demonstrations as missing
from vla_mini.setup.demonstrations import check_start, must_collect, training_demonstrations
from vla_mini.setup.policy import data_module, untrained_policy
from vla_mini.utils import files, hub
from vla_mini.utils.errors import as_value_error, one_line, show

TRAIN = shipped("scripts") / "train.py"
# Folders without influence on the results of a run.
EXCLUDED = {"comparison", "config", "doctor", "reports", "scripts", "testing"}
FINISHED = "finished.json"
CHANGED = "the code in vla_mini/ changed after the comparison began: start it again"
JOB_MINUTES = 24 * 60  # that a job may take, unless submitit.timeout_min says otherwise


class Run(NamedTuple):
    """A variant with one seed."""

    variant: str
    seed: int
    arguments: list[str]  # of train.py
    folder: Path
    command: list[str]  # train.py, and where its configs are
    code: str  # digest
    failure: str | None = None  # the reason, where it has failed


def variant_settings(comparison: CompareSettings, variant: str) -> TrainSettings:
    """The settings of a variant. It is not yet known how many steps a budget of seconds will be."""
    steps = [f"trainer.max_steps={comparison.budget.steps}"] if comparison.budget.steps else []
    return config.load("train", [*comparison.variants[variant], *steps])


def dry_run(comparison: CompareSettings) -> None:
    """All that train.py checks before it starts to work, for every variant, and whether runs can be started as the settings
    ask: mistakes are refused before the first run."""
    starter(comparison)
    for variant in comparison.variants:
        with as_value_error(f"variant {variant}", ValueError):
            settings = variant_settings(comparison, variant)
            if settings.env.address is None:
                raise ValueError("env=none has no success rate to compare: choose an environment")
            check_start(settings)
            if must_collect(settings):
                missing.dry_run(settings)
            else:
                demonstrations = training_demonstrations(settings)
                data_module(settings, demonstrations, untrained_policy(settings, demonstrations))


@contextmanager
def exclusive(comparison: CompareSettings) -> Iterator[None]:
    """Raises ValueError while another comparison trains on this machine, as each would slow down the runs of the other; with
    launcher=submitit, while the same comparison is running."""
    user = os.getuid() if sys.platform != "win32" else getpass.getuser()  # a user of a container may have no name
    name = re.sub(r"[^\w.=+-]+", "_", comparison.name) if comparison.launcher == "submitit" else ""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "-".join(["vla-mini-compare", str(user), f"{name}.lock"]), timeout=0):
            yield
    except Timeout:
        reason = f"would train the same runs of {name}" if name else "would slow each other down"
        raise ValueError(f"another compare.py is running on this machine, and two {reason}") from None


# ---- which runs


def plan(comparison: CompareSettings, variant: str, arguments: Sequence[str], *, seed: int, purpose: str = "") -> Run:
    """The run, in a folder of runs/<name>/ that is named after its settings, the files that they name, and the code."""
    arguments = [*arguments, f"seed={seed}"]
    settings = config.load("train", arguments)
    content = settings.model_dump(mode="json", exclude={"seed", "run_dir"}) | {"files": file_digests(settings)}
    code = code_digest(TRAIN)
    digest = hashlib.sha256((json.dumps(content, sort_keys=True) + code).encode()).hexdigest()[:10]
    parts = [re.sub(r"[^\w.=+-]+", "_", variant), digest, purpose, f"seed{seed}"]
    folder = Path("runs") / comparison.name / "-".join(filter(None, parts))
    return Run(variant, seed, arguments, folder, [str(TRAIN), *config_dir_arguments()], code)


def plan_calibration(comparison: CompareSettings, variant: str) -> Run:
    """The short run that measures a variant's speed: with as little evaluation as possible, and its time logged often."""
    steps = comparison.budget.calibration_steps
    short = [f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={max(1, steps // 6)}"]
    short += ["evaluation.episodes=1", "evaluation.selection_episodes=1", "evaluation.every_n_steps=0"]
    return plan(comparison, variant, [*comparison.variants[variant], *short], seed=0, purpose="calibration")


def with_budget(arguments: Sequence[str], budget: Budget, *, steps_per_second: float | None) -> list[str]:
    """`arguments` of train.py with the steps and the evaluations of the budget. `steps_per_second`: for a budget of seconds."""
    parts = budget.selections or 1
    # A budget of seconds becomes a multiple of `parts` steps, so that no variant is evaluated more often than another.
    steps = budget.steps or parts * max(1, round(steps_per_second * budget.seconds / parts))
    every = [f"evaluation.every_n_steps={-(-steps // parts)}"] if budget.selections else []
    return [*arguments, f"trainer.max_steps={steps}", *every]


def measured_speed(calibration: Run) -> float:
    """Optimizer steps per second, without those before the first logged time, which include compilation and caching."""
    steps, seconds = read_curves(calibration.folder / "metrics.csv")["seconds"]
    return (steps[-1] - steps[0]) / (seconds[-1] - seconds[0])


def file_digests(settings: TrainSettings) -> dict[str, Any]:
    """Digests of the files that the settings name: other weights, demonstrations or plugins under the same name make another
    run."""
    found: dict[str, Any] = {"init_from": pretrained.fingerprint(settings.init_from)} if settings.init_from else {}
    for package in settings.plugins:
        spec = find_spec(package)
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            found[f"plugin {package}"] = files.digests(folder, sorted(folder.rglob("*.py")))
        if spec and spec.origin and not spec.submodule_search_locations:  # one file
            found[f"plugin {package}"] = files.digest(Path(spec.origin))
    arguments = {"vision": settings.vision.arguments(), "language": settings.language.arguments()}
    paths = {name: part.get("path") for name, part in arguments.items()} | {"data": settings.data.root}
    for name, path in paths.items():
        if path is not None and Path(path).exists():
            root = Path(path)
            every_file = [root] if root.is_file() else sorted(filter(Path.is_file, root.rglob("*")))
            found[name] = files.digests(root.parent, every_file)
        elif path is not None and name != "data":  # the id of a model on the hub: its newest commit
            found[name] = hub.fetch(path, trust_remote_code=arguments[name].get("trust_remote_code", False)).name
    return found


def code_digest(script: Path) -> str:
    """SHA-256 of the syntax trees of train.py and the package (without EXCLUDED): comments and layout do not count."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in EXCLUDED)
    return _digest(tuple(path.read_text(encoding="utf-8") for path in (*paths, script)))


@functools.lru_cache(maxsize=1)
def _digest(sources: tuple[str, ...]) -> str:
    trees = [ast.dump(ast.parse(source)) for source in sources]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()


# ---- training


def train_all(comparison: CompareSettings) -> tuple[list[Run], dict[str, float]]:
    """Train every variant with every seed, after the calibration runs, and print how each run ended.

    Returns the runs, and the measured steps per second by variant, of which a budget of steps needs none. The other runs
    continue after a failure. A variant whose calibration failed is not trained.
    """
    variants, seeds, budget = comparison.variants, comparison.seeds, comparison.budget
    start = starter(comparison)
    speeds: dict[str, float] = {}
    with tqdm(total=len(variants) * (len(seeds) + bool(budget.seconds)), unit=" runs", disable=None) as bar:

        def train_these(labels: Sequence[str], runs: Sequence[Run]) -> list[Run]:
            started, ended = [None if (run.folder / FINISHED).is_file() else start(run) for run in runs], []
            for label, run, result in zip(labels, runs, started, strict=True):
                bar.set_description(f"{run.variant}, {label}")
                failure = result and result()
                outcome = "finished before" if result is None else f"failed: {failure}" if failure else "finished"
                bar.write(f"{run.variant}, {label}: {outcome}")
                bar.update()
                ended.append(run._replace(failure=failure))
            return ended

        calibrations = [plan_calibration(comparison, variant) for variant in (variants if budget.seconds else ())]
        calibrations = train_these(["calibration"] * len(calibrations), calibrations)
        speeds |= {run.variant: measured_speed(run) for run in calibrations if not run.failure}
        runs = [
            plan(comparison, variant, with_budget(arguments, budget, steps_per_second=speeds.get(variant)), seed=seed)
            for seed, (variant, arguments) in itertools.product(seeds, variants.items())
            if budget.steps or variant in speeds
        ]
        trained = train_these([f"seed {run.seed}" for run in runs], runs)
    return [run for run in calibrations if run.failure] + trained, speeds


def starter(comparison: CompareSettings) -> Callable[[Run], Callable[[], str | None]]:
    """What starts a run, and returns what waits for its end, and gives the reason of a failure.

    Here each run begins when it is waited for, one after the other. With launcher=submitit each is a job, and all wait in the
    queue of the cluster at once. Where this process ends before them, they are cancelled. ValueError where the package or SLURM
    is missing, or the package does not know one of the settings.
    """
    if comparison.launcher == "local":
        return lambda run: functools.partial(train, run)
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(f"launcher=submitit: the package {error.name} is missing: pip install 'vla-mini[slurm]'") from error
    settings = {"cluster": "slurm", "timeout_min": JOB_MINUTES} | comparison.submitit
    if settings["cluster"] == "slurm" and shutil.which("srun") is None:
        raise ValueError("launcher=submitit: there is no SLURM here (no srun); to try it without, submitit={cluster: local}")
    with as_value_error(f"submitit={show(comparison.submitit)}", Exception):
        executor = submitit.AutoExecutor(Path("runs") / comparison.name / "jobs", cluster=settings.pop("cluster"))
        executor.update_parameters(**settings)

    def start(run: Run) -> Callable[[], str | None]:
        try:
            job = executor.submit(train, run)
            atexit.register(lambda: job.done() or job.cancel(check=False))
        except Exception as error:  # whatever refuses it
            reason = f"not submitted: {one_line(error)[-300:]}"
            return lambda: reason

        def wait() -> str | None:
            try:
                return job.result()
            except Exception as error:  # whatever ended the job
                return f"job {job.job_id}: {one_line(error)[-300:]}"

        return wait

    return start


def train(run: Run) -> str | None:
    """Train a run that has not finished in a process of its own. Returns the reason of a failure in one line, or None.

    The folder of an earlier attempt that did not finish is renamed. The process is terminated where this one is interrupted.
    """
    script = Path(run.command[0])
    if code_digest(script) != run.code:  # The folder is named after the code.
        return CHANGED
    if run.folder.exists():
        number = 1 + len(list(run.folder.parent.glob(f"{run.folder.name}.unfinished-*")))
        run.folder.rename(run.folder.with_name(f"{run.folder.name}.unfinished-{number}"))
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_name(f"{run.folder.name}.log")
    command = [sys.executable, *run.command, *run.arguments, f"hydra.run.dir={run.folder}"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            exit_code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if exit_code:
        return _failure_reason(log, exit_code)
    if code_digest(script) != run.code:  # It is unknown which of the two codes the run is a result of.
        return CHANGED
    os.replace(log, run.folder / "log.txt")
    files.write_json(run.folder / FINISHED, {"arguments": run.arguments, "code": run.code})
    return None


def _failure_reason(log: Path, exit_code: int) -> str:
    """The last error message of train.py, or how the process ended where there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line.removeprefix("train: ") for line in lines if line.startswith("train: ")]
    ended = f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return messages[-1] if messages else f"{ended}; see {log}"
