"""Closed loop: a policy acts in many environments at once; episode numbers go in, one `EpisodeResult` each comes out.

In rounds: free environments begin the next episodes, the policy is asked once for all of them, and each executes the
first `policy.execute` actions of its chunk with nothing looked at in between (open loop), or, with `policy.ensemble`, the
average of what all its chunks so far say of those steps. An environment that is done waits for the round to end, so the
policy only ever sees those still running, and always as many as there are. A policy with a history is also shown what came
before, every frame of it, back to the episode's first.

    observations (list of dicts) ──observe──▶ Observation "b ..." ──policy.act──▶ "b t a" ──step──▶ observations
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

import vla_mini.envs
from vla_mini.features import Features
from vla_mini.types import Observation


@runtime_checkable
class Acting(Protocol):
    """All that a rollout asks of a policy; `vla_mini.Policy` in eval mode is one."""

    features: Features
    history: int  # how many frames it sees and feels, the newest first
    execute: int  # how many actions of a chunk are executed before the policy is asked again
    ensemble: float | None  # None: of the newest chunk; else of all, each weighing exp(-ensemble) of the one before it
    device: torch.device

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]: ...

    def act(self, observation: Observation, *, generator: torch.Generator | None = None) -> Float[Tensor, "b t a"]: ...


class EpisodeResult(NamedTuple):
    """How one episode went. `frames`: what the first camera saw, uint8 (steps + 1, h, w, 3), where it was recorded."""

    episode: int
    instruction: str
    steps: int
    success: bool
    wrong_object: bool
    lifted: int  # index of the object that was lifted; -1: none
    original_target: int  # the target before another object was named in its place
    two_words: bool  # whether look-alikes make both words of the instruction necessary
    num_objects: int
    frames: np.ndarray | None = None


def observe(
    policy: Acting, observations: Sequence[Mapping[str, Any]], *, past: Sequence[Sequence[Mapping[str, Any]]] | None = None
) -> Observation:
    """Makes b environment observations {"images", "state", "instruction"} one `Observation` on the policy's device.

    - past: what came before each of them, the newest first, for a policy with a history. Where there is less than it looks
      back on, as at an episode's start, the earliest is repeated.

    The one place where what an environment shows becomes tensors. Raises ValueError for no observation at all, a missing
    camera, another image size, bytes that are none or a state of another length.
    """
    if isinstance(observations, Mapping) or not observations:
        raise ValueError("observe takes a list of at least one observation, as an environment's reset and step give them")
    features = policy.features
    missing = [camera for camera in features.cameras if camera not in observations[0]["images"]]
    if missing:
        raise ValueError(f"camera {missing[0]!r} is missing: the images are from {sorted(observations[0]['images'])}")
    pairs = zip(observations, past or [[]] * len(observations), strict=True)
    frames = [frame for now, before in pairs for frame in _repeat_earliest([now, *before], policy.history)]
    images = [frame["images"][camera] for frame in frames for camera in features.cameras]
    wanted = (*features.image_size, 3)
    for image in images:
        if image.shape != wanted or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {image.shape}, but the policy sees uint8 {wanted}")
    for frame in frames:
        if np.shape(frame["state"]) != (features.state_size,):
            raise ValueError(f"state has shape {np.shape(frame['state'])}, but the policy feels {list(features.state)}")
    tokens, token_mask = policy.tokenize([observation["instruction"] for observation in observations])
    pixels = torch.from_numpy(np.stack(images))
    states = torch.from_numpy(np.stack([frame["state"] for frame in frames]).astype(np.float32))
    return Observation(
        images=rearrange(pixels, "(b k) h w c -> b k c h w", b=len(observations)).contiguous().to(policy.device),
        tokens=tokens.to(policy.device),
        token_mask=token_mask.to(policy.device),
        state=rearrange(states, "(b age) s -> b (age s)", b=len(observations)).to(policy.device),
    )


def _repeat_earliest(frames: list[Mapping[str, Any]], history: int) -> list[Mapping[str, Any]]:
    return (frames + frames[-1:] * history)[:history]


def rollout(
    policy: Acting,
    env_id: str,
    *,
    episodes: Iterable[int],
    options: Mapping[str, Any] | None = None,
    num_envs: int = 32,
    num_recordings: int = 0,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Plays each of `episodes` once and returns the results in their order.

    - policy: in eval mode; a head that samples draws from a generator seeded by `options["seed"]`.
    - options: handed to `env.reset` beside `seed=episode`; see the environment for what it understands.
    - num_envs: how many are played at once. The results of a policy that draws nothing do not depend on it.
    - num_recordings: frames are kept for this many successes and this many failures, those of the lowest numbers.
    - on_episode: called with each result as it comes in, for a progress bar.

    Raises ValueError where there is nothing to play.
    """
    waiting = list(episodes)
    if not waiting:
        raise ValueError("episodes=0: an evaluation needs at least one episode")
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs}: at least one environment is needed")
    order = {episode: index for index, episode in enumerate(waiting)}
    options = dict(options or {})
    generator = torch.Generator(policy.device).manual_seed(int(options.get("seed", 0)))
    num_slots, record = min(num_envs, len(waiting)), num_recordings > 0
    slots = [_Slot(vla_mini.envs.make(env_id), history=policy.history, record=record) for _ in range(num_slots)]
    results: list[EpisodeResult] = []
    waiting.reverse()
    try:
        while waiting or any(slot.running for slot in slots):
            for slot in slots:
                if not slot.running and waiting:
                    slot.begin(waiting.pop(), options)
            running = [slot for slot in slots if slot.running]
            now, past = [slot.observation for slot in running], [slot.past for slot in running]
            chunks = policy.act(observe(policy, now, past=past), generator=generator)
            for slot, chunk in zip(running, _to_numpy(chunks), strict=True):
                finished = slot.play(slot.plan(chunk, execute=policy.execute, ensemble=policy.ensemble))
                if finished is not None:
                    results.append(finished)
                    if on_episode is not None:
                        on_episode(finished)
            results = _release_frames(results, num_recordings)
    finally:
        for slot in slots:
            slot.env.close()
    return sorted(results, key=lambda result: order[result.episode])


class _Slot:
    """One environment with the episode that is being played in it."""

    observation: dict[str, Any]  # the latest

    def __init__(self, env: gymnasium.Env, *, history: int = 1, record: bool = False) -> None:
        self.env = env
        self.past: deque[dict[str, Any]] = deque(maxlen=history - 1)  # what came before it, the newest first
        self.running = False
        self._record = record
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box), f"actions are vectors here, but this one takes {space}"
        self._low, self._high = space.low, space.high

    def begin(self, episode: int, options: Mapping[str, Any]) -> None:
        self.observation, _ = self.env.reset(seed=episode, options=dict(options))
        self.past.clear()
        self.running = True
        self._episode = episode
        self._steps = 0
        self._chunks: list[tuple[int, np.ndarray]] = []  # what was said, and at which step
        self._frames: list[np.ndarray] = []
        self._keep_frame()

    def plan(self, chunk: np.ndarray, *, execute: int, ensemble: float | None) -> np.ndarray:
        """The next `execute` actions; as an ensemble over time, in which the oldest weighs most (ACT, Zhao et al. 2023)."""
        if ensemble is None:
            return chunk[:execute]
        now = self._steps
        self._chunks = [(then, old) for then, old in self._chunks if now < then + len(old)] + [(now, chunk)]
        actions = []
        for step in range(now, now + execute):
            said = np.stack([old[step - then] for then, old in self._chunks if step < then + len(old)])
            actions.append(np.average(said, axis=0, weights=np.exp(-ensemble * np.arange(len(said)))))
        return np.stack(actions).astype(chunk.dtype)

    def play(self, chunk: np.ndarray) -> EpisodeResult | None:
        """Executes the actions (t, a) until the episode ends; its result where it does."""
        for action in np.clip(chunk, self._low, self._high):
            self.past.appendleft(self.observation)
            self.observation, _, terminated, truncated, info = self.env.step(action)
            self._steps += 1
            self._keep_frame()
            if terminated or truncated:
                self.running = False
                return self._result(info)
        return None

    def _keep_frame(self) -> None:
        if self._record:
            self._frames.append(next(iter(self.observation["images"].values())).copy())

    def _result(self, info: Mapping[str, Any]) -> EpisodeResult:
        """An environment that says nothing but `success` counts as having one object, the right one."""
        return EpisodeResult(
            episode=self._episode,
            instruction=self.observation["instruction"],
            steps=self._steps,
            success=bool(info["success"]),
            wrong_object=bool(info.get("wrong_object", False)),
            lifted=int(info.get("lifted", -1)),
            original_target=int(info.get("original_target", 0)),
            two_words=bool(info.get("two_words", False)),
            num_objects=int(info.get("num_objects", 1)),
            frames=np.stack(self._frames) if self._record else None,
        )


def _to_numpy(chunks: Tensor) -> np.ndarray:
    """The chunks "b t a" as an array; refuses actions that are no numbers."""
    actions = chunks.to("cpu", torch.float32).numpy()
    if not np.isfinite(actions).all():
        raise FloatingPointError("the policy's actions are not finite: are its weights?")
    return actions


def _release_frames(results: list[EpisodeResult], keep: int) -> list[EpisodeResult]:
    """Keeps the frames of the `keep` successes and failures with the lowest numbers, so that memory stays bounded.

    Recording happens for all, and what is kept depends on the numbers alone: neither the play nor the choice is
    touched by how many environments there are or which of them finishes first.
    """
    recorded = sorted((result for result in results if result.frames is not None), key=lambda result: result.episode)
    kept = {r.episode for success in (True, False) for r in [r for r in recorded if r.success is success][:keep]}
    return [result if result.episode in kept else result._replace(frames=None) for result in results]
