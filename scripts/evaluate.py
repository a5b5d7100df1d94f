"""Evaluate a saved policy in closed loop: success on every split, grounding checks, videos.

Writes metrics.json and videos/ into a new folder: `output`, or evaluations/<date_time>/ beside the policy.

    python scripts/evaluate.py policy=runs/toy_pick/latest/policy
    python scripts/evaluate.py policy=runs/toy_pick/latest/policy episodes=50 execute=1 ensemble=0.01 output=evaluations/quick
    python scripts/evaluate.py policy=runs/metaworld_mt10/latest/policy env=metaworld_mt1 env.task=reach episodes=10
"""

from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import EvaluateSettings


@config.main("evaluate")
def main(settings: "EvaluateSettings") -> None:
    from vla_mini import Controller
    from vla_mini.envs import check_fits, get_spec
    from vla_mini.evaluation.evaluate import evaluate, evaluation_splits
    from vla_mini.evaluation.metrics import headline, table
    from vla_mini.export import load_policy
    from vla_mini.reports.videos import write_videos
    from vla_mini.utils.files import write_json

    options = {"num_steps": settings.num_steps, "trust_remote_code": settings.trust_remote_code}
    policy = load_policy(settings.policy, **options)
    env_id = settings.env.address if settings.env else policy.source.get("env")
    if env_id is None:
        raise ValueError(f"policy={settings.policy} was trained with env=none: name an environment, such as env=metaworld_mt10")
    whose, hint = f"the policy {settings.policy}", f"it was trained for {policy.source.get('env', 'env=none')}"
    check_fits(get_spec(env_id), policy.features, whose=whose, hint=hint, names=("cameras", "state", "action"))
    acting = {"execute": settings.execute, "ensemble": settings.ensemble, "delay": settings.delay, "rtc": settings.rtc}
    Controller(policy, **acting)  # refuses what does not fit the policy, before work starts
    evaluation_splits(env_id, settings.further_splits)  # refuses an unknown split
    output = config.new_folder(settings.output or config.default_output(settings.policy, "evaluations"))
    metrics, played = evaluate(
        policy,
        env_id,
        episodes=settings.episodes,
        check_episodes=settings.check_episodes,
        seed=settings.seed,
        further_splits=settings.further_splits,
        num_envs=settings.num_envs,
        num_recordings=2,
        progress=True,
        **acting,
    )
    write_videos(output / "videos", played, rates=get_spec(env_id).rates)
    write_json(output / "metrics.json", metrics)
    print(table(metrics))
    print(f"{headline(metrics)}; {metrics['seconds']:.1f} s; {output}")


if __name__ == "__main__":
    main()
