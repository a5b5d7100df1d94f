"""A training run as scripts/train.py builds it, for benchmarks that measure within it."""

from pathlib import Path
from typing import Any


def build_data(settings: Any) -> tuple[Any, Any]:
    """The untrained policy and the data module of a run, (policy, data). Missing demonstrations are collected."""
    from vla_mini.data.mixture import read_demonstrations
    from vla_mini.setup.demonstrations import collect_missing, reading
    from vla_mini.setup.policy import data_module, untrained_policy

    collect_missing(settings)
    demonstrations = read_demonstrations(**reading(settings))
    policy = untrained_policy(settings, demonstrations)
    return policy, data_module(settings, demonstrations, policy)


def build(settings: Any) -> tuple[Any, Any, Any]:
    """What `trainer.fit(module, datamodule=data)` needs, (trainer, module, data)."""
    import lightning

    from vla_mini.training.trainer import build_training

    policy, data = build_data(settings)
    lightning.seed_everything(settings.seed, verbose=False)
    trainer, module = build_training(settings, policy, run_dir=Path(settings.run_dir))
    return trainer, module, data
