"""Where metrics go: a CSV file always; Weights & Biases and TensorBoard where the config asks for them.

W&B stays offline unless it is asked for more, and goes offline where it does not answer: a run never waits for a service.
"""

import csv
import logging
import netrc
import os
import secrets
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vla_mini import files

PATIENCE = 4  # seconds to wait for a service; at the end, too, where W&B waits twice


def hush_lightning() -> None:
    """Lightning's notes on what is as it should be here: the run says what matters itself."""
    for part in ("pytorch", "fabric.utilities"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used")
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")  # frozen parts are


def log(trainer: Trainer, metrics: Mapping[str, Any], *, step: int | None = None) -> None:
    """To every logger, at once: what is logged by way of the module arrives after a checkpoint of its step was taken.

    `step` counts from 0, as Lightning's; None is the step that has just ended.
    """
    step = max(0, trainer.global_step - 1) if step is None else step  # a validation may fall into the first window
    for logger in trainer.loggers:
        logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


class Table(Logger):
    """metrics.csv: a row for each step of which something is known, a column for each figure; empty where it was not measured.

    With `steps`, the file goes on after that many steps of the run that is resumed: later rows will be written again.
    """

    def __init__(self, path: Path, *, steps: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._row: dict[str, Any] = {}
        self._start = 0  # of the last row within the file: it stays open, a validation within the next window adds to it
        path.parent.mkdir(parents=True, exist_ok=True)
        if steps and path.exists():  # a run may have been stopped before it had anything to tell
            text = path.read_text(encoding="utf-8")  # a line without an end, or without all cells, was being written
            found = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
            rows = [row for row in found if None not in row.values() and int(row["step"]) < steps]
            if rows:
                self._columns = list(rows[0])
                self._row = {name: cell for name, cell in rows[-1].items() if cell} | {"step": int(rows[-1]["step"])}
                self._rewrite(rows)
                return
        path.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step != self._row.get("step"):
            self._row, self._start = {"step": step}, self.path.stat().st_size if self.path.exists() else 0
        self._row |= {name: value for name, value in metrics.items() if name != "epoch"}
        if new := [name for name in self._row if name not in self._columns]:
            self._columns += new
            rows = self.path.read_bytes()[: self._start].decode().splitlines() if self.path.exists() else []
            self._rewrite([*csv.DictReader(rows), self._row])
            return
        with self.path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(self._start)
            csv.DictWriter(file, self._columns).writerow(self._row)
            file.truncate()  # only now: wherever the process is killed, what was known is in the file

    @rank_zero_only
    def save(self) -> None:
        """To the disk: a checkpoint counts on all that was logged before it."""
        if self.path.exists():
            files.sync(self.path)

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with files.replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows[:-1])
            self._start = file.tell()
            writer.writerows(rows[-1:])


def build_loggers(settings: Mapping[str, Any], *, run_dir: Path, config: Mapping[str, Any], steps: int = 0) -> list[Logger]:
    """The loggers of a run; `config` is what the services keep beside the curves, `steps` how many a resumed run has done."""
    loggers: list[Logger] = [Table(run_dir / "metrics.csv", steps=steps)]
    if settings.get("tensorboard"):
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=steps or None))
        loggers[-1].log_hyperparams(dict(config))
    if settings.get("wandb"):
        loggers.append(_wandb_logger(settings, run_dir=run_dir, config=config))
    return loggers


def check_loggers(settings: Mapping[str, Any]) -> None:
    """ValueError, before any work, for a logger whose package is not there."""
    if settings.get("tensorboard") and find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs a package that is not there: pip install -e '.[tensorboard]'")


def finish_loggers(loggers: Sequence[Logger], metrics: Mapping[str, float], *, step: int) -> None:
    """Add the final figures and close the services: W&B writes its last row only then."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            _finish(logger.experiment)


def _finish(run: Any) -> None:
    try:
        run.finish()
    except Exception as error:  # TimeoutError, or whatever a process of W&B's that has died makes of it
        kept = Path(run.dir).parent
        warnings.warn(f"W&B ended early ({type(error).__name__}): `wandb sync {kept}` sends the rest", stacklevel=3)


def _wandb_logger(settings: Mapping[str, Any], *, run_dir: Path, config: Mapping[str, Any]) -> Logger:
    import wandb

    mode = settings["mode"]
    if "WANDB_API_KEY" in os.environ:  # pasted with a line's end, it would stop even a run that is offline
        os.environ["WANDB_API_KEY"] = os.environ["WANDB_API_KEY"].strip()
    if mode == "online" and (reason := _why_not_online()):
        warnings.warn(f"logger.mode=online, but {reason}: going on offline", stacklevel=2)
        mode = "offline"
    # Made here and handed over, so that no prompt and no long wait can come from inside the Trainer.
    arguments = {"project": settings["project"], "name": settings.get("name") or run_dir.name, "dir": run_dir}
    arguments |= {"id": _wandb_id(run_dir), "resume": "allow", "config": dict(config)}
    limits = wandb.Settings(init_timeout=PATIENCE, finish_timeout=PATIENCE, finish_timeout_raises=True, silent=True)
    try:
        run = wandb.init(**arguments, mode=mode, settings=limits)
    except wandb.errors.Error as error:
        warnings.warn(f"W&B did not answer ({error}): going on offline", stacklevel=2)
        wandb.teardown()  # it would go on trying, under the same id
        run = wandb.init(**arguments, mode="offline", settings=limits)
    return WandbLogger(experiment=run)


def _wandb_id(run_dir: Path) -> str:
    """One id for a run, however often it is resumed; offline runs of one id are joined by `wandb sync --append`."""
    path = run_dir / "wandb" / "id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def _why_not_online() -> str | None:
    """What stands against it: without a key W&B would ask and wait; without an answer, try for half a minute."""
    import wandb

    settings = wandb.setup().settings
    try:
        saved = netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):
        saved = None
    if not (settings.api_key or saved):
        return "there is no W&B key (wandb login)"
    try:
        urllib.request.urlopen(settings.base_url, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except OSError as error:
        return f"{settings.base_url} does not answer ({error})"
    return None
