"""Where metrics go: to metrics.csv and a progress bar, and to Weights & Biases and TensorBoard where the settings choose them.

W&B is offline unless it is asked to be online, and falls back to offline where it does not answer: a run never waits for a
service.
"""

import csv
import logging
import netrc
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from tqdm import tqdm

from vla_mini import settings as schemas
from vla_mini.utils import download, files

TIMEOUT = 4  # seconds to wait for a service, also at the end, where W&B waits twice


def silence_lightning() -> None:
    """No messages of Lightning about what is as intended here."""
    for part in ("pytorch", "fabric.utilities"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used")
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")  # frozen parts are
    warnings.filterwarnings("ignore", message="You requested to overfit")  # the loader gives the same batches each epoch
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")


def log(trainer: Trainer, metrics: Mapping[str, float], *, step: int | None = None) -> None:
    """Send metrics of a step (0, 1, ...; None = the one that has just ended) to every logger at once."""
    step = max(0, trainer.global_step - 1) if step is None else step  # a validation may fall into the first window
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)


class CSVLogger(Logger):
    """metrics.csv: one row for each step with any metric, one column for each metric; a cell is empty where it is unknown.

    - steps: of a resumed run: the rows of the steps before it are kept, later ones are removed
    """

    name = version = ""  # Lightning asks for both

    def __init__(self, path: Path, *, steps: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._row: dict[str, Any] = {}
        self._start = 0  # of the last row in the file: it may still change, a validation within the next window adds to it
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows := _complete_rows(path, steps=steps):
            self._columns = list(rows[0])
            self._row = {name: cell for name, cell in rows[-1].items() if cell} | {"step": int(rows[-1]["step"])}
            self._rewrite(rows)
        else:
            path.unlink(missing_ok=True)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step != self._row.get("step"):
            self._row, self._start = {"step": step}, self.path.stat().st_size if self.path.exists() else 0
        self._row |= metrics
        if new := [name for name in self._row if name not in self._columns]:
            self._columns += new
            rows = self.path.read_bytes()[: self._start].decode().splitlines() if self.path.exists() else []
            self._rewrite([*csv.DictReader(rows), self._row])
            return
        with self.path.open("r+", newline="", encoding="utf-8") as file:
            file.seek(self._start)
            csv.DictWriter(file, self._columns).writerow(self._row)
            file.truncate()  # last, so that the old row is in the file until the new one is

    def save(self) -> None:
        """To the disk: a checkpoint relies on all that was logged before it."""
        if self.path.exists():
            files.sync(self.path)

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with files.replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows[:-1])
            self._start = file.tell()
            writer.writerows(rows[-1:])


def _complete_rows(path: Path, *, steps: int) -> list[dict[str, str]]:
    """The rows of the steps before `steps`, without one that a killed process left incomplete."""
    if not steps or not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if None not in row.values() and int(row["step"]) < steps]


class TrainingBar(Callback):
    """A bar over all optimizer steps, shown on a terminal by the first process. A resumed run begins where it was stopped."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None  # until training starts: `on_exception` may come before

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        disable = None if trainer.is_global_zero else True  # None = where there is no terminal
        done = {"total": trainer.max_steps, "initial": trainer.global_step}
        self.bar = tqdm(desc="training", unit=" steps", dynamic_ncols=True, disable=disable, **done)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.bar.set_postfix({"loss": f"{module.step.loss:.3g}"}, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()


def print_above_bar(trainer: Trainer, text: str) -> None:
    """Print once, in the first process."""
    if trainer.is_global_zero:
        tqdm.write(text)


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def build_loggers(settings: schemas.Logger, *, run_dir: Path, config: Mapping[str, Any], steps: int = 0) -> list[Logger]:
    """The loggers of a run, which has made so many `steps` before; the services keep its `config` beside the curves."""
    loggers: list[Logger] = [CSVLogger(run_dir / "metrics.csv", steps=steps)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=steps or None))
        loggers[-1].log_hyperparams(dict(config))
    if settings.wandb:
        loggers.append(_wandb_logger(settings, run_dir=run_dir, config=config))
    return loggers


def check_loggers(settings: schemas.Logger) -> None:
    """ValueError, before any work, for a logger whose package is not installed."""
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs a package that is not installed: pip install -e '.[tensorboard]'")


def finish_loggers(loggers: Sequence[Logger], metrics: Mapping[str, float], *, step: int) -> None:
    """Add the final metrics and close the services: W&B writes its last row only then."""
    for logger in loggers:
        if metrics:
            logger.log_metrics(dict(metrics), step=step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            try:
                run.finish()
            except Exception as error:  # TimeoutError, or another, where the process of W&B has ended
                kept = Path(run.dir).parent
                warnings.warn(f"W&B ended early ({type(error).__name__}): `wandb sync {kept}` sends the rest", stacklevel=2)


def _wandb_logger(settings: schemas.Logger, *, run_dir: Path, config: Mapping[str, Any]) -> Logger:
    import wandb

    mode = settings.mode
    if "WANDB_API_KEY" in os.environ:  # pasted with a line's end, it would stop even a run that is offline
        os.environ["WANDB_API_KEY"] = os.environ["WANDB_API_KEY"].strip()
    if mode == "online" and (reason := _why_not_online()):
        warnings.warn(f"logger.mode=online, but {reason}: continuing offline", stacklevel=2)
        mode = "offline"
    # W&B is started here, not inside the Trainer, so that no prompt and no long wait can come from there.
    arguments = {"project": settings.project, "name": settings.name or run_dir.name, "dir": run_dir}
    arguments |= {"id": _wandb_id(run_dir), "resume": "allow", "config": dict(config)}
    limits = wandb.Settings(init_timeout=TIMEOUT, finish_timeout=TIMEOUT, finish_timeout_raises=True, silent=True)
    try:
        run = wandb.init(**arguments, mode=mode, settings=limits)
    except wandb.errors.Error as error:
        warnings.warn(f"W&B did not answer ({error}): continuing offline", stacklevel=2)
        wandb.teardown()  # it would keep trying, under the same id
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
    """The reason, if any: without a key W&B would prompt for one, without an answer it would try for half a minute."""
    import wandb

    settings = wandb.setup().settings
    try:
        saved = netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):
        saved = None
    if not (settings.api_key or saved):
        return "there is no W&B key (wandb login)"
    return download.why_unreachable(settings.base_url, timeout=TIMEOUT)
