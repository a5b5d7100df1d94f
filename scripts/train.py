"""Train a policy: demonstrations, training, closed-loop evaluation, report.

Reads from top to bottom as what happens. Everything goes into one new folder, runs/<experiment>/<date_time>/.
"""

from pathlib import Path
from typing import Any

from vla_mini import config


@config.main("train")
def main(cfg: Any) -> None:
    import lightning
    from omegaconf import OmegaConf

    from vla_mini.data.reader import read_dataset
    from vla_mini.evaluation.evaluate import evaluate, examinations
    from vla_mini.evaluation.metrics import headline, table
    from vla_mini.evaluation.report import write_report
    from vla_mini.training.guard import raise_if_stopped
    from vla_mini.training.loggers import finish_loggers
    from vla_mini.training.precision import check_accelerator
    from vla_mini.training.setup import data_module, untrained_policy
    from vla_mini.training.trainer import build_training
    from vla_mini.training.window import Stopwatch

    settings = OmegaConf.to_container(cfg, resolve=True)
    check_accelerator(cfg.trainer.accelerator)
    examinations(cfg.env.id, further_splits=settings["evaluation"]["further_splits"])  # refuses a split that there is not
    collect_missing(cfg)
    demonstrations = read_dataset(cfg.data.root)
    lightning.seed_everything(cfg.seed, verbose=False)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)

    run_dir = config.new_folder(cfg.run_dir)  # all is checked: the work begins
    OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
    stopwatch = Stopwatch()
    trainer, module = build_training(settings, policy, run_dir=run_dir, stopwatch=stopwatch)
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
        further_splits=settings["evaluation"]["further_splits"],
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


if __name__ == "__main__":
    main()
