"""Expert + environment -> dataset: demonstrations of a scripted expert, collected over all cores.

The expert acts in every state it meets; what is executed strays from that by noise and short random bursts, while the
label stays clean: so demonstrations show how to recover. Attempts are numbered, each with generators of its own, and
the first successes in their order are kept: the dataset does not depend on how many processes worked on it. No torch.
"""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

import vla_mini.envs
from vla_mini.data.writer import DatasetWriter, EncodedEpisode, encode_episode
from vla_mini.envs.seeds import episode_generator
from vla_mini.machine import num_cores

# How far the executed actions stray at disturbance 1, in units of half the action space's range: noise of this standard
# deviation at each step, and with this chance at each step a random action that takes over for some steps.
NOISE = 0.2
BURST_PROBABILITY = 0.05
BURST_STEPS = 3
# Attempts in the workers, or waiting for their turn to be written.
AHEAD = 32
# An expert that fails more often than this has nothing to teach.
MOST_FAILURES = 0.9


class Collected(NamedTuple):
    """What `collect` did."""

    episodes: int
    frames: int


def collect(
    env_id: str,
    output: str | Path,
    *,
    episodes: int,
    validation_episodes: int = 0,
    seed: int = 0,
    disturbance: float = 1.0,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Collect demonstrations for training, and `validation_episodes` more on other scenes, into the dataset `output`.

    - `disturbance`: how far executed actions stray from the expert's (0 = not at all).
    - `num_workers`: processes that play (None: one a core); 1 plays in this process.
    - `progress(done, total)`: called after each episode written.

    Raises ValueError, before any work, for fewer than one episode, an unknown environment, or an `output` that exists
    or cannot be written. Raises RuntimeError when the expert hardly ever succeeds, or the disk is full.
    """
    if episodes < 1 or validation_episodes < 0:
        raise ValueError(f"episodes={episodes}, validation_episodes={validation_episodes}: at least 1 and 0 are needed")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be at least 1")
    if disturbance < 0:
        raise ValueError(f"disturbance={disturbance} must be at least 0")
    env = _environment(env_id).unwrapped
    targets = {"demonstration": episodes, "validation": validation_episodes}
    total = episodes + validation_episodes
    writer = DatasetWriter(output, features=env.features, robot_type=env.robot_type)
    try:
        with writer, _workers(num_workers) as pool:
            for purpose, target in targets.items():
                attempt = partial(_attempt, env_id, purpose=purpose, seed=seed, disturbance=disturbance)
                for episode in itertools.islice(_successes(_in_order(attempt, pool)), target):
                    writer.add_episode(episode)
                    if progress is not None:
                        progress(writer.num_episodes, total)
            splits = {"train": (0, episodes), "validation": (episodes, total)}
            writer.finish(splits={name: span for name, span in splits.items() if span[1] > span[0]})
    except OSError as error:
        raise RuntimeError(f"output={str(output)!r}: collecting failed: {error}") from error
    return Collected(writer.num_episodes, writer.num_frames)


class Played(NamedTuple):
    """One attempt of the expert: what it saw and felt before each of its actions."""

    images: dict[str, np.ndarray]  # camera -> uint8 (t, h, w, 3)
    states: np.ndarray  # (t, s)
    actions: np.ndarray  # (t, a): clean labels, whatever was executed
    task: str


def demonstrate(env: gymnasium.Env, **how: Any) -> EncodedEpisode | None:
    """One attempt of the expert of `env`, as `play` makes it, ready to be written; None where it fails."""
    played = play(env, **how)
    return played and encode_episode(played.images, states=played.states, actions=played.actions, task=played.task)


def play(env: gymnasium.Env, *, purpose: str, seed: int, attempt: int, disturbance: float = 1.0) -> Played | None:
    """One attempt of the expert of `env`; None where it fails. Observations and clean labels, up to the last action."""
    generator = episode_generator(purpose, seed, attempt, stream=1)
    disturb = _Disturber(disturbance, space=env.action_space, generator=generator)
    observation, info = env.reset(seed=attempt, options={"purpose": purpose, "seed": seed})
    observations, actions, over = [], [], False
    while not over:
        observations.append(observation)
        actions.append(env.unwrapped.expert_action())
        observation, _, terminated, truncated, info = env.step(disturb(actions[-1]))
        over = terminated or truncated
    if not info["success"]:
        return None
    cameras = env.unwrapped.features.cameras
    return Played(
        {camera: np.stack([observation["images"][camera] for observation in observations]) for camera in cameras},
        states=np.stack([observation["state"] for observation in observations]),
        actions=np.stack(actions),
        task=observation["instruction"],
    )


class _Disturber:
    """The expert's action -> the one that is executed, float32 (a,) within the action space."""

    def __init__(self, strength: float, *, space: gymnasium.spaces.Box, generator: np.random.Generator) -> None:
        self._space, self._generator = space, generator
        self._noise = strength * NOISE * (space.high - space.low) / 2
        self._burst_probability = strength * BURST_PROBABILITY
        self._burst, self._burst_steps_left = space.low, 0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        low, high = self._space.low, self._space.high
        if self._burst_steps_left == 0 and self._generator.random() < self._burst_probability:
            self._burst, self._burst_steps_left = self._generator.uniform(low, high), BURST_STEPS
        if self._burst_steps_left > 0:
            self._burst_steps_left -= 1
            return self._burst.astype(np.float32)
        noisy = action + self._noise * self._generator.standard_normal(action.shape)
        return np.clip(noisy, low, high).astype(np.float32)


@functools.cache
def _environment(env_id: str) -> gymnasium.Env:
    """Each process keeps the environments it made."""
    return vla_mini.envs.make(env_id)


def _attempt(env_id: str, attempt: int, **how: Any) -> EncodedEpisode | None:
    return demonstrate(_environment(env_id), attempt=attempt, **how)


def _successes(outcomes: Iterator[EncodedEpisode | None]) -> Iterator[EncodedEpisode]:
    """The attempts that succeeded, in their order. An expert that never succeeds must not keep us for ever."""
    failures = 0
    for attempt, episode in enumerate(outcomes):
        failures += episode is None
        if failures > MOST_FAILURES * (attempt + 1) and attempt >= 100:
            raise RuntimeError(f"the expert failed in {failures} of {attempt + 1} attempts")
        if episode is not None:
            yield episode


def _in_order(
    attempt: Callable[[int], EncodedEpisode | None], pool: ProcessPoolExecutor | None
) -> Iterator[EncodedEpisode | None]:
    """The outcomes of attempts 0, 1, 2, ... without end, a few of them ahead of time in the workers."""
    if pool is None:
        yield from map(attempt, itertools.count())
        return
    waiting: deque[Future] = deque()
    for number in itertools.count():
        waiting.append(pool.submit(attempt, number))
        if len(waiting) == AHEAD:
            yield waiting.popleft().result()


@contextmanager
def _workers(num_workers: int | None) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of that many processes (None: one a core); no pool where this process can do it alone."""
    num_workers = num_workers or num_cores()
    if num_workers == 1:
        yield None
        return
    # Spawned: forking a process that has threads (torch, pyarrow) can hang.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
