"""Output folders: created exclusively, named by `latest` once they hold something worth it, removed while still empty.

The first folder made marks the beginning of the work: from there on a failure exits with 1 instead of 2.
"""

import contextlib
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_mini.config import processes
from vla_mini.config.resume import save

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}")  # a run's folder, as configs/train.yaml names it

_made: list[Path] = []  # folders that this command made, outermost first
_held: list[int] = []  # locks on the folders that this command works in
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
    return _hold(path)


def run_folder(cfg: Any) -> Path:
    """The folder of a run, with its config.yaml: a new one, or that of the run to resume; in a run's further processes, the
    one that is there. ValueError where another command is at work in it."""
    if processes.rank():
        start_work()
        return Path(cfg.run_dir)
    run_dir = _hold(Path(cfg.run_dir)) if cfg.resume else new_folder(cfg.run_dir)
    save(cfg, run_dir)
    os.environ[processes.RUN_DIR] = str(run_dir)
    return run_dir


def _hold(folder: Path) -> Path:
    """Keep other commands out of `folder`, until this one ends. Work has started then."""
    try:
        import fcntl

        _held.append(os.open(folder, os.O_RDONLY))
        fcntl.flock(_held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except BlockingIOError:
        raise ValueError(f"{folder}: another process is at work in it") from None
    start_work()
    return folder


def default_output(policy: str | None, name: str, otherwise: str | Path = ".") -> Path:
    """`name`/<date_time>/ beside the folder `policy`, or in `otherwise` where there is none (it is a hub id, or null)."""
    place = Path(policy).resolve().parent if policy and Path(policy).is_dir() else Path(otherwise)
    return place / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def start_work() -> None:
    """Mark that work has started, for a command whose output is not a `new_folder`."""
    global _started
    _started = True


def work_has_started() -> bool:
    return _started


def begin() -> None:
    """A new command begins: no folder is its own yet."""
    global _started
    _started = False
    _made.clear()
    while _held:
        os.close(_held.pop())


def remove_empty_folders() -> None:
    """Take away the folders of a command that failed, as far as they are still empty."""
    for folder in reversed(_made):
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone: either way no longer ours to remove
            break
    _made.clear()


def point_latest(run_dir: str | Path) -> None:
    """Let `latest`, beside `run_dir`, name it: a relative symlink, replaced atomically (a text file where links fail).

    A run that was put elsewhere (`hydra.run.dir=`) is not one of a series, and gets no `latest` beside it.
    """
    run_dir = Path(run_dir)
    if not _TIMESTAMP.fullmatch(run_dir.name):
        return
    latest, temporary = run_dir.parent / "latest", run_dir.parent / f".latest-{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.symlink(run_dir.name, temporary, target_is_directory=True)
        except (OSError, NotImplementedError):  # FAT, or Windows without the right to make links
            temporary.write_text(f"{run_dir.name}\n", encoding="utf-8")
        os.replace(temporary, latest)
    except OSError as error:  # no reason to fail, nor to hide why training did
        print(f"warning: {latest} does not name {run_dir.name}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(OSError):
            temporary.unlink()
