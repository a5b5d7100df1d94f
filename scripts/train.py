"""Train a policy: demonstrations, training, closed-loop evaluation, report.

Reads from top to bottom as what happens. Everything goes into one new folder, runs/<experiment>/<date_time>/.
"""

from pathlib import Path
from typing import Any

from vla_mini import config


@config.main("train")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from vla_mini.evaluation.evaluate import evaluate
    from vla_mini.evaluation.metrics import headline, table
    from vla_mini.evaluation.report import write_report
    from vla_mini.training.guard import raise_if_stopped
    from vla_mini.training.loggers import finish_loggers
    from vla_mini.training.precision import check_accelerator
    from vla_mini.training.window import Stopwatch

    check_accelerator(cfg.trainer.accelerator)
    collect_missing(cfg)
    policy, data = build_policy_and_data(cfg)

    run_dir = config.new_folder(cfg.run_dir)  # all is checked: the work begins
    OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
    stopwatch = Stopwatch()
    trainer, module = build_training(cfg, policy, run_dir=run_dir, stopwatch=stopwatch)
    try:
        trainer.fit(module, datamodule=data)
    finally:  # however training ended: a run that saved a policy is the latest
        if (run_dir / "policy").is_dir():
            config.point_latest(run_dir)
    seconds = stopwatch.seconds
    trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    raise_if_stopped(trainer)  # by the guard; the checkpoint holds the last good weights

    trusted = any(cfg[part].get("trust_remote_code") for part in ("vision", "language"))
    policy = type(policy).from_pretrained(run_dir / "policy", trust_remote_code=trusted)
    metrics = evaluate(
        policy,
        cfg.env.id,
        episodes=cfg.evaluation.episodes,
        seed=cfg.evaluation.seed,
        output=run_dir / "evaluation",
        progress=True,
    )
    rates = {f"evaluation/{split}": figures["success_rate"] for split, figures in metrics["splits"].items()}
    finish_loggers(trainer.loggers, rates, step=trainer.global_step - 1)
    report = write_report(run_dir)
    print(table(metrics))
    print(f"{headline(metrics)}; trained {seconds:.0f} s, evaluated {metrics['seconds']:.0f} s; {report}")


def collect_missing(cfg: Any) -> None:
    """Collect the demonstrations that the config asks for, where they are missing."""
    from tqdm import tqdm

    from vla_mini.collection import collect

    if Path(cfg.data.root).exists() or not cfg.data.episodes:
        return
    total = cfg.data.episodes + cfg.data.validation_episodes
    with tqdm(desc="collecting", unit=" episodes", total=total, disable=None) as bar:
        collect(
            cfg.env.id,
            cfg.data.root,
            episodes=cfg.data.episodes,
            validation_episodes=cfg.data.validation_episodes,
            seed=cfg.data.seed,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def build_policy_and_data(cfg: Any) -> tuple[Any, Any]:
    """An untrained policy, drawn from `seed`, and the LightningDataModule of the demonstrations that it is made for."""
    import lightning
    from omegaconf import OmegaConf

    from vla_mini.build import build_policy
    from vla_mini.data.module import DemonstrationDataModule
    from vla_mini.data.reader import read_dataset
    from vla_mini.data.windows import Keyframe
    from vla_mini.training.freezing import freeze

    settings = OmegaConf.to_container(cfg, resolve=True)
    demonstrations = read_dataset(cfg.data.root)
    keyframe = Keyframe(**settings["data"]["keyframe"]) if cfg.data.keyframe else None

    lightning.seed_everything(cfg.seed, verbose=False)
    parts = {name: settings[name] for name in ("vision", "language", "trunk", "action", "auxiliary")}
    if cfg.insulate:
        parts["backbone_action"] = {"_target_": "vla_mini.action.bins.BinsHead"}
    policy = build_policy(
        parts,
        features=demonstrations.features,
        statistics=demonstrations.statistics,
        tasks=demonstrations.tasks,
        horizon=cfg.data.horizon,
        keyframe=keyframe.state if keyframe else (),
        execute=cfg.execute,
        ensemble=cfg.ensemble,
        source={"env": cfg.env.id, "dataset": demonstrations.fingerprint},
    )
    freeze(policy, cfg.freeze)
    data = DemonstrationDataModule(
        demonstrations,
        tokenize=policy.tokenize,
        horizon=cfg.data.horizon,
        batch_size=cfg.data.batch_size,
        seed=cfg.seed,
        keyframe=keyframe,
    )
    return policy, data


def build_training(cfg: Any, policy: Any, *, run_dir: Path, stopwatch: Any) -> tuple[Any, Any]:
    """Lightning's Trainer, with all that looks on while it trains, and the LightningModule that it trains."""
    import lightning
    from lightning.pytorch.callbacks import TQDMProgressBar
    from omegaconf import OmegaConf

    from vla_mini.training.guard import NonFiniteGuard
    from vla_mini.training.loggers import build_loggers, hush_lightning
    from vla_mini.training.memory import keep_freed_memory
    from vla_mini.training.module import PolicyModule
    from vla_mini.training.monitor import GradientMonitor
    from vla_mini.training.precision import choose_precision
    from vla_mini.training.selection import BestPolicy
    from vla_mini.training.summary import Summary
    from vla_mini.training.window import WindowMean

    keep_freed_memory()
    hush_lightning()
    settings = OmegaConf.to_container(cfg, resolve=True)
    best = BestPolicy(
        run_dir / "policy",
        env_id=cfg.env.id,
        episodes=cfg.evaluation.selection_episodes,
        every_n_steps=cfg.evaluation.every_n_steps,
        seed=cfg.evaluation.seed,
        stopwatch=stopwatch,
    )
    arguments = {name: value for name, value in settings["trainer"].items() if name != "_target_"}
    arguments["precision"] = choose_precision(cfg.trainer.precision, accelerator=cfg.trainer.accelerator)
    print(f"precision: {arguments['precision']}")
    trainer = lightning.Trainer(
        **arguments,
        logger=build_loggers(settings["logger"], run_dir=run_dir, config=settings),
        # In this order: divide the gradients, judge them, look at them. Clipping, by the module, comes last.
        callbacks=[
            WindowMean(stopwatch),
            NonFiniteGuard(**settings["guard"]),
            GradientMonitor(**settings["monitor"]),
            Summary(),
            best,
            TQDMProgressBar(refresh_rate=10),
        ],
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    return trainer, PolicyModule(policy, optimizer=settings["optimizer"], **settings["schedule"])


if __name__ == "__main__":
    main()
