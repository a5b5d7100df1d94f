"""Evaluate a saved policy in closed loop: success on every split, grounding checks, videos.

Writes metrics.json and videos/ into a new folder: `output`, or evaluations/<date_time>/ beside the policy.
"""

from typing import Any

from vla_mini import config


@config.main("evaluate")
def main(cfg: Any) -> None:
    from vla_mini import Policy
    from vla_mini.evaluation.evaluate import evaluate, examinations
    from vla_mini.evaluation.metrics import headline, table

    policy = Policy.from_pretrained(cfg.policy, trust_remote_code=cfg.trust_remote_code)
    if "env" not in policy.source:
        raise ValueError(f"policy={cfg.policy} does not say which environment it was made for")
    examinations(policy.source["env"], further_splits=cfg.further_splits)  # refuses a split that there is not
    output = config.new_folder(cfg.output or config.default_output(cfg.policy, "evaluations"))
    metrics = evaluate(
        policy,
        policy.source["env"],
        episodes=cfg.episodes,
        seed=cfg.seed,
        further_splits=list(cfg.further_splits),
        output=output,
        num_envs=cfg.num_envs,
        progress=True,
    )
    print(table(metrics))
    print(f"{headline(metrics)}; {metrics['seconds']:.1f} s; {output}")


if __name__ == "__main__":
    main()
