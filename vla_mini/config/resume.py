"""resume=RUN_DIR: the settings of an earlier run, as it kept them, instead of those that the configs would compose now."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_mini import files
from vla_mini.config import processes
from vla_mini.config.compose import Composed, compose, escape

CONFIG = "config.yaml"
COMPILE = ("compile", "compile_dynamic")  # changes numbers by their rounding alone, and no checkpoint


def resumed_folder(arguments: Sequence[str]) -> str | None:
    """The folder that `resume=` names, if there is one: the run's own, since `latest` may come to name another meanwhile."""
    values = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("resume=")]
    if not values or values[-1] == "null":
        return None
    if not values[-1].strip():
        raise ValueError(f"resume={values[-1]} names no run: give the folder of one, or leave it out")
    if processes.rank():
        return os.environ[processes.RUN_DIR]
    folder = Path(values[-1])
    for _ in range(8):  # a link may name itself
        if folder.is_symlink():
            folder = folder.parent / folder.readlink()
    if folder.name == "latest" and folder.is_file():  # where the file system knows no links
        folder = folder.parent / folder.read_text(encoding="utf-8").strip()
    return str(folder)


def compose_resumed(folder: str, arguments: Sequence[str]) -> Composed:
    """What config.yaml in `folder` says. Of it, only how long to train, where to log and how to compile can be said anew; else
    ValueError."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    others = [argument for argument in arguments if not argument.lstrip("+").startswith("resume=")]
    for argument in others:
        key = argument.partition("=")[0].lstrip("+")
        if key not in ("trainer.max_steps", *COMPILE) and key.partition(".")[0] != "logger":
            raise ValueError(f"{argument} with resume=: a run goes on as it began, but for trainer.max_steps, logger, compile")
    if not Path(folder).is_dir():
        raise ValueError(f"resume={folder}: there is no such folder")
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"resume={folder}: there is no {CONFIG} in it; give the folder of a run")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict):  # in which "${" was written as a literal
            settings = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged: it holds no settings")
    settings.pop("run_dir", None)
    if others:
        said = compose("train", list(others)).settings
        if any(argument.lstrip("+").startswith("logger") for argument in others):
            settings["logger"] = said["logger"]
        if any(argument.lstrip("+").startswith("trainer") for argument in others):
            settings["trainer"]["max_steps"] = said["trainer"]["max_steps"]
        keys = {argument.partition("=")[0].lstrip("+") for argument in others}
        settings |= {key: said[key] for key in COMPILE if keys & set(COMPILE)}
    return Composed(settings | {"resume": folder}, run_dir=folder)


def save(cfg: Any, folder: Path) -> None:
    """Keep the resolved settings of a run, for whoever resumes it."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(cfg, resolve=True) | {"resume": None}
    if "init_from" in settings and settings["init_from"] and os.path.isdir(settings["init_from"]):
        settings["init_from"] = os.path.realpath(settings["init_from"])  # `latest` will mean another run by then
    files.write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(escape(settings))))
