"""Where metrics go: a CSV file always; Weights & Biases where the config asks for it, offline unless it asks for more."""

import logging
import netrc
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger


def hush_lightning() -> None:
    """Lightning's notes on what is as it should be here: the run says what matters itself."""
    for part in ("pytorch", "fabric.utilities"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # config.yaml is there
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used")
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")  # frozen parts are


def build_loggers(settings: Mapping[str, Any], *, run_dir: Path, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers of a run; `config` is what the services keep beside the curves."""
    loggers: list[Logger] = [CSVLogger(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=100)]
    if settings.get("wandb"):
        loggers.append(_wandb_logger(settings, run_dir=run_dir, config=config))
    return loggers


def finish_loggers(loggers: Sequence[Logger], metrics: Mapping[str, float], *, step: int) -> None:
    """Add the final figures and close the services: W&B writes its last row only then."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _wandb_logger(settings: Mapping[str, Any], *, run_dir: Path, config: Mapping[str, Any]) -> Logger:
    import wandb

    mode = settings["mode"]
    if mode == "online" and not _has_wandb_key():
        warnings.warn("logger.mode=online, but there is no W&B key (wandb login): going on offline", stacklevel=2)
        mode = "offline"
    # Made here and handed over, so that no prompt and no long wait can come from inside the Trainer.
    arguments = {"project": settings["project"], "name": settings.get("name") or run_dir.name, "dir": run_dir}
    limits = wandb.Settings(init_timeout=10, silent=True)
    try:
        run = wandb.init(**arguments, mode=mode, config=dict(config), settings=limits)
    except wandb.errors.Error as error:
        warnings.warn(f"W&B did not answer ({error}): going on offline", stacklevel=2)
        run = wandb.init(**arguments, mode="offline", config=dict(config), settings=limits)
    return WandbLogger(experiment=run)


def _has_wandb_key() -> bool:
    """Whether `wandb login` was ever run here or a key is in the environment; without one W&B would ask and wait."""
    import wandb

    settings = wandb.setup().settings
    try:
        saved = netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):
        saved = None
    return bool(settings.api_key or saved)
