"""A training run as scripts/train.py makes one, ready to begin, for benchmarks that look into it."""

from pathlib import Path
from typing import Any


def ready(cfg: Any, *, run_dir: Path, stopwatch: Any) -> tuple[Any, Any, Any]:
    """What `trainer.fit(module, datamodule=data)` needs, (trainer, module, data); demonstrations that lack are collected."""
    import lightning
    from omegaconf import OmegaConf

    from vla_mini.data.reader import read_dataset
    from vla_mini.training.setup import collect_missing, data_module, untrained_policy
    from vla_mini.training.trainer import build_training

    settings = OmegaConf.to_container(cfg, resolve=True)
    collect_missing(settings)
    demonstrations = read_dataset(cfg.data.root)
    lightning.seed_everything(cfg.seed, verbose=False)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)
    trainer, module = build_training(settings, policy, run_dir=run_dir, stopwatch=stopwatch)
    return trainer, module, data
