"""resume=RUN_DIR: the settings of an earlier run, from its config.yaml, instead of those that the configs compose now."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_mini.config.compose import compose, key_of
from vla_mini.config.folders import CONFIG, RUN_DIR, rank
from vla_mini.settings import CHANGEABLE_ON_RESUME
from vla_mini.utils.errors import as_value_error


def compose_run(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of the run that `resume=` names, with the changes in other arguments. ValueError for any other change."""
    resume = [argument for argument in arguments if key_of(argument) == "resume"][-1].partition("=")[2]
    if resume == "null":
        return compose("train", arguments)
    if not resume.strip():
        raise ValueError(f"resume={resume} names no run: give the folder of one, or leave it out")
    changes = [argument for argument in arguments if key_of(argument) != "resume"]
    for argument in changes:
        if not {key_of(argument), key_of(argument).partition(".")[0]} & set(CHANGEABLE_ON_RESUME):
            changeable = ", ".join(CHANGEABLE_ON_RESUME)
            raise ValueError(f"{argument} with resume=: only {changeable} may change when a run is resumed")
    folder = _run_folder(resume)
    settings = _read(folder) | {"resume": str(folder), "run_dir": str(folder)}
    changed = compose("train", changes) if changes else {}
    for node in {key_of(argument).partition(".")[0] for argument in changes}:
        if node == "trainer":
            settings["trainer"]["max_steps"] = changed["trainer"]["max_steps"]
        else:
            settings[node] = changed[node]
    return settings


def _run_folder(resume: str) -> Path:
    """The run's own folder, also where `resume` is `latest`, which may come to name another one."""
    if rank():
        return Path(os.environ[RUN_DIR])
    folder = Path(resume)
    for _ in range(8):  # A link may name itself.
        if folder.is_symlink():
            folder = folder.parent / folder.readlink()
    if folder.name == "latest" and folder.is_file():  # on a file system without links
        folder = folder.parent / folder.read_text(encoding="utf-8").strip()
    return folder


def _read(folder: Path) -> dict[str, Any]:
    """The content of a run's config.yaml. ValueError where there is none, or it is damaged."""
    import yaml

    path = folder / CONFIG
    if not folder.is_dir():
        raise ValueError(f"resume={folder}: there is no such folder")
    if not path.is_file():
        raise ValueError(f"resume={folder}: there is no {CONFIG} in it; give the folder of a run")
    with as_value_error(f"{path} is damaged", yaml.YAMLError, UnicodeDecodeError):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    return settings
