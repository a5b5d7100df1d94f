"""The files of checkpoints, which are either complete or refused, and the record of what a run was made with.

    checkpoints/step_000200.ckpt                 weights, optimizer, loops, callbacks, random generators
    checkpoints/step_000200.ckpt.manifest.json   its checksum
    checkpoints/last.ckpt                        another name of the newest
    run.json                                     commit, versions, machine, fingerprint of the dataset

With trainer.strategy=fsdp a checkpoint is a folder of that name (distributed.py).

Training resumes bit-exactly, since checkpoints are saved between two optimizer steps (callbacks.py): the metrics of the one
before are logged, and its validation is over. The data are read without workers, so nothing else is in progress.
"""

import hashlib
import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from vla_mini.settings import CHANGEABLE_ON_RESUME, TrainSettings
from vla_mini.utils import files, machine

SUFFIX = ".ckpt"
METADATA = "meta.pt"  # of a checkpoint that is a folder: all but weights and optimizer, as Lightning names it


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint completely or not at all, with its checksum, and reads it without running code that is in it.

    - run: the run's `fingerprint`, which its checkpoints hold
    """

    def __init__(self, run: str = "") -> None:
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # The checksum is of what was meant, and Python's own write reports a full disk.
        torch.save(checkpoint | {"run": self.run}, content)
        path = Path(path)
        path.parent.mkdir(exist_ok=True)
        with files.replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
        files.write_checksum(path, hashlib.sha256(content.getbuffer()).hexdigest())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        files.manifest_of(Path(path)).unlink(missing_ok=True)
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """The states of all global random generators of this process, as tensors, lists and numbers."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": [name, keys.tolist(), *rest], "python": random.getstate()}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}{SUFFIX}"


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in `folder`, the newest first."""
    found = [(path.stem.removeprefix("step_"), path) for path in folder.glob(f"step_*{SUFFIX}")]
    return sorted(((int(step), path) for step, path in found if step.isdecimal()), reverse=True)


def link_last(path: Path) -> None:
    """`last.ckpt`: a link to `path`; where the file system has no links, a copy of a file, and nothing for a folder."""
    with files.replacing(path.with_name(f"last{SUFFIX}")) as temporary:
        try:
            temporary.symlink_to(path.name) if path.is_dir() else os.link(path, temporary)
        except OSError:
            if path.is_dir():
                return
            shutil.copyfile(path, temporary)


def newest_good(folder: Path, *, run: str | None = None) -> tuple[int, Path | None]:
    """(step, path) of the newest checkpoint that is as it was written, and of this `run` if one is given.

    A warning names each newer one. Returns (0, None) where none was ever finished. Raises ValueError where none is good.
    """
    faults = []
    for step, path in numbered(folder):
        if (fault := _fault(step, path, run)) is None:
            return step, path
        warnings.warn(f"{path} {fault}: resuming from the one before it", stacklevel=2)
        faults.append(f"{path.name} {fault}")
    if any(files.manifest_of(path).is_file() for _, path in numbered(folder)) or (folder.parent / "policy").is_dir():
        raise ValueError(": ".join([f"{folder} holds no good checkpoint to resume from", *faults[:1]]))
    return 0, None


def _fault(step: int, path: Path, run: str | None) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        if not files.manifest_of(path).is_file():
            return "was not finished"
        files.check_checksum(path, files.digest(path))
    except ValueError:
        return "is damaged: its checksum is another"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        rest = path / METADATA if path.is_dir() else path
        saved = torch.load(rest, map_location="cpu", weights_only=True, mmap=True)
        saved_step, saved_run = saved["global_step"], saved["run"]
    except Exception as error:  # A file from elsewhere may make the loader raise anything.
        return f"is no checkpoint ({type(error).__name__})"
    if saved_step != step:
        return f"is the one of step {saved_step}"
    return None if run in (None, saved_run) else "is of a run with other settings or other data than those of config.yaml"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of the policy that a checkpoint's run evaluates: their moving average, where there is one. ValueError where
    the checkpoint is damaged, and for one that is a folder."""
    if path.is_dir():
        raise ValueError(f"{path} is the checkpoint of a run with trainer.strategy=fsdp, whose weights are divided")
    if (fault := _fault(int(path.stem.removeprefix("step_")), path, None)) is not None:
        raise ValueError(f"{path} {fault}")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if average := saved["callbacks"].get("WeightAverage"):
        return average["weights"]
    prefix = "policy."  # of PolicyModule
    return {name.removeprefix(prefix): value for name, value in saved["state_dict"].items() if name.startswith(prefix)}


def clean_run_folder(run_dir: Path, *, step: int) -> None:
    """Before a run resumes after `step`: delete what a killed process left half written, and the report of its end.

    Checkpoints that are newer are not good, or it would resume from them; they are renamed to *.bad.
    """
    files.remove_temporary(run_dir)
    for number, path in numbered(run_dir / "checkpoints"):
        if number > step:
            for file in (path, files.manifest_of(path)):
                if file.exists():
                    bad = file.with_name(f"{file.name}.bad")
                    shutil.rmtree(bad, ignore_errors=True)  # a folder of an earlier attempt, which nothing replaces
                    file.replace(bad)
            path.with_name(f"last{SUFFIX}").unlink(missing_ok=True)
    for stale in ("report.html", "evaluation/metrics.json"):
        (run_dir / stale).unlink(missing_ok=True)


def provenance(precision: str, *, dataset: str, init_from: str | None = None) -> dict[str, Any]:
    """What a run is made with, for run.json and the loggers.

    - precision: that training uses
    - dataset, init_from: fingerprints of the demonstrations and of the policy that training begins from
    """
    hardware = machine.describe_machine() | {"precision": precision}
    sources = {"dataset": dataset, "init_from": init_from}
    return machine.git_state() | {"versions": machine.versions(), "hardware": hardware} | sources


def fingerprint(settings: TrainSettings, *, dataset: str, init_from: str | None = None) -> str:
    """The SHA-256 of what tells a run from all others: the settings that may not change, and the fingerprints of its data and
    of the policy that it began from, wherever these are kept."""
    kept = settings.model_dump(mode="json", exclude={"run_dir", "resume", *CHANGEABLE_ON_RESUME})
    strategy = settings.trainer.strategy
    kept["trainer"] |= {"max_steps": None, "devices": 1, "num_nodes": 1, "strategy": "fsdp" if strategy == "fsdp" else "auto"}
    kept["data"]["batch_size"] = settings.data.batch_size * settings.num_processes
    for name in ("roots", "cache", "verify", "num_workers"):
        kept["data"][name] = None
    kept["data"]["root"], kept["init_from"] = dataset, init_from
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@rank_zero_only
def write_provenance(run_dir: Path, found: Mapping[str, Any]) -> None:
    """What the run began with: a resumed one does not change it."""
    if not (run_dir / "run.json").exists():
        files.write_json(run_dir / "run.json", found)


@rank_zero_only
def check_provenance(run_dir: Path, found: Mapping[str, Any]) -> None:
    """Before a run is resumed: ValueError for other data or another `init_from`, a warning for what may change its numbers."""
    path = run_dir / "run.json"
    if not path.exists():  # it was killed before it was written
        return
    before = files.read_json(path)
    try:
        old, new = _compared(before), _compared(found)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it does not hold what the run began with") from error
    for name in [name for name, value in old.items() if value != new[name]]:
        if name in ("the dataset in data.root", "the policy in init_from"):
            raise ValueError(f"resume={run_dir}: {name} is not the one that the run began with")
        text = f"resume={run_dir}: it began with {name} {old[name]}, now {new[name]}: its numbers may differ"
        warnings.warn(text, stacklevel=2)


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run should have in common with the run as it began."""
    sources = {"the dataset in data.root": record["dataset"], "the policy in init_from": record["init_from"]}
    hardware = {name: record["hardware"][name] for name in ("threads", "gpus", "precision")}
    return sources | {"torch": record["versions"]["torch"], "commit": record["git_commit"]} | hardware
