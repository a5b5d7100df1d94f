"""Observations of an environment or a robot -> the next action: the one way in which a policy acts in closed loop.

{"images", "state", "instruction"} ──observe──▶ Observation "b ..." ──policy──▶ chunk "b t a" ──Controller──▶ action (a,)
"""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from vla_mini.data.images import resize
from vla_mini.parts import ActingDefaults
from vla_mini.types import Features, Observation, Prefix


@runtime_checkable
class ActingPolicy(Protocol):
    """What acting needs of a policy: a `Policy`, or one that was exported."""

    features: Features
    horizon: int
    history: int
    acting: ActingDefaults
    device: torch.device
    takes_prefix: bool

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]: ...

    def act(
        self, observation: Observation, generator: Sequence[Generator], prefix: Prefix | None = None
    ) -> Float[Tensor, "b t a"]:
        """A chunk in raw units, without a graph. `prefix` is only given where `takes_prefix`."""


class Chunk(NamedTuple):
    """Actions that were predicted from one observation."""

    start: int  # the step of the observation, and of the first action
    ready: int  # the step from which on it can be executed
    actions: np.ndarray  # (t, a), raw units


class Controller:
    """Acts in one environment, or on one robot, by the chunks of a policy.

    - policy: in eval mode
    - execute: actions of a chunk that are executed before the next chunk is predicted; None: as saved with the policy
    - ensemble: "none": each action is the newest chunk's; a number: the mean of all chunks that reach that far, weighted by
      exp(-ensemble * index) from the oldest to the newest (ACT, Zhao et al. 2023); None: as saved with the policy
    - delay: a chunk can be used so many steps after its observation; until then the previous chunk is executed
    - rtc: real-time chunking (Black et al. 2025): a new chunk continues the one before it. What will be executed until it is
      there is fixed, and what follows is drawn toward it, less and less
    - seed: of the noise that sampling heads start from. Each controller has a generator of its own, so that its actions do not
      depend on how many controllers act together

    Raises ValueError where `execute` is not between 1 and the policy's horizon, where no two chunks of an ensemble overlap, for
    a delay that is longer than `execute` or that a chunk does not last over, and for rtc with a head that takes no prefix.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        *,
        execute: int | None = None,
        ensemble: float | Literal["none"] | None = None,
        delay: int = 0,
        rtc: bool = False,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.policy = policy
        self.execute = policy.acting.execute if execute is None else execute
        chosen = policy.acting.ensemble if ensemble is None else ensemble
        self.ensemble = None if chosen == "none" else chosen
        if not 1 <= self.execute <= policy.horizon:
            raise ValueError(f"execute={self.execute} is not between 1 and {policy.horizon}, the number of actions in a chunk")
        if self.ensemble is not None and self.execute == policy.horizon:
            raise ValueError(f"ensemble={self.ensemble}: with execute={self.execute}, all of a chunk, no two chunks overlap")
        if not 0 <= delay <= min(self.execute, policy.horizon - self.execute):
            most = min(self.execute, policy.horizon - self.execute)
            raise ValueError(
                f"delay={delay} is not between 0 and {most}, with execute={self.execute} of a chunk's {policy.horizon} actions"
            )
        if rtc and not policy.takes_prefix:
            raise ValueError("rtc=true is for policies with a head that denoises, flow or diffusion, that are not exported")
        if rtc and self.ensemble is not None:
            raise ValueError(f"rtc=true and ensemble={self.ensemble}: give one, since both join chunks")
        self.delay, self.rtc = delay, rtc
        self._generator = Generator(policy.device)
        self.reset(seed)

    def reset(self, seed: int | Sequence[int] | None = None) -> None:
        """Start an episode: forget observations and chunks. Without a seed the generator continues."""
        if seed is not None:
            self._generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self._frames: deque[Mapping[str, Any]] = deque(maxlen=self.policy.history)  # the newest first
        self._chunks: list[Chunk] = []  # the oldest first
        self._step = 0

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action, float32 (a,) in raw units.

        - observation: {"images": {camera: uint8 (h, w, 3)}, "state": (s,), "instruction": str}

        Raises ValueError for an observation that does not fit the policy, FloatingPointError for actions that are not finite.
        """
        return step_together([self], [observation])[0]

    def observe(self, observation: Mapping[str, Any]) -> Observation:
        """Remember the observation; with those before it, as far as the policy's history reaches, as a batch of one."""
        self._remember(observation)
        newest, *past = self._frames
        return observe(self.policy, [newest], past=[past])

    def predict(self, observation: Observation) -> Float[Tensor, "1 t a"]:
        """The chunk that `step` predicts from what `observe` returned, with the next noise; differentiable, of a `Policy`."""
        return self.policy.predict_chunk(observation, [self._generator])

    def prefix(self) -> tuple[np.ndarray, np.ndarray]:
        """What the chunk that is predicted now is to begin with: actions (t, a), and their weights (t,), zero where there is no
        chunk yet."""
        horizon = self.policy.horizon
        rest = self._chunks[-1].actions[self._step - self._chunks[-1].start :] if self._chunks else np.zeros((0, 1))
        if not len(rest):
            return np.zeros((horizon, self.policy.features.action_size), np.float32), np.zeros(horizon, np.float32)
        actions = np.concatenate([rest, np.repeat(rest[-1:], horizon - len(rest), axis=0)])
        return actions, prefix_weights(horizon, delay=self.delay, overlap=len(rest))

    def _remember(self, observation: Mapping[str, Any]) -> None:
        # Environments and cameras may write the next image into the memory of this one.
        self._frames.appendleft(copy.deepcopy(observation) if self.policy.history > 1 else observation)

    def chunk(self) -> np.ndarray:
        """The newest chunk, float32 (t, a) in raw units. FloatingPointError where it is not finite."""
        chunk = self._chunks[-1].actions
        if not np.isfinite(chunk).all():
            raise FloatingPointError("the policy's actions are not finite: are its weights?")
        return chunk

    def next_action(self) -> np.ndarray:
        """The action of this step, float32 (a,), from the chunks so far. FloatingPointError where the newest is not finite."""
        self.chunk()
        self._chunks = [chunk for chunk in self._chunks if self._step < chunk.start + len(chunk.actions)]
        actions = [chunk.actions[self._step - chunk.start] for chunk in self._chunks if chunk.ready <= self._step]
        self._step += 1
        if self.ensemble is None:
            return actions[-1]
        return np.average(actions, axis=0, weights=np.exp(-self.ensemble * np.arange(len(actions)))).astype(np.float32)


class AsyncController(Controller):
    """Acts in real time: the next chunk is computed in a thread of its own while the present one is executed, and used as soon
    as it is there. `step` waits for the policy only where no action is left, as at an episode's start.

    - delay: how many steps that is expected to take; later the most that the last ten chunks took

    Raises what `Controller` raises; an error of the policy is raised by the step that takes its chunk.
    """

    def __init__(self, policy: ActingPolicy, *, delay: int = 1, **settings: Any) -> None:
        self._thread, self._pending = ThreadPoolExecutor(1, thread_name_prefix="policy"), None
        self._delays: deque[int] = deque([delay], maxlen=10)
        super().__init__(policy, delay=delay, **settings)

    def reset(self, seed: int | Sequence[int] | None = None) -> None:
        if self._pending is not None:
            wait([self._pending[1]])
            self._pending = None
        super().reset(seed)

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        self._remember(observation)
        self._take(block=False)
        if self._pending is None and (not self._chunks or self._step >= self._chunks[-1].start + self.execute):
            newest, *past = self._frames
            inputs = observe(self.policy, [newest], past=[past])  # here, where what is wrong with them is raised
            options = {"prefix": joined_prefix([self], like=inputs.state)} if self.rtc and self._chunks else {}
            self._pending = self._step, self._thread.submit(self.policy.act, inputs, [self._generator], **options)
        if not any(self._step < chunk.start + len(chunk.actions) for chunk in self._chunks):
            self._take(block=True)
        return self.next_action()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _take(self, *, block: bool) -> None:
        """Take the chunk that was asked for, if it is there, or once it is."""
        if self._pending is not None and (block or self._pending[1].done()):
            (start, future), self._pending = self._pending, None
            self._delays.append(self._step - start)
            self.delay = max(self._delays)
            self._chunks.append(Chunk(start, self._step, future.result().to("cpu", torch.float32)[0].numpy()))


def step_together(controllers: Sequence[Controller], observations: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """`Controller.step` of several controllers of one policy, which is called once for all whose chunk is used up."""
    predict_together(controllers, observations)
    return [controller.next_action() for controller in controllers]


def predict_together(controllers: Sequence[Controller], observations: Sequence[Mapping[str, Any]]) -> None:
    """Let each controller remember its observation, and give a new chunk to all whose chunk is used up."""
    for controller, observation in zip(controllers, observations, strict=True):
        controller._remember(observation)
    if due := [controller for controller in controllers if controller._step % controller.execute == 0]:
        frames = [controller._frames for controller in due]
        policy = due[0].policy
        observation = observe(policy, [newest for newest, *_ in frames], past=[past for _, *past in frames])
        options = {"prefix": joined_prefix(due, like=observation.state)} if due[0].rtc else {}
        chunks = policy.act(observation, [controller._generator for controller in due], **options).to("cpu", torch.float32)
        for controller, actions in zip(due, chunks.numpy(), strict=True):
            delay = controller.delay if controller._chunks else 0  # an episode begins once there is a chunk
            controller._chunks.append(Chunk(controller._step, controller._step + delay, actions))


def joined_prefix(controllers: Sequence[Controller], *, like: Tensor) -> Prefix:
    """What their next chunks are to begin with, on the device and of the dtype of `like`."""
    parts = zip(*(controller.prefix() for controller in controllers), strict=True)
    return Prefix(*(torch.from_numpy(np.stack(part)).to(like) for part in parts))


def prefix_weights(horizon: int, *, delay: int, overlap: int) -> Float[np.ndarray, " t"]:
    """How far each action of a chunk is fixed (RTC, equation 5): 1 for those that are executed before it is there, falling to 0
    where the chunk before it ends, after `overlap` actions."""
    index, delay = np.arange(horizon), min(delay, overlap)
    share = np.clip((overlap - index) / (overlap - delay + 1), 0, 1)
    weights = np.where(index < delay, 1, share * np.expm1(share) / np.expm1(1))
    return weights.astype(np.float32)


def observe(
    policy: ActingPolicy,
    observations: Sequence[Mapping[str, Any]],
    *,
    past: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> Observation:
    """Makes b observations {"images", "state", "instruction"} one `Observation` on the policy's device.

    - past: those before each of them, the newest first, for a policy with a history. Where there are fewer than it takes, the
      earliest is repeated.

    Images of another size are resized as in training. Raises ValueError for no observation, a missing camera, an image that is
    not uint8 (h, w, 3), or a state of another length or that is not finite.
    """
    if isinstance(observations, Mapping) or not observations:
        raise ValueError("observe takes a list of at least one observation, as an environment's reset and step return them")
    frames = []
    for newest, before in zip(observations, past or [()] * len(observations), strict=True):
        seen = [newest, *before]
        frames += (seen + seen[-1:] * policy.history)[: policy.history]
    images = torch.from_numpy(np.stack([image for frame in frames for image in frame_images(frame, policy)]))
    images = rearrange(images, "(b k) h w c -> b k c h w", b=len(observations)).contiguous()
    states = torch.from_numpy(np.stack([frame["state"] for frame in frames]).astype(np.float32))
    states = rearrange(states, "(b age) s -> b (age s)", b=len(observations))
    tokens, mask = policy.tokenize([observation["instruction"] for observation in observations])
    return Observation(*(tensor.to(policy.device) for tensor in (images, tokens, mask, states)))


def frame_images(frame: Mapping[str, Any], policy: ActingPolicy) -> list[np.ndarray]:
    """The images of an observation, by the policy's cameras and of its size. ValueError where it does not fit the policy."""
    features, images = policy.features, []
    if missing := [name for name in ("images", "state", "instruction") if name not in frame]:
        raise ValueError(f"an observation has images, a state and an instruction: {missing[0]!r} is missing")
    for camera in features.cameras:
        if camera not in frame["images"]:
            raise ValueError(f"camera {camera!r} is missing: the images are from {', '.join(sorted(frame['images']))}")
        image = frame["images"][camera]
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
            raise ValueError(
                f"the image of {camera!r} is {image.dtype} {image.shape}, but the policy takes uint8 (height, width, 3)"
            )
        images.append(resize(image, features.image_size, policy.acting.resize))
    if np.shape(frame["state"]) != (features.state_size,):
        raise ValueError(f"state is of shape {np.shape(frame['state'])}, but the policy takes {', '.join(features.state)}")
    if not np.isfinite(frame["state"]).all():
        raise ValueError(f"the state is not finite: {dict(zip(features.state, frame['state'], strict=True))}")
    return images
