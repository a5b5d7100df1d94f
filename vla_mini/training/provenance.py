"""What a run was made with: the commit, the packages, the machine, the data. Written to run.json and told to every logger."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from vla_mini import files
from vla_mini.training.precision import choose_precision

RUN = "run.json"
PACKAGES = ("vla-mini", "torch", "torchvision", "lightning", "transformers", "tokenizers", "numpy", "gymnasium")


def provenance(settings: Mapping[str, Any], *, dataset: str, init_from: str | None = None) -> dict[str, Any]:
    """`settings` are those of configs/train.yaml; `dataset` is its fingerprint, `init_from` that of a policy to begin from."""
    trainer = settings["trainer"]
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "precision": choose_precision(trainer["precision"], accelerator=trainer["accelerator"]),
        },
        "dataset": dataset,
        "init_from": init_from,
    }


def identity(settings: Mapping[str, Any], *, dataset: str, init_from: str | None = None) -> str:
    """What tells a run from all others, for its checkpoints: the SHA-256 of the fingerprints of its data and of what it began
    from, and of the settings that may not change, wherever all these are kept."""
    same = {
        name: value
        for name, value in settings.items()
        if name not in ("run_dir", "resume", "logger", "compile", "compile_dynamic")
    }
    same["trainer"] = {**settings["trainer"], "max_steps": None}
    same["data"] = {**settings["data"], "root": dataset}
    same["init_from"] = init_from
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


@rank_zero_only
def write_provenance(run_dir: Path, found: dict[str, Any]) -> None:
    """With what the run began; a resumed one keeps that."""
    if not (run_dir / RUN).exists():
        files.write_text(run_dir / RUN, json.dumps(found, indent=2) + "\n")


@rank_zero_only
def check_provenance(run_dir: Path, found: dict[str, Any]) -> None:
    """Before a run is resumed: ValueError for other data or another `init_from`; a warning for what may cost equal bits."""
    path = run_dir / RUN
    if not path.exists():  # killed before it was written
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        dataset = before["dataset"]
        versions, hardware = before["versions"], before["hardware"]
        compared = [
            ("torch", versions["torch"], found["versions"]["torch"]),
            ("commit", before["git_commit"], found["git_commit"]),
        ]
        compared += [(name, hardware[name], found["hardware"][name]) for name in ("threads", "gpus", "precision")]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: it does not say what the run began with") from error
    if dataset != found["dataset"]:
        raise ValueError(f"resume={run_dir}: the demonstrations are no longer those that it began with")
    if before.get("init_from") != found["init_from"]:
        raise ValueError(f"resume={run_dir}: the policy in init_from is no longer the one that it began from")
    for what, old, new in compared:
        if old != new:
            warnings.warn(f"resume={run_dir}: it began with {what} {old}, now {new}: it may differ in its bits", stacklevel=2)


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where there is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
