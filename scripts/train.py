"""Train a policy: demonstrations, training, closed-loop evaluation, report.

Everything is written to one new folder, runs/<experiment>/<date_time>/.

    python scripts/train.py experiment=toy_pick
    python scripts/train.py experiment=toy_pick action=bins optimizer.lr=1e-3 seed=1
    python scripts/train.py experiment=toy_pick trainer.devices=4
    torchrun --standalone --nproc-per-node=4 scripts/train.py experiment=toy_pick trainer.devices=4
    python scripts/train.py experiment=real data.root=DIR
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.settings import TrainSettings


# It reads from top to bottom in the order in which things happen.
@config.main("train")
def main(settings: "TrainSettings") -> None:
    import lightning

    from vla_mini.setup.demonstrations import check_start, collect_missing, fit_environment, training_demonstrations
    from vla_mini.setup.policy import data_module, notes_on, untrained_policy
    from vla_mini.training.checkpoints import clean_run_folder, fingerprint, provenance, write_provenance
    from vla_mini.training.trainer import build_training, choose_precision

    if not config.rank():  # one of several processes checks for all
        check_start(settings)
    if settings.resume:
        with warnings.catch_warnings(action="ignore"):  # they are repeated below
            find_checkpoint(settings)  # before anything is collected
    collect_missing(settings, config.is_given)
    settings, notes = fit_environment(settings, config.is_given)
    demonstrations = training_demonstrations(settings)
    policy = untrained_policy(settings, demonstrations)
    for note in () if config.rank() else (*notes, *notes_on(policy, demonstrations)):
        print(note, flush=True)
    data = data_module(settings, demonstrations, policy)
    lightning.seed_everything(settings.seed + config.rank(), verbose=False)  # each process draws noise of its own
    sources = {"dataset": demonstrations.fingerprint, "init_from": policy.source.get("init_from")}
    precision = choose_precision(settings.trainer.precision, accelerator=settings.trainer.accelerator)
    origin, run = provenance(precision, **sources), fingerprint(settings, **sources)
    steps, checkpoint = find_checkpoint(settings, origin, run) if settings.resume else (0, None)

    run_dir = config.run_folder(settings)  # everything is checked: work starts
    if settings.resume and not config.rank():
        clean_run_folder(run_dir, step=steps)
        print(f"{run_dir} resumes after step {steps}" if checkpoint else f"{run_dir} has no checkpoint yet: it starts again")
    write_provenance(run_dir, origin)
    trainer, module = build_training(settings, policy, run_dir=run_dir, provenance=origin, run=run, steps=steps)
    config.announce(run_dir)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    finally:  # however training ended: a run that saved a policy is the latest
        if trainer.is_global_zero and (run_dir / "policy").is_dir():
            config.point_latest(run_dir)
    if trainer.is_global_zero:  # of several processes the first does the rest
        module.step.raise_if_stopped()  # the checkpoint holds the last good weights
        finish(settings, trainer, module, demonstrations, run_dir)


def finish(settings: "TrainSettings", trainer: Any, module: Any, demonstrations: Any, run_dir: Path) -> None:
    """Evaluate the saved policy, in its environment or, without one, open loop on the validation episodes; close the loggers,
    write the report, print the result."""
    from vla_mini import Policy
    from vla_mini.envs import get_spec
    from vla_mini.evaluation import open_loop, open_loop_texts
    from vla_mini.evaluation.evaluate import evaluate
    from vla_mini.evaluation.looks import looks as find_looks
    from vla_mini.evaluation.metrics import headline, table
    from vla_mini.reports.open_loop import write_open_loop
    from vla_mini.reports.run import write_report
    from vla_mini.reports.videos import write_videos
    from vla_mini.setup.policy import trusts_remote_code
    from vla_mini.training.callbacks import BestPolicy
    from vla_mini.training.loggers import finish_loggers
    from vla_mini.training.trainer import choose_device
    from vla_mini.utils.files import write_json

    seconds, rates, evaluation = module.step.stopwatch.seconds, {}, settings.evaluation
    policy = Policy.from_pretrained(run_dir / "policy", trust_remote_code=trusts_remote_code(settings))
    if settings.env.address is None:
        policy.to(choose_device(settings.trainer.accelerator))
        metrics = open_loop.evaluate_open_loop(policy, demonstrations, progress=True)
        looks = find_looks(policy, demonstrations)
        write_open_loop(run_dir / "evaluation", metrics, looks, cameras=policy.features.cameras)
        print(open_loop_texts.table(metrics))
        best = next(callback.best for callback in trainer.callbacks if isinstance(callback, BestPolicy))
        kept = "the last policy was saved"
        if best:
            kept = f"validation loss {-best['score']:.4g} after step {best['step']} (the policy that was saved)"
        result = f"{kept}; {open_loop_texts.headline(metrics)}; trained {seconds:.0f} s"
    else:
        metrics, episodes = evaluate(
            policy,
            settings.env.address,
            episodes=evaluation.episodes,
            check_episodes=evaluation.check_episodes,
            seed=evaluation.seed,
            further_splits=evaluation.further_splits,
            num_recordings=2,
            progress=True,
        )
        write_videos(run_dir / "evaluation" / "videos", episodes, rates=get_spec(settings.env.address).rates)
        write_json(run_dir / "evaluation" / "metrics.json", metrics)
        rates = {f"evaluation/{split}": figures["success_rate"] for split, figures in metrics["splits"].items()}
        print(table(metrics))
        times = f"trained {seconds:.0f} s, evaluated {metrics['seconds']:.0f} s"
        result = f"{headline(metrics)}; {times}"
    finish_loggers(trainer.loggers, rates, step=trainer.global_step - 1)
    print(f"{result}; {write_report(run_dir)}")


def find_checkpoint(
    settings: "TrainSettings", origin: dict[str, Any] | None = None, run: str | None = None
) -> tuple[int, Path | None]:
    """Where a run resumes: the steps that it has made, and their checkpoint.

    - origin, run: what the run would be made with now, and its fingerprint, once they are known

    ValueError where there is nothing to resume from.
    """
    from vla_mini.training.checkpoints import check_provenance, newest_good

    run_dir = Path(settings.resume)
    if origin is not None:
        check_provenance(run_dir, origin)
    steps, checkpoint = newest_good(run_dir / "checkpoints", run=run)
    if steps >= settings.trainer.max_steps and (run_dir / "report.html").exists():
        raise ValueError(f"resume={run_dir}: its {steps} steps are done; trainer.max_steps={2 * steps} would train further")
    return steps, checkpoint


if __name__ == "__main__":
    main()
