"""The final examination: a policy and its environment in, the figures of evaluation/metrics.json out.

Every split of the environment is played on final-evaluation scenes that nothing else ever shows; the grounding checks
replay the seen scenes with another object named, or none, to tell what the words are worth.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import vla_mini.envs
from vla_mini.build import nearest
from vla_mini.evaluation.metrics import steps_mean, summarise_grounding, summarise_split
from vla_mini.evaluation.rollout import Acting, EpisodeResult, rollout

NUM_RECORDINGS = 2  # successes, and as many failures, that are kept as videos of each split


def evaluate(
    policy: Acting,
    env_id: str,
    *,
    episodes: int = 200,
    seed: int = 0,
    further_splits: Sequence[str] = (),
    output: Path | None = None,
    num_envs: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """Plays `episodes` of every split and every grounding check; returns what metrics.json holds.

    - further_splits: of those that the environment plays on request only.
    - output: a folder for metrics.json and videos/, made where it is missing; nothing is written without one.
    - progress: shows a bar on stderr.

    Raises ValueError for fewer than one episode, or for a split that there is not.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: an evaluation needs at least one episode")
    splits, checks = examinations(env_id, further_splits=further_splits)
    start = time.perf_counter()
    with tqdm(
        total=episodes * (len(splits) + len(checks)), unit="episode", disable=None if progress else True, leave=False
    ) as bar:
        play = partial(
            _play, policy, env_id, episodes=episodes, seed=seed, num_envs=num_envs, on_episode=lambda _: bar.update()
        )
        recordings = 0 if output is None else NUM_RECORDINGS
        played: dict[str, list[EpisodeResult]] = {}
        for split in splits:
            bar.set_description(split)
            played[split] = play({"split": split}, num_recordings=recordings)
        grounding: dict[str, list[EpisodeResult]] = {}
        for check in checks:
            bar.set_description(check)
            grounding[check] = play({"split": splits[0], "instruction": check}, num_recordings=0)
    metrics = _metrics(played, grounding, env=env_id, seed=seed, seconds=time.perf_counter() - start)
    if output is not None:
        _write(Path(output), metrics, played)
    return metrics


def examinations(env_id: str, *, further_splits: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The splits, `further_splits` among them, and the grounding checks of an environment; one from elsewhere that names none
    has only `seen`. ValueError for a further split that it does not know."""
    env = vla_mini.envs.make(env_id)
    splits = tuple(getattr(env.unwrapped, "splits", ("seen",)))
    known = tuple(getattr(env.unwrapped, "further_splits", ()))
    checks = tuple(getattr(env.unwrapped, "grounding_checks", ()))
    env.close()
    if unknown := [split for split in further_splits if split not in known]:
        raise ValueError(f"further_splits: {env_id} has no split {unknown[0]!r}{nearest(unknown[0], known)}")
    return splits + tuple(further_splits), checks


def _play(
    policy: Acting,
    env_id: str,
    options: dict[str, Any],
    *,
    episodes: int,
    seed: int,
    num_envs: int,
    num_recordings: int,
    on_episode: Callable[[EpisodeResult], None],
) -> list[EpisodeResult]:
    return rollout(
        policy,
        env_id,
        episodes=range(episodes),
        options={"purpose": "evaluation", "seed": seed, **options},
        num_envs=num_envs,
        num_recordings=num_recordings,
        on_episode=on_episode,
    )


def _metrics(
    played: dict[str, list[EpisodeResult]],
    grounding: dict[str, list[EpisodeResult]],
    *,
    env: str,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    splits = {split: summarise_split(results) for split, results in played.items()}
    first, results = next(iter(played.items()))  # `seen`
    return {
        "env": env,
        "episodes": len(results),
        "seed": seed,
        "success_rate": splits[first]["success_rate"],
        "success_ci95": splits[first]["success_ci95"],
        "wrong_object_rate": splits[first]["wrong_object_rate"],
        "steps_mean": steps_mean(results),
        "seconds": round(seconds, 3),
        "splits": splits,
        "grounding": {check: summarise_grounding(results) for check, results in grounding.items()},
    }


def _write(output: Path, metrics: dict[str, Any], played: dict[str, list[EpisodeResult]]) -> None:
    """The videos first: where metrics.json is, everything is."""
    from vla_mini.evaluation.videos import write_videos  # imports Pillow, which a rollout has no use for

    output.mkdir(parents=True, exist_ok=True)
    write_videos(output / "videos", played)
    partial_file = output / "metrics.json.partial"
    partial_file.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(partial_file, output / "metrics.json")
