"""Demonstrations -> batches: what the robot saw, and the chunk of actions (b, t, a) that the expert took from there on.

`ActionWindows` has a sample for each frame of a split and gathers a whole batch at once: no Python work per sample, no
copy beyond the gather. Windows never cross an episode's bounds: past its end the last action repeats and `is_pad` is True,
before its start the first frame repeats.
`WindowBatches` goes over them in an order that depends on (seed, epoch) alone, and can go on where it stopped.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int64
from torch import Tensor

from vla_mini.data.reader import Demonstrations
from vla_mini.types import Batch, Observation

Tokenize = Callable[[list[str]], tuple[Int64[Tensor, "n l"], Bool[Tensor, "n l"]]]


class Keyframe(NamedTuple):
    """What to remember of the frame in which the gripper next closes: the state features `state`.

    It closes where the action `closes` rises above `threshold`.
    """

    state: tuple[str, ...]
    closes: str
    threshold: float = 0.0


class ActionWindows:
    """A map-style dataset of a split's frames; `windows.__getitems__(indices)` is a Batch.

    - `horizon`: how many actions follow each frame (t).
    - `history`: how many frames are seen and felt, the newest first: images "b (age k) c h w", state "b (age s)".
    - `tokenize`: n instructions -> tokens int64 (n, l), mask bool (n, l); called once, for the distinct tasks.
    - `keyframe`: what the keyframe is made of; None leaves it empty (g = 0).
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        split: str,
        horizon: int,
        tokenize: Tokenize,
        history: int = 1,
        keyframe: Keyframe | None = None,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon={horizon} must be at least 1")
        check_history(demonstrations, history)
        first, last = demonstrations.splits[split]
        self._demonstrations = demonstrations
        self._horizon, self._ages = np.arange(horizon), np.arange(history)
        self._first = int(demonstrations.episode_starts[first])
        self._length = int(demonstrations.episode_ends[last - 1]) - self._first
        lengths = demonstrations.episode_ends - demonstrations.episode_starts
        if horizon > lengths.max():
            raise ValueError(f"horizon={horizon} is longer than the longest episode, which has {lengths.max()} frames")
        self._starts = np.repeat(demonstrations.episode_starts, lengths)  # of each frame's episode
        self._ends = np.repeat(demonstrations.episode_ends, lengths)
        tokens, mask = tokenize(list(demonstrations.tasks))
        self._tokens, self._token_mask = tokens.numpy(), mask.numpy()
        self._keyframes, self._has_keyframe = _keyframes(demonstrations, keyframe, self._ends)

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        data, frames = self._demonstrations, self._first + np.asarray(indices)
        starts, ends = self._starts[frames, None], self._ends[frames, None]
        seen = np.maximum(frames[:, None] - self._ages, starts)
        steps = frames[:, None] + self._horizon
        tasks = data.task_index[frames]
        return Batch(
            observation=Observation(
                images=torch.from_numpy(rearrange(data.frames.take(seen, axis=0), "b age k c h w -> b (age k) c h w")),
                tokens=torch.from_numpy(self._tokens[tasks]),
                token_mask=torch.from_numpy(self._token_mask[tasks]),
                state=torch.from_numpy(rearrange(data.states[seen], "b age s -> b (age s)")),
            ),
            actions=torch.from_numpy(data.actions[np.minimum(steps, ends - 1)]),
            is_pad=torch.from_numpy(steps >= ends),
            keyframe=torch.from_numpy(self._keyframes[frames]),
            has_keyframe=torch.from_numpy(self._has_keyframe[frames]),
        )


class EpochOrder:
    """The order of an epoch: a permutation drawn from (seed, epoch) alone. Without a seed, as it is."""

    def __init__(self, length: int, *, seed: int | None) -> None:
        self.epoch = 0
        self.shuffles = seed is not None
        self._length, self._seed = length, seed

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch, as on any sampler."""
        self.epoch = epoch

    def draw(self) -> np.ndarray:
        if not self.shuffles:
            return np.arange(self._length)
        return np.random.default_rng([self._seed, self.epoch]).permutation(self._length)


class WindowBatches:
    """The batches of an epoch, for Lightning and bare loops alike (which say `batches.sampler.set_epoch(epoch)`).

    With a `seed` the order is random and a last, smaller batch is dropped; without one it is in order and complete. Of
    `world_size` processes each takes its own part, of `batch_size` samples, of every global batch (a rest of fewer frames than
    processes is dropped). `state_dict` says how far it came; after `load_state_dict` the next iteration goes on there, with the
    very batches that would have followed.
    """

    def __init__(
        self, windows: ActionWindows, *, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.sampler = EpochOrder(len(windows), seed=seed)
        self.batch_sampler = None  # Lightning looks for one beside a sampler
        self._windows = windows
        self._identity = {"seed": seed, "batch_size": batch_size, "world_size": world_size, "windows": len(windows)}
        self._rank, self._world_size = rank, world_size
        self._stride = batch_size * world_size
        self._position = (0, 0)  # epoch, and how many of its batches were handed out
        self._resuming = False
        if batch_size < 1 or len(self) == 0:
            each = f" for each of {world_size} processes" if world_size > 1 else ""
            raise ValueError(f"batch_size={batch_size}{each}: the split has {len(windows)} frames")

    def __len__(self) -> int:
        whole, rest = divmod(len(self._windows), self._stride)
        return whole + (rest >= self._world_size and not self.sampler.shuffles)

    def __iter__(self) -> Iterator[Batch]:
        epoch, order = self.sampler.epoch, self.sampler.draw()
        first = self._position[1] if self._resuming and self._position[0] == epoch else 0
        self._resuming = False
        for number in range(first, len(self)):
            self._position = (epoch, number + 1)  # before the batch is out: a checkpoint of its step counts it
            together = order[number * self._stride : (number + 1) * self._stride]
            yield self._windows.__getitems__(together[self._rank :: self._world_size])

    def state_dict(self) -> dict[str, Any]:
        epoch, given = self.sampler.epoch, self._position[1]
        return {"epoch": epoch, "batches": given if self._position[0] == epoch else 0, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises ValueError where seed, batch size or data differ: no order fits."""
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(f"cannot resume within an epoch: {name} was {state[name]} and is {value} now")
        self.sampler.set_epoch(state["epoch"])
        self._position, self._resuming = (state["epoch"], state["batches"]), True


def sample_chunks(data: Demonstrations, *, horizon: int, most: int = 4096) -> np.ndarray:
    """Chunks of the training split's actions, (n, horizon, a), evenly spaced, as `ActionWindows` gives them out."""
    first, last = data.splits["train"]
    ends = np.repeat(data.episode_ends, data.episode_ends - data.episode_starts)
    start, end = data.episode_starts[first], data.episode_ends[last - 1]
    frames = np.linspace(start, end - 1, min(most, end - start)).astype(int)
    return data.actions[np.minimum(frames[:, None] + np.arange(horizon), ends[frames, None] - 1)]


def check_history(data: Demonstrations, history: int) -> None:
    """ValueError for a history of no frames, or of more than any episode has."""
    longest = int((data.episode_ends - data.episode_starts).max())
    if not 1 <= history <= longest:
        raise ValueError(f"history={history}: the longest episode has {longest} frames, so 1 to {longest} can be seen")


def _keyframes(data: Demonstrations, keyframe: Keyframe | None, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each frame, the chosen state (n, g) when the gripper next closes, and whether it does (n,)."""
    num_frames = len(ends)
    if keyframe is None:
        return np.zeros((num_frames, 0), np.float32), np.zeros(num_frames, bool)
    state = [_index(name, data.features.state, "keyframe.state") for name in keyframe.state]
    closed = data.actions[:, _index(keyframe.closes, data.features.action, "keyframe.closes")] > keyframe.threshold
    closes = closed & ~np.roll(closed, 1)
    closes[data.episode_starts] = closed[data.episode_starts]
    # Walking backwards, the smallest index seen so far is the next closing frame.
    following = np.minimum.accumulate(np.where(closes, np.arange(num_frames), num_frames)[::-1])[::-1]
    has_keyframe = following < ends
    return data.states[np.where(has_keyframe, following, 0)][:, state] * has_keyframe[:, None], has_keyframe


def _index(name: str, names: tuple[str, ...], key: str) -> int:
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{key}: {name!r} is not one of {', '.join(names)}{hint}")
    return names.index(name)
