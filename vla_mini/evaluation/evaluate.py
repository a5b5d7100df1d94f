"""The final evaluation in closed loop: a policy and its environment in, the figures of evaluation/metrics.json out.

Each split of the environment is evaluated on scenes that nothing else uses. The environment's checks repeat the first split
with another instruction or none, which measures whether the policy follows its instruction.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

from tqdm import tqdm

from vla_mini.acting import ActingPolicy
from vla_mini.envs import get_spec
from vla_mini.evaluation.metrics import summarize
from vla_mini.evaluation.rollout import EpisodeResult, rollout
from vla_mini.utils.errors import did_you_mean


def evaluate(
    policy: ActingPolicy,
    env_id: str,
    *,
    episodes: int = 200,
    check_episodes: int | None = None,
    seed: int = 0,
    further_splits: Sequence[str] = (),
    num_envs: int = 32,
    execute: int | None = None,
    ensemble: float | Literal["none"] | None = None,
    delay: int = 0,
    rtc: bool = False,
    num_recordings: int = 0,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, list[EpisodeResult]]]:
    """Plays `episodes` of each task of each split and each check, on the scenes of `seed`. Nothing is written.

    Returns what metrics.json holds, and the episodes of each split.

    - check_episodes: of each task of each check; None: as many as `episodes`; 0: no checks
    - further_splits: some of those that the environment evaluates on request only
    - num_envs, execute, ensemble, delay, rtc, num_recordings: see `rollout`
    - progress: whether to show a bar on stderr

    Raises ValueError for fewer than one episode, or for an unknown split.
    """
    splits, spec, start = evaluation_splits(env_id, further_splits), get_spec(env_id), time.perf_counter()
    acting = {"num_envs": num_envs, "execute": execute, "ensemble": ensemble, "delay": delay, "rtc": rtc}
    check_episodes = episodes if check_episodes is None else check_episodes
    checks = spec.checks if check_episodes else {}
    total = spec.num_tasks * (episodes * len(splits) + check_episodes * len(checks))
    with tqdm(total=total, unit="episode", disable=None if progress else True, leave=False) as bar:

        def play(name: str, episodes: int, num_recordings: int, **changes: str) -> list[EpisodeResult]:
            bar.set_description(name)
            options = {"purpose": "evaluation", "seed": seed, **changes}
            settings = acting | {"num_recordings": num_recordings, "on_episode": lambda _: bar.update()}
            return rollout(policy, env_id, episodes=range(spec.num_tasks * episodes), options=options, **settings)

        by_split = {split: play(split, episodes, num_recordings, split=split) for split in splits}
        by_check = {check: play(check, check_episodes, 0, split=splits[0], instruction=check) for check in checks}
    return summarize(by_split, by_check, spec, seed=seed, seconds=time.perf_counter() - start), by_split


def evaluation_splits(env_id: str, further_splits: Sequence[str] = (), *, setting: str = "further_splits") -> tuple[str, ...]:
    """The splits to evaluate, `further_splits` last. ValueError for a further split that there is not."""
    spec = get_spec(env_id)
    for split in further_splits:
        if split not in spec.further_splits:
            raise ValueError(f"{setting}: {env_id} has no split {split!r}; {did_you_mean(split, spec.further_splits)}")
    return *spec.splits, *further_splits
