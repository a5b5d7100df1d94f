"""See how gradients flow through a policy: saliency, gradient flow, Jacobian, per-sample gradients, graph; with pictures.

Writes gradients.html, gradients.json and figures/ into a new folder: `output`, or gradients/<date_time>/ beside the policy.

    python scripts/gradients.py policy=runs/toy_pick/latest/policy
    python scripts/gradients.py policy=runs/toy_pick/latest/policy data=data/toy_pick output=gradients
    python scripts/gradients.py experiment=toy_pick vision=patch
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import GradientsSettings

EPISODES = 64  # that are collected where no data is given


@config.main("gradients")
def main(settings: "GradientsSettings") -> None:
    from vla_mini.acting import observe
    from vla_mini.autograd.batches import select
    from vla_mini.autograd.flow import gradient_flow
    from vla_mini.autograd.graph import trace_graph
    from vla_mini.autograd.inference import compare_modes
    from vla_mini.autograd.jacobian import jacobian
    from vla_mini.autograd.per_sample import per_sample
    from vla_mini.autograd.saliency import data_scenes, env_scenes, saliency
    from vla_mini.reports.gradients import Findings, describe, write_report

    start = time.perf_counter()
    policy, batch, instructions = policy_and_batch(settings)
    if env_id := policy.source.get("env"):
        scenes = env_scenes(env_id, scenes=settings.scenes, seed=settings.seed)
    else:
        scenes = data_scenes(batch.observation, instructions, features=policy.features, scenes=settings.scenes)
    observation = observe(policy, [scene.observation for scene in scenes])
    one = select(batch.observation, slice(0, 1))

    beside = config.default_output(settings.policy, "gradients", f"runs/{settings.experiment}")
    output = config.new_folder(settings.output or beside)  # everything is checked: work starts
    print(f"saliency in {len(scenes)} scenes ...", flush=True)
    saliencies = saliency(policy, scenes, observation)
    print(f"gradients of {len(instructions)} samples ...", flush=True)
    findings = Findings(
        saliencies=saliencies,
        flow=gradient_flow(policy, batch),
        per_sample=per_sample(policy, batch, seed=settings.seed),
        graph=trace_graph(policy, batch),
        jacobian=jacobian(policy, one, grid=settings.grid, seed=settings.seed),
        modes=compare_modes(policy, one, seed=settings.seed),
    )
    name = settings.policy or f"untrained {settings.experiment}"
    results = {"policy": name, "seed": settings.seed} | describe(findings, policy)
    results["seconds"] = round(time.perf_counter() - start, 3)
    page = write_report(output, findings, results, batch=batch, instructions=instructions)
    print(f"{summary(results)}; {page}")


def policy_and_batch(settings: "GradientsSettings") -> tuple[Any, Any, list[str]]:
    """The policy, saved or untrained, a batch of random samples of its data, and their instructions."""
    import numpy as np

    from vla_mini import Policy
    from vla_mini.data.chunks import ActionChunkDataset
    from vla_mini.data.reader import read_dataset
    from vla_mini.setup.policy import untrained_policy

    policy = None
    if settings.policy:
        policy = Policy.from_pretrained(settings.policy, trust_remote_code=settings.trust_remote_code)
    env_id = policy.source.get("env") if policy else settings.training.env.id
    with TemporaryDirectory() as temporary:
        data = read_dataset(settings.data or collect_some(env_id, Path(temporary) / "data", seed=settings.seed))
        policy = policy or untrained_policy(settings.training, data).eval()
        check_sizes(policy, data, settings)
        dataset = ActionChunkDataset(
            data,
            split="train",
            horizon=policy.horizon,
            tokenize=policy.tokenize,
            history=policy.history,
            targets=policy.auxiliary_targets(data),
        )
        chosen = np.random.default_rng(settings.seed).permutation(len(dataset))[: settings.samples]
        first = data.episode_starts[data.splits["train"][0]]
        return policy, dataset.__getitems__(chosen), [data.tasks[task] for task in data.task_index[first + chosen]]


def collect_some(env_id: str | None, folder: Path, *, seed: int) -> Path:
    from vla_mini.collection import collect
    from vla_mini.envs import get_spec

    if env_id is None:
        raise ValueError("env=none: there is no environment to collect data in: give data=DIR")
    collect(env_id, folder, episodes=max(1, EPISODES // get_spec(env_id).num_tasks), seed=seed, num_workers=1)
    return folder


def check_sizes(policy: Any, data: Any, settings: "GradientsSettings") -> None:
    """Refuse data of other sizes than the policy's, and a reduced image that is not smaller than the image."""
    if settings.grid > min(policy.features.image_size):
        raise ValueError(f"grid={settings.grid} is finer than the image of {policy.features.image_size}")
    for name in ("cameras", "image_size", "state", "action"):
        expected, found = getattr(policy.features, name), getattr(data.features, name)
        if expected != found:
            raise ValueError(f"data={settings.data}: its {name} is {found}, but that of the policy is {expected}")


def summary(results: dict[str, Any]) -> str:
    share, flagged = results["on_target_share"], [one for one in results["depth"] if one["vanishing"] or one["exploding"]]
    target = f"the named object weighs most in {share:.1%} of {results['num_pairs']} pairs, " if share is not None else ""
    return f"{target}{len(flagged)} of {len(results['depth'])} layers flagged, {results['seconds']:.1f} s"


if __name__ == "__main__":
    main()
