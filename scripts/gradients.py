"""See how gradients flow through a policy: what its actions hang on, what learns, what it costs; with pictures.

Writes gradients.html, gradients.json and figures/ into a new folder: `output`, or gradients/<date_time>/ beside the policy.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vla_mini import config

EPISODES = 64  # collected where no data is given


@config.main("gradients")
def main(cfg: Any) -> None:
    from vla_mini.autograd.flow import gradient_flow
    from vla_mini.autograd.graph import trace_graph
    from vla_mini.autograd.inference import compare_modes
    from vla_mini.autograd.jacobian import jacobian
    from vla_mini.autograd.per_sample import per_sample
    from vla_mini.autograd.report import Findings, describe, write_report
    from vla_mini.autograd.scenes import data_scenes, start_scenes
    from vla_mini.autograd.sensitivity import look
    from vla_mini.evaluation.rollout import observe
    from vla_mini.types import Observation

    start = time.perf_counter()
    policy, batch, instructions = policy_and_batch(cfg)
    if "env" in policy.source:
        scenes = start_scenes(policy.source["env"], scenes=cfg.scenes, seed=cfg.seed)
    else:
        scenes = data_scenes(batch.observation, instructions, features=policy.features, scenes=cfg.scenes)
    seen = observe(policy, [scene.observation for scene in scenes])
    one = Observation(*(tensor[:1] for tensor in batch.observation))

    beside = config.default_output(cfg.policy, "gradients", f"runs/{cfg.experiment}")
    output = config.new_folder(cfg.output or beside)  # all is checked: the work begins
    print(f"sensitivity in {len(scenes)} scenes ...", flush=True)
    looks = look(policy, scenes, seen)
    print(f"gradients of {len(instructions)} samples ...", flush=True)
    found = Findings(
        looks=looks,
        flow=gradient_flow(policy, batch),
        samples=per_sample(policy, batch, seed=cfg.seed),
        graph=trace_graph(policy, batch),
        jacobian=jacobian(policy, one, grid=cfg.grid, seed=cfg.seed),
        modes=compare_modes(policy, one, seed=cfg.seed),
    )
    results = {"policy": cfg.policy or f"untrained {cfg.experiment}", "seed": cfg.seed} | describe(found, policy)
    results["seconds"] = round(time.perf_counter() - start, 3)
    page = write_report(output, results, found, batch=batch, instructions=instructions)
    print(f"{summary(results)}; {page}")


def policy_and_batch(cfg: Any) -> tuple[Any, Any, list[str]]:
    """The policy, saved or untrained, a batch of random samples of its data, and what was said in each."""
    import numpy as np
    from omegaconf import OmegaConf

    from vla_mini import Policy
    from vla_mini.data.reader import read_dataset
    from vla_mini.data.windows import ActionWindows, Keyframe
    from vla_mini.training.setup import untrained_policy

    policy = Policy.from_pretrained(cfg.policy, trust_remote_code=cfg.trust_remote_code) if cfg.policy else None
    env_id = policy.source.get("env") if policy else cfg.training.env.id
    with TemporaryDirectory() as temporary:
        data = read_dataset(cfg.data or collect_some(env_id, Path(temporary) / "data", seed=cfg.seed))
        policy = policy or untrained_policy(OmegaConf.to_container(cfg.training, resolve=True), data).eval()
        check_sizes(policy, data, cfg)
        closing = cfg.keyframe if cfg.policy else cfg.training.data.keyframe
        windows = ActionWindows(
            data,
            split="train",
            horizon=policy.action.horizon,
            tokenize=policy.tokenize,
            history=policy.history,
            keyframe=Keyframe(policy.keyframe, closing.closes, closing.threshold) if policy.keyframe else None,
        )
        chosen = np.random.default_rng(cfg.seed).permutation(len(windows))[: cfg.samples]
        first = data.episode_starts[data.splits["train"][0]]
        return policy, windows.__getitems__(chosen), [data.tasks[task] for task in data.task_index[first + chosen]]


def collect_some(env_id: str | None, folder: Path, *, seed: int) -> Path:
    from vla_mini.collection import collect

    if env_id is None:
        raise ValueError("the policy does not say which environment it was made for: give data=DIR")
    collect(env_id, folder, episodes=EPISODES, seed=seed, num_workers=1)
    return folder


def check_sizes(policy: Any, data: Any, cfg: Any) -> None:
    """Refuse data of other sizes than the policy's, and a reduced image that is none."""
    if cfg.grid > min(policy.features.image_size):
        raise ValueError(f"grid={cfg.grid} is finer than the image of {policy.features.image_size}")
    for name in ("cameras", "image_size", "state", "action"):
        wanted, found = getattr(policy.features, name), getattr(data.features, name)
        if wanted != found:
            raise ValueError(f"data={cfg.data}: its {name} is {found}, but the policy was made for {wanted}")


def summary(results: dict[str, Any]) -> str:
    share, flagged = results["on_target_share"], [one for one in results["depth"] if one["vanishing"] or one["exploding"]]
    looks = "" if share is None else f"the named object weighs most in {share:.1%} of {results['num_pairs']} pairs, "
    return f"{looks}{len(flagged)} of {len(results['depth'])} layers flagged, {results['seconds']:.1f} s"


if __name__ == "__main__":
    main()
