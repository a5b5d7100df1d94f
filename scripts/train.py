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
    from vla_mini.evaluation.evaluate import evaluate
    from vla_mini.evaluation.metrics import headline, table
    from vla_mini.evaluation.report import write_report
    from vla_mini.training.guard import raise_if_stopped
    from vla_mini.training.loggers import finish_loggers
    from vla_mini.training.provenance import check_provenance, provenance, write_provenance
    from vla_mini.training.setup import check_start, data_module, untrained_policy
    from vla_mini.training.trainer import build_training
    from vla_mini.training.window import Stopwatch

    settings = OmegaConf.to_container(cfg, resolve=True)
    check_start(settings)
    steps, checkpoint = resumable(cfg) if cfg.resume else (0, None)
    collect_missing(cfg)
    demonstrations = read_dataset(cfg.data.root)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)
    lightning.seed_everything(cfg.seed + config.rank(), verbose=False)  # equal weights, and each process its own noise
    origin = provenance(dataset=demonstrations.fingerprint)
    if cfg.resume:
        check_provenance(Path(cfg.resume), origin)

    run_dir = config.run_folder(cfg)  # all is checked: the work begins
    write_provenance(run_dir, origin)
    stopwatch = Stopwatch()
    trainer, module = build_training(settings, policy, run_dir=run_dir, stopwatch=stopwatch, provenance=origin, steps=steps)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    finally:  # however training ended: a run that saved a policy is the latest
        if trainer.is_global_zero and (run_dir / "policy").is_dir():
            config.point_latest(run_dir)
    seconds = stopwatch.seconds
    if not trainer.is_global_zero:
        return  # of several processes the first does the rest
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


def resumable(cfg: Any) -> tuple[int, Path]:
    """Where a run goes on: the steps it has done, and their checkpoint. ValueError where there is nothing to go on with."""
    from vla_mini.training.checkpoints import newest_good

    run_dir = Path(cfg.resume)
    steps, checkpoint = newest_good(run_dir / "checkpoints")
    if steps >= cfg.trainer.max_steps and (run_dir / "report.html").exists():
        raise ValueError(f"resume={run_dir}: its {steps} steps are done; trainer.max_steps={2 * steps} would go on")
    return steps, checkpoint


def collect_missing(cfg: Any) -> None:
    """Collect the demonstrations that the config asks for, where they are missing."""
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from vla_mini.collection import collect
    from vla_mini.training.setup import rehearse

    if Path(cfg.data.root).exists() or not cfg.data.episodes:
        return
    rehearse(OmegaConf.to_container(cfg, resolve=True))
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
