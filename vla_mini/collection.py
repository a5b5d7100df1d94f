"""Expert + environment -> dataset: demonstrations of a scripted expert, collected on all cores.

The expert acts in every state it reaches, and its actions are the labels. What is executed differs from them by noise and short
random bursts, so that demonstrations show how to recover. Attempts are numbered, each has random generators of its own, and the
first successes in their order are kept: the dataset does not depend on how many processes collected it. No torch.
"""

import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

import vla_mini.envs
from vla_mini.data.lerobot.writer import DatasetWriter, EncodedEpisode, encode_episode, load_episode, save_episode
from vla_mini.envs.seeds import episode_generator
from vla_mini.utils.machine import num_cores

# At action_noise=1: the standard deviation of the noise of each step, in units of half the action space's range, and the
# probability at each step that a random action replaces the expert's for some steps.
NOISE = 0.2
BURST_PROBABILITY = 0.05
BURST_STEPS = 3
ALONE = 1.0  # seconds that this process collects alone, if the number of workers is left to it: starting them takes longer
AHEAD = 32  # attempts that are in the workers, or waiting to be written in their order
MAX_FAILURES = 0.9  # collecting stops with an error where the expert fails more often than this


def collect(
    env_id: str,
    output: str | Path,
    *,
    episodes: int,
    validation_episodes: int = 0,
    seed: int = 0,
    action_noise: float = 1.0,
    num_workers: int | None = None,
    progress: Callable[[], Any] | None = None,
) -> int:
    """Collect `episodes` demonstrations of each task for training, and `validation_episodes` more on other scenes, into the
    dataset `output`.

    Returns the number of frames. A task that the expert hardly ever does is left out, and said in a warning. Where attempts are
    expensive they are kept beside `output` until it is complete, so that an interrupted collection can be resumed.

    - action_noise: how far executed actions differ from the expert's (0 = not at all)
    - num_workers: processes that collect (None: one a core, if it takes longer than ALONE); 1 collects in this process
    - progress: called after each episode written

    Raises ValueError, before any work, for fewer than one episode, an unknown environment or one without an expert, or an
    `output` that exists or cannot be written. Raises RuntimeError when the expert hardly ever succeeds, when a process dies, or
    the disk is full.
    """
    alone_until = time.monotonic() + (ALONE if num_workers is None else 0)
    num_workers = num_cores() if num_workers is None else num_workers
    if episodes < 1 or validation_episodes < 0:
        raise ValueError(f"episodes={episodes}, validation_episodes={validation_episodes}: at least 1 and 0 are needed")
    if num_workers < 1 or action_noise < 0:
        raise ValueError(f"num_workers={num_workers}, action_noise={action_noise}: at least 1 and 0 are needed")
    spec = vla_mini.envs.get_spec(env_id)
    if not spec.has_expert:
        raise ValueError(f"env={env_id!r} has no scripted expert to collect demonstrations from")
    attempts = Path(output).with_name(f".{Path(output).name}.attempts") if spec.vectorization == "async" else None
    counts, splits = {"train": ("demonstration", episodes), "validation": ("validation", validation_episodes)}, {}
    tasks = dict(enumerate(spec.tasks)) or {0: ""}
    writer = DatasetWriter(output, features=spec.features, robot_type=spec.robot_type)
    try:
        with writer, _workers(num_workers) as pool:
            for split, (purpose, count) in counts.items():
                attempt = partial(demonstrate, env_id, purpose=purpose, seed=seed, action_noise=action_noise, folder=attempts)
                first, in_order = writer.num_episodes, partial(_in_order, attempt, pool, alone_until)
                for episode in _successes(in_order, tasks, spec.num_tasks, count):
                    writer.add_episode(episode)
                    if progress is not None:
                        progress()
                splits |= {split: (first, writer.num_episodes)} if count else {}
            writer.finish(splits=splits)
    except BrokenExecutor as error:
        raise RuntimeError(f"output={str(output)!r}: collecting failed: a process died, perhaps for want of memory") from error
    except OSError as error:
        raise RuntimeError(f"output={str(output)!r}: collecting failed: {error}") from error
    if attempts is not None:
        shutil.rmtree(attempts, ignore_errors=True)
    return writer.num_frames


class Played(NamedTuple):
    """One attempt of the expert: the observation before each of its actions, and the action."""

    images: dict[str, np.ndarray]  # camera -> uint8 (t, h, w, 3)
    states: np.ndarray  # (t, s)
    actions: np.ndarray  # (t, a): the expert's, whatever was executed
    task: str


_environment = cache(vla_mini.envs.make)  # Each process keeps the environments it made.


def demonstrate(env_id: str, attempt: int, *, folder: Path | None = None, **settings: Any) -> EncodedEpisode | None:
    """One attempt of an environment's expert, as `play` makes it, ready to be written; None where it fails.

    - folder: where it is kept, or found again
    """
    key = "&".join([env_id, *(f"{name}={value}" for name, value in settings.items()), str(attempt)])
    kept = folder and folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if kept and kept.exists():
        return load_episode(kept)
    played = play(_environment(env_id), attempt=attempt, **settings)
    episode = played and encode_episode(**played._asdict())
    if kept:
        folder.mkdir(parents=True, exist_ok=True)
        save_episode(kept, episode)
    return episode


def play(env: gymnasium.Env, *, purpose: str, seed: int, attempt: int, action_noise: float = 1.0) -> Played | None:
    """One attempt of the expert of `env`; None where it fails. Observations and labels, up to the last action."""
    strength = action_noise * env.unwrapped.env_spec.action_noise
    add_noise = _ActionNoise(strength, env.action_space, episode_generator(purpose, seed, attempt, stream=1))
    observation, info = env.reset(seed=attempt, options={"purpose": purpose, "seed": seed})
    observations, actions, over = [], [], False
    while not over:
        observations.append(observation)
        actions.append(env.unwrapped.expert_action())
        observation, _, terminated, truncated, info = env.step(add_noise(actions[-1]))
        over = terminated or truncated
    if not info["success"]:
        return None
    cameras = env.unwrapped.env_spec.features.cameras
    return Played(
        {camera: np.stack([observation["images"][camera] for observation in observations]) for camera in cameras},
        states=np.stack([observation["state"] for observation in observations]),
        actions=np.stack(actions),
        task=observation["instruction"],
    )


class _ActionNoise:
    """The expert's action -> the one that is executed, float32 (a,) within the action space."""

    def __init__(self, strength: float, space: gymnasium.spaces.Box, generator: np.random.Generator) -> None:
        self._strength, self._space, self._generator = strength, space, generator
        self._burst: list[np.ndarray] = []  # random actions that are still to be executed

    def __call__(self, action: np.ndarray) -> np.ndarray:
        low, high, generator = self._space.low, self._space.high, self._generator
        if not self._burst and generator.random() < self._strength * BURST_PROBABILITY:
            self._burst = [generator.uniform(low, high)] * BURST_STEPS
        if self._burst:
            return self._burst.pop().astype(np.float32)
        noise = self._strength * NOISE * (high - low) / 2 * generator.standard_normal(action.shape)
        return np.clip(action + noise, low, high).astype(np.float32)


def _successes(
    attempts: Callable[[Sequence[int]], Iterable[EncodedEpisode | None]], tasks: dict[int, str], num_tasks: int, count: int
) -> Iterator[EncodedEpisode]:
    """The first `count` attempts at each task that succeed, in rounds: each has as many attempts as successes are missing.

    - tasks: by number. One at which the expert hardly ever succeeds is removed; RuntimeError where none is left
    """
    missing, failures = dict.fromkeys(tasks, count), dict.fromkeys(tasks, 0)
    numbers = {task: itertools.count(task, num_tasks) for task in tasks}
    while any(missing.values()):
        chosen = [number for task in missing for number in itertools.islice(numbers[task], missing[task])]
        for number, episode in zip(chosen, attempts(chosen), strict=True):
            tried, task = divmod(number, num_tasks)
            failures[task] += episode is None
            if failures[task] > max(100, MAX_FAILURES * tried) and task in tasks:
                name, missing[task] = tasks.pop(task), 0
                failed = f"the expert failed in {failures[task]} of {tried + 1} attempts"
                if not tasks:
                    raise RuntimeError(failed)
                warnings.warn(f"task {name} is left out: {failed}", stacklevel=2)
            if episode is not None and task in tasks:
                missing[task] -= 1
                yield episode


def _in_order(
    attempt: Callable[[int], EncodedEpisode | None], pool: Executor | None, alone_until: float, numbers: Sequence[int]
) -> Iterator[EncodedEpisode | None]:
    """The attempts of these numbers: at first in this process, then in the workers, AHEAD of them at a time."""
    waiting: deque[Future] = deque()
    for number in numbers:
        if pool is None or time.monotonic() < alone_until:
            yield attempt(number)
            continue
        waiting.append(pool.submit(attempt, number))
        if len(waiting) == AHEAD:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


@contextmanager
def _workers(num_workers: int) -> Iterator[Executor | None]:
    """A pool of that many processes; no pool where one process is enough, which is this one."""
    if num_workers == 1:
        yield None
        return
    # Spawned, since forking a process that has threads (torch, pyarrow) can hang.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
