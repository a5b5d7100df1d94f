"""What a run was made with: the commit, the packages, the machine, the data. Written to run.json and told to every logger."""

import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from vla_mini import files

RUN = "run.json"
PACKAGES = ("vla-mini", "torch", "torchvision", "lightning", "transformers", "numpy", "gymnasium")


def provenance(*, dataset: str, init_from: str | None = None) -> dict[str, Any]:
    """`dataset` is its fingerprint, `init_from` that of the policy to begin from."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "dataset": dataset,
        "init_from": init_from,
    }


@rank_zero_only
def write_provenance(run_dir: Path, found: dict[str, Any]) -> None:
    files.write_text(run_dir / RUN, json.dumps(found, indent=2) + "\n")


def check_provenance(run_dir: Path, found: dict[str, Any]) -> None:
    """Before a run is resumed: ValueError for other data or another `init_from`; a warning for what costs equal bits."""
    path = run_dir / RUN
    if not path.is_file():
        raise ValueError(f"{path} is missing: {run_dir} is no run that can be resumed")
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["dataset"] != found["dataset"]:
        raise ValueError(f"resume={run_dir}: the demonstrations are no longer those that it began with")
    if before.get("init_from") != found["init_from"]:
        raise ValueError(f"resume={run_dir}: the policy in init_from is no longer the one that it began from")
    for what, old, new in (
        ("threads", before["hardware"]["threads"], found["hardware"]["threads"]),
        ("torch", before["versions"]["torch"], found["versions"]["torch"]),
    ):
        if old != new:
            warnings.warn(f"resume={run_dir}: it began with {what} {old}, now {new}: not the same to the bit", stacklevel=2)


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
