"""A policy acts in many environments at once: episode numbers go in, one `EpisodeResult` each comes out.

    observations ──step_together──▶ actions ──Gymnasium's vector environment──▶ observations, metrics of finished episodes

Each environment has a `Controller` of its own. One whose episode is over is reset to the next episode, or paused where there is
none left, so the policy only gets observations of running episodes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import iterate

from vla_mini.acting import ActingPolicy, Controller, step_together
from vla_mini.envs import EnvSpec, get_spec, make_vec
from vla_mini.utils.machine import num_cores

NUM_ENVS = 32  # that are stepped together
MOST_FRAMES = 120  # of a recording, and the last one


class EpisodeResult(NamedTuple):
    """How one episode ended.

    - info: the metrics that the environment's spec names, at the last step
    - frames: images of the first camera, uint8 (n, h, w, 3), where they were recorded: every `frame_stride(steps)` steps, and
      the last
    - task: its name, where the environment's tasks have names
    """

    episode: int
    instruction: str
    steps: int
    success: bool
    info: dict[str, float | int | bool]
    frames: np.ndarray | None = None
    task: str | None = None


def rollout(
    policy: ActingPolicy,
    env_id: str,
    *,
    episodes: Iterable[int],
    options: Mapping[str, Any] | None = None,
    num_envs: int = NUM_ENVS,
    execute: int | None = None,
    ensemble: float | Literal["none"] | None = None,
    delay: int = 0,
    rtc: bool = False,
    num_recordings: int = 0,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Plays each of `episodes` once and returns the results in their order.

    - policy: in eval mode; sampling heads draw from a generator for each episode, seeded by (`options["seed"]`, episode)
    - options: for the environment's `reset`, together with `seed=episode`
    - num_envs: how many environments are stepped together; the results do not depend on it
    - execute, ensemble, delay, rtc: see `Controller`
    - num_recordings: frames are kept of this many successes and this many failures of each task, those with the lowest numbers
    - on_episode: called with each result as soon as it is there

    Raises ValueError for no episodes, no environments, or a policy that cannot act as it is to; FloatingPointError for actions
    that are not finite; RuntimeError where an environment's process dies twice.
    """
    episodes, spec = list(episodes), get_spec(env_id)
    if not episodes or num_envs < 1:
        raise ValueError(f"episodes={len(episodes)}, num_envs={num_envs}: an evaluation needs at least one of each")
    if spec.vectorization == "async":
        num_envs = min(num_envs, num_cores())  # Further processes would only take memory.
    acting = {"execute": execute, "ensemble": ensemble, "delay": delay, "rtc": rtc}
    controllers = [Controller(policy, **acting) for _ in range(min(num_envs, len(episodes)))]
    results: dict[int, EpisodeResult] = {}
    for result in _play_again(env_id, controllers, spec, episodes, dict(options or {}), record=num_recordings > 0):
        results[result.episode] = result
        # All episodes are recorded, so that the choice depends on their numbers alone, not on which of them ends first.
        kind = result.task, result.success
        recorded = [r.episode for r in results.values() if r.frames is not None and (r.task, r.success) == kind]
        for number in sorted(recorded)[num_recordings:]:
            results[number] = results[number]._replace(frames=None)
        if on_episode is not None:
            on_episode(result)
    return [results[episode] for episode in episodes]


def _play_again(
    env_id: str, controllers: list[Controller], spec: EnvSpec, episodes: list[int], options: dict[str, Any], *, record: bool
) -> Iterator[EpisodeResult]:
    """The results of `episodes`. Where a process of the environments dies, what is missing is played once more."""
    waiting = dict.fromkeys(episodes)
    for is_last in (False, True):
        controllers = controllers[: len(waiting)]
        envs = make_vec(env_id, len(controllers))
        try:
            for result in _play(envs, controllers, spec, list(waiting), options, record=record):
                del waiting[result.episode]
                yield result
            return
        except (EOFError, ConnectionError) as error:
            for process in envs.processes:
                process.kill()
            envs.closed = True  # to close them it would ask each process
            if is_last:
                raise RuntimeError(f"a process of env={env_id} died again, with {len(waiting)} episodes left") from error
        finally:
            envs.close()


def _play(
    envs: VectorEnv, controllers: list[Controller], spec: EnvSpec, episodes: list[int], options: dict[str, Any], *, record: bool
) -> Iterator[EpisodeResult]:
    """The results of `episodes`, in the order in which they end."""
    # Task by task, since to change the task may take a process long.
    waiting = deque(sorted(episodes, key=lambda episode: episode % spec.num_tasks))
    bounds, camera = envs.single_action_space, spec.features.cameras[0]
    if controllers[0].policy.history == 1:  # it looks at no other images
        options = options | {"render_every": controllers[0].execute}
    playing: list[int | None] = [None for _ in controllers]  # the episode in each environment; None: it is paused
    steps, frames = [0 for _ in controllers], [[] for _ in controllers]
    actions = np.zeros(envs.action_space.shape, np.float32)
    over = np.ones(len(controllers), bool)  # whose episode ended at the last step; before the first step, all are to be started
    while True:
        if over.any():
            for i in np.flatnonzero(over).tolist():
                playing[i], steps[i], frames[i] = waiting.popleft() if waiting else None, 0, []
                if playing[i] is not None:
                    controllers[i].reset(seed=[options.get("seed", 0), playing[i]])
            batch, _ = envs.reset(seed=playing, options=options | {"reset_mask": over})
        running = [i for i, episode in enumerate(playing) if episode is not None]
        if not running:
            return
        single = iterate(envs.observation_space, batch)
        observations = [observation for observation, episode in zip(single, playing, strict=True) if episode is not None]
        chosen = step_together([controllers[i] for i in running], observations)
        actions[running] = np.clip(chosen, bounds.low, bounds.high)
        for i, observation in zip(running, observations, strict=True):
            steps[i] += 1
            frames[i] += [observation["images"][camera]] if record else []
        batch, _, terminated, truncated, infos = envs.step(actions)
        over = terminated | truncated
        for i in np.flatnonzero(over).tolist():
            images = np.stack([*frames[i][:: frame_stride(steps[i])], batch["images"][camera][i]]) if record else None
            success, info = _metrics(infos, i, spec)
            task = list(spec.tasks)[playing[i] % spec.num_tasks] if spec.tasks else None
            yield EpisodeResult(playing[i], batch["instruction"][i], steps[i], success, info, images, task)


def frame_stride(steps: int) -> int:
    """Of an episode with that many steps, a recording keeps a frame every so many."""
    return -(-steps // MOST_FRAMES)


def _metrics(infos: Mapping[str, Any], i: int, spec: EnvSpec) -> tuple[bool, dict[str, float | int | bool]]:
    """Success in one of the environments, and what its spec names."""
    keys = ("success", *spec.rates, *spec.subsets, *spec.check_rates)
    if missing := [key for key in keys if key not in infos]:
        raise ValueError(f"the info of {spec.id} lacks {missing[0]!r}, which its env_spec promises")
    info = {key: np.asarray(infos[key][i]).item() for key in keys}
    return bool(info.pop("success")), info
