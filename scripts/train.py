"""Train a policy: demonstrations, training, closed-loop evaluation, report.

Reads from top to bottom as what happens. Everything goes into one new folder, runs/<experiment>/<date_time>/.
"""

import warnings
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
    from vla_mini.training.checkpoints import clear_up
    from vla_mini.training.guard import raise_if_stopped
    from vla_mini.training.loggers import finish_loggers
    from vla_mini.training.provenance import identity, provenance, write_provenance
    from vla_mini.training.setup import check_start, collect_missing, data_module, trusts_remote_code, untrained_policy
    from vla_mini.training.trainer import build_training
    from vla_mini.training.window import Stopwatch

    settings = OmegaConf.to_container(cfg, resolve=True)
    if not config.rank():  # what the first of several processes finds right, is
        check_start(settings)
    if cfg.resume:
        with warnings.catch_warnings(action="ignore"):  # they come again, below
            resumable(cfg)  # before anything is collected
    collect_missing(settings)
    demonstrations = read_dataset(cfg.data.root)
    policy = untrained_policy(settings, demonstrations)
    data = data_module(settings, demonstrations, policy)
    lightning.seed_everything(cfg.seed + config.rank(), verbose=False)  # equal weights, and each process its own noise
    sources = {"dataset": demonstrations.fingerprint, "init_from": policy.source.get("init_from")}
    origin, run = provenance(settings, **sources), identity(settings, **sources)
    steps, checkpoint = resumable(cfg, origin, run) if cfg.resume else (0, None)

    run_dir = config.run_folder(cfg)  # all is checked: the work begins
    if cfg.resume and not config.rank():
        clear_up(run_dir, step=steps)
        print(f"{run_dir} goes on after step {steps}" if checkpoint else f"{run_dir} has no checkpoint yet: it begins anew")
    write_provenance(run_dir, origin)
    stopwatch = Stopwatch()
    trainer, module = build_training(
        settings, policy, run_dir=run_dir, stopwatch=stopwatch, provenance=origin, run=run, steps=steps
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    finally:  # however training ended: a run that saved a policy is the latest
        if trainer.is_global_zero and (run_dir / "policy").is_dir():
            config.point_latest(run_dir)
    seconds = stopwatch.seconds
    if not trainer.is_global_zero:
        return  # of several processes the first does the rest
    raise_if_stopped(trainer)  # by the guard; the checkpoint holds the last good weights

    policy = type(policy).from_pretrained(run_dir / "policy", trust_remote_code=trusts_remote_code(settings))
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


def resumable(cfg: Any, origin: dict[str, Any] | None = None, run: str | None = None) -> tuple[int, Path | None]:
    """Where a run goes on: the steps it has done, and their checkpoint, of this `run` if its origin is known already.

    ValueError where there is nothing to go on with.
    """
    from vla_mini.training.checkpoints import newest_good
    from vla_mini.training.provenance import check_provenance

    run_dir = Path(cfg.resume)
    if origin is not None:
        check_provenance(run_dir, origin)
    steps, checkpoint = newest_good(run_dir / "checkpoints", run=run)
    if steps >= cfg.trainer.max_steps and (run_dir / "report.html").exists():
        raise ValueError(f"resume={run_dir}: its {steps} steps are done; trainer.max_steps={2 * steps} would go on")
    return steps, checkpoint


if __name__ == "__main__":
    main()
