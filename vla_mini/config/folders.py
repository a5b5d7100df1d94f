"""Output folders: created exclusively, linked as `latest` once a policy was saved in them, removed while they are still empty.

The first folder that a command makes marks the start of its work: from there on a failure exits with 1 instead of 2.
"""

import contextlib
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_mini.commands.processes import RUN_DIR, joined_run
from vla_mini.settings import TrainSettings
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error

CONFIG = "config.yaml"  # a run's settings
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}")  # a run's folder, as configs/train.yaml names it

_made: list[Path] = []  # folders that this command made, outermost first
_locks: list[int] = []  # on the folders that this command works in
_started = False


def new_folder(path: str | Path) -> Path:
    """Create `path`, which must not exist yet, and mark that work has started. ValueError where that is impossible."""
    path = Path(path)
    if not str(path).strip() or "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no name for a folder")
    try:
        if os.path.lexists(path):
            raise ValueError(f"{path} exists already: name a new folder, so that nothing in it is overwritten")
        for parent in reversed(path.parents):
            if not parent.is_dir():
                parent.mkdir(exist_ok=True)
                _made.append(parent)
        path.mkdir()
    except OSError as error:
        remove_empty_folders()
        raise ValueError(f"cannot create the folder {path}: {error.strerror or error}") from error
    _made.append(path)
    return _lock(path)


def run_folder(settings: TrainSettings) -> Path:
    """The folder of a run, with its config.yaml: a new one, or the one to resume; in a run's further processes the one that the
    first made. ValueError where another command is at work in it."""
    run_dir = Path(settings.run_dir)
    if joined_run():
        start_work()
        return run_dir
    _lock(run_dir) if settings.resume else new_folder(run_dir)
    save_settings(settings, run_dir)
    os.environ[RUN_DIR] = str(run_dir)
    return run_dir


def save_settings(settings: TrainSettings, folder: Path) -> None:
    """Write the settings of a run to its config.yaml, from which it can be resumed."""
    import yaml

    saved = settings.model_dump(mode="json") | {"resume": None}
    if settings.init_from and os.path.isdir(settings.init_from):
        saved["init_from"] = os.path.realpath(settings.init_from)  # `latest` may name another run later
    files.write_text(folder / CONFIG, yaml.safe_dump(saved, sort_keys=False, allow_unicode=True))


def run_to_resume(resume: str) -> Path:
    """The run's own folder, also where `resume` is `latest`, which may come to name another one."""
    if joined := joined_run():
        return Path(joined)
    if not resume.strip():
        raise ValueError(f"resume={resume} names no run: give the folder of one, or leave it out")
    folder = Path(resume)
    for _ in range(8):  # A link may name itself.
        if folder.is_symlink():
            folder = folder.parent / folder.readlink()
    if folder.name == "latest" and folder.is_file():  # on a file system without links
        folder = folder.parent / folder.read_text(encoding="utf-8").strip()
    return folder


def saved_settings(folder: Path) -> dict[str, Any]:
    """The content of a run's config.yaml. ValueError where there is none, it is damaged, or it is of an old version."""
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
    if "blind" in settings:  # which is `ablate` today
        raise ValueError(f"resume={folder}: the run was made by vla-mini 0.1, and cannot be resumed by this version")
    return settings


def _lock(folder: Path) -> Path:
    """Keep other commands out of `folder` until this one ends, and mark that work has started."""
    try:
        import fcntl

        _locks.append(os.open(folder, os.O_RDONLY))
        fcntl.flock(_locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except BlockingIOError:
        raise ValueError(f"{folder}: another process is at work in it") from None
    start_work()
    return folder


def default_output(policy: str | None, name: str, otherwise: str | Path = ".") -> Path:
    """`name`/<date_time>/ beside the folder `policy`, or in `otherwise` where there is none (it is a hub id, or null)."""
    parent = Path(policy).resolve().parent if policy and Path(policy).is_dir() else Path(otherwise)
    return parent / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def start_work() -> None:
    """Mark that work has started, for a command whose output is not a `new_folder`."""
    global _started
    _started = True


def work_has_started() -> bool:
    return _started


def begin() -> None:
    """Forget the folders of an earlier command in this process."""
    global _started
    _started = False
    _made.clear()
    while _locks:
        os.close(_locks.pop())


def remove_empty_folders() -> None:
    """Remove the folders of a command that failed, as far as they are still empty."""
    with contextlib.suppress(OSError):  # one that is not empty, or gone
        for folder in reversed(_made):
            folder.rmdir()
    _made.clear()


def point_latest(run_dir: str | Path) -> None:
    """Make `latest`, beside `run_dir`, a relative link to it, atomically (a text file where links fail).

    A run that was put elsewhere (`hydra.run.dir=`) is not one of a series, and gets no `latest`.
    """
    run_dir = Path(run_dir)
    if not _TIMESTAMP.fullmatch(run_dir.name):
        return
    latest = run_dir.parent / "latest"
    try:
        with files.replacing(latest) as temporary:
            try:
                os.symlink(run_dir.name, temporary, target_is_directory=True)
            except (OSError, NotImplementedError):  # FAT, or Windows without the right to make links
                temporary.write_text(f"{run_dir.name}\n", encoding="utf-8")
    except OSError as error:  # no reason to fail, nor to hide why training did
        print(f"warning: {latest} was not set to {run_dir.name}: {error.strerror}", file=sys.stderr)
