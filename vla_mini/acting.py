"""Observations of an environment or a robot -> the next action: the one way in which a policy acts in closed loop.

{"images", "state", "instruction"} ──observe──▶ Observation "b ..." ──policy──▶ chunk "b t a" ──Controller──▶ action (a,)
"""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Generator, Tensor

from vla_mini.data.images import resize
from vla_mini.policy import Policy
from vla_mini.types import Observation


class Controller:
    """Acts in one environment, or on one robot, by the chunks of a policy.

    - policy: in eval mode
    - execute: actions of a chunk that are executed before the next chunk is predicted; None: as saved with the policy
    - ensemble: "none": each action is the newest chunk's; a number: the mean of all chunks that reach that far, weighted by
      exp(-ensemble * index) from the oldest to the newest (ACT, Zhao et al. 2023); None: as saved with the policy
    - seed: of the noise that sampling heads start from. Each controller has a generator of its own, so that its actions do not
      depend on how many controllers act together

    Raises ValueError where `execute` is not between 1 and the policy's horizon, or where no two chunks of an ensemble overlap.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        execute: int | None = None,
        ensemble: float | Literal["none"] | None = None,
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
        self._generator = Generator(policy.device)
        self.reset(seed)

    def reset(self, seed: int | Sequence[int] | None = None) -> None:
        """Start an episode: forget observations and chunks. Without a seed the generator continues."""
        if seed is not None:
            self._generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self._frames: deque[Mapping[str, Any]] = deque(maxlen=self.policy.history)  # the newest first
        self._chunks: list[tuple[int, np.ndarray]] = []  # the step of the first action, and the chunk (t, a); the oldest first
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
        """The chunk that `step` predicts from what `observe` returned, with the next noise; differentiable."""
        return self.policy.predict_chunk(observation, [self._generator])

    def _remember(self, observation: Mapping[str, Any]) -> None:
        # Environments and cameras may write the next image into the memory of this one.
        self._frames.appendleft(copy.deepcopy(observation) if self.policy.history > 1 else observation)

    def chunk(self) -> np.ndarray:
        """The newest chunk, float32 (t, a) in raw units. FloatingPointError where it is not finite."""
        chunk = self._chunks[-1][1]
        if not np.isfinite(chunk).all():
            raise FloatingPointError("the policy's actions are not finite: are its weights?")
        return chunk

    def next_action(self) -> np.ndarray:
        """The action of this step, float32 (a,), from the chunks so far. FloatingPointError where the newest is not finite."""
        self.chunk()
        self._chunks = [(start, chunk) for start, chunk in self._chunks if self._step < start + len(chunk)]
        actions = [chunk[self._step - start] for start, chunk in self._chunks]
        self._step += 1
        if self.ensemble is None:
            return actions[-1]
        return np.average(actions, axis=0, weights=np.exp(-self.ensemble * np.arange(len(actions)))).astype(np.float32)


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
        observation = observe(due[0].policy, [newest for newest, *_ in frames], past=[past for _, *past in frames])
        chunks = due[0].policy.act(observation, [controller._generator for controller in due]).to("cpu", torch.float32)
        for controller, chunk in zip(due, chunks.numpy(), strict=True):
            controller._chunks.append((controller._step, chunk))


def observe(
    policy: Policy, observations: Sequence[Mapping[str, Any]], *, past: Sequence[Sequence[Mapping[str, Any]]] | None = None
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


def frame_images(frame: Mapping[str, Any], policy: Policy) -> list[np.ndarray]:
    """The images of an observation, by the policy's cameras and of its size. ValueError where it does not fit the policy."""
    features, images = policy.features, []
    if missing := [name for name in ("images", "state", "instruction") if name not in frame]:
        raise ValueError(f"an observation has images, a state and an instruction: {missing[0]!r} is missing")
    for camera in features.cameras:
        if camera not in frame["images"]:
            raise ValueError(f"camera {camera!r} is missing: the images are from {', '.join(sorted(frame['images']))}")
        image = frame["images"][camera]
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"the image of {camera!r} is {image.dtype} {image.shape}, but the policy takes uint8 (height, width, 3)"
            )
        images.append(resize(image, features.image_size, policy.acting.resize))
    if np.shape(frame["state"]) != (features.state_size,):
        raise ValueError(f"state is of shape {np.shape(frame['state'])}, but the policy takes {', '.join(features.state)}")
    if not np.isfinite(frame["state"]).all():
        raise ValueError(f"the state is not finite: {dict(zip(features.state, frame['state'], strict=True))}")
    return images
