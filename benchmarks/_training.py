"""A training run as scripts/train.py makes one, for benchmarks that look into it."""

from pathlib import Path
from typing import Any


def begin(cfg: Any) -> tuple[dict[str, Any], Any, Any]:
    """What a run begins with, (settings, policy, data); demonstrations that lack are collected."""
    from omegaconf import OmegaConf

    from vla_mini.data.reader import read_dataset
    from vla_mini.training.setup import collect_missing, data_module, untrained_policy

    settings = OmegaConf.to_container(cfg, resolve=True)
    collect_missing(settings)
    demonstrations = read_dataset(cfg.data.root)
    policy = untrained_policy(settings, demonstrations)
    return settings, policy, data_module(settings, demonstrations, policy)


def ready(cfg: Any, *, run_dir: Path, stopwatch: Any) -> tuple[Any, Any, Any]:
    """What `trainer.fit(module, datamodule=data)` needs, (trainer, module, data)."""
    import lightning

    from vla_mini.training.trainer import build_training

    settings, policy, data = begin(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    trainer, module = build_training(settings, policy, run_dir=run_dir, stopwatch=stopwatch)
    return trainer, module, data
