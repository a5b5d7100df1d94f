"""A run's settings -> Lightning's Trainer, with all that looks on while it trains, and the LightningModule that it trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities import rank_zero_only

from vla_mini.policy import Policy
from vla_mini.training.average import WeightAverage
from vla_mini.training.checkpoints import Checkpoints, RandomNumbers, WholeFiles
from vla_mini.training.compilation import WarmUp, compile_policy
from vla_mini.training.guard import NonFiniteGuard
from vla_mini.training.loggers import build_loggers, hush_lightning
from vla_mini.training.memory import keep_freed_memory
from vla_mini.training.module import PolicyModule
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.precision import choose_precision
from vla_mini.training.processes import EndTogether, choose_strategy
from vla_mini.training.progress import Progress
from vla_mini.training.selection import BestPolicy
from vla_mini.training.summary import Summary
from vla_mini.training.unfreezing import Unfreezing
from vla_mini.training.window import Stopwatch, WindowMean


def build_training(
    settings: Mapping[str, Any],
    policy: Policy,
    *,
    run_dir: Path,
    stopwatch: Stopwatch,
    provenance: Mapping[str, Any] | None = None,
    run: str = "",
    steps: int = 0,
) -> tuple[lightning.Trainer, PolicyModule]:
    """What `trainer.fit(module, datamodule=...)` needs; `settings` are those of configs/train.yaml, checked.

    `provenance` goes to the loggers beside the settings, `run` (its identity) into the checkpoints; `steps` is how many a run
    that is resumed has done.
    """
    keep_freed_memory()
    hush_lightning()
    arguments = trainer_arguments(settings)
    compiled = settings["compile"] != "none"
    if compiled:
        compile_policy(policy, settings["compile"], dynamic=settings["compile_dynamic"])
    evaluation = settings["evaluation"]
    best = BestPolicy(
        run_dir / "policy",
        env_id=settings["env"]["id"],
        episodes=evaluation["selection_episodes"],
        every_n_steps=evaluation["every_n_steps"],
        seed=evaluation["seed"],
        stopwatch=stopwatch,
    )
    trainer = lightning.Trainer(
        **arguments,
        logger=build_loggers(settings["logger"], run_dir=run_dir, config={**settings, **(provenance or {})}, steps=steps)
        if rank_zero_only.rank == 0
        else False,
        # In this order: say what learns; divide the gradients, judge them, look at them. Clipping, by the module, comes last.
        # And a checkpoint holds what all the others have done.
        callbacks=[
            RandomNumbers(),
            Unfreezing(settings["unfreeze_at"]),
            WindowMean(stopwatch),
            NonFiniteGuard(**settings["guard"]),
            GradientMonitor(**settings["monitor"]),
            WeightAverage(settings["ema"]["decay"]),
            *([WarmUp()] if compiled else []),
            Summary(),
            best,
            EndTogether(),
            *([Progress()] if arguments.get("enable_progress_bar", True) else []),
            Checkpoints(run_dir / "checkpoints", **settings["checkpoint"], best=best),
        ],
        plugins=[WholeFiles(run)],
        default_root_dir=run_dir,
    )
    return trainer, PolicyModule(policy, optimizer=settings["optimizer"], **settings["schedule"])


def trainer_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of Lightning's Trainer, without the parts that look on."""
    arguments = {name: value for name, value in settings["trainer"].items() if name != "_target_"}
    arguments["precision"] = choose_precision(arguments["precision"], accelerator=arguments["accelerator"])
    arguments["strategy"] = choose_strategy(arguments["strategy"], devices=arguments["devices"])
    arguments |= {"enable_checkpointing": False, "enable_model_summary": False, "deterministic": settings["deterministic"]}
    return arguments


def check_trainer(settings: Mapping[str, Any]) -> None:
    """ValueError, before any work, for what Lightning's Trainer refuses."""
    hush_lightning()
    try:
        lightning.Trainer(**trainer_arguments(settings), logger=False)
    except Exception as error:  # of Lightning's own types
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error
