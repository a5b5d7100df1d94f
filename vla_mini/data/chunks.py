"""Demonstrations -> batches: the observation of a frame, and the chunk of actions (b, t, a) that were recorded from there on.

`ActionChunkDataset` has a sample for each frame of a split and gathers a whole batch at once: no Python work per sample, no
copy beyond the gather. Samples never cross an episode's bounds: past its end the last action repeats and `is_pad` is True,
before its start the first frame repeats.
`BatchLoader` yields the batches of an epoch in an order that depends on (seed, epoch) alone, and can resume within an epoch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from vla_mini.data.frames import is_decoded
from vla_mini.data.reader import Demonstrations
from vla_mini.data.statistics import training_statistics
from vla_mini.types import Batch, Observation
from vla_mini.utils.features import Statistics

RUN_LENGTH = 8

Tokenize = Callable[[list[str]], tuple[Int64[Tensor, "n l"], Bool[Tensor, "n l"]]]


class ActionChunkDataset:
    """A map-style dataset of a split's frames; `dataset.__getitems__(indices)` is a Batch.

    - horizon: number of actions that follow each frame (t)
    - history: number of frames that are observed, the newest first: images "b (age k) c h w", state "b (age s)"
    - tokenize: n instructions -> tokens int64 (n, l), mask bool (n, l); called once, for the distinct tasks
    - targets: for auxiliary losses, arrays (n, ...) by name with a row for each frame of all episodes; batches hold their rows

    Raises ValueError for a horizon or a history that is longer than every episode.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        split: str,
        horizon: int,
        tokenize: Tokenize,
        history: int = 1,
        targets: Mapping[str, np.ndarray] = {},
    ) -> None:
        assert all(len(rows) == len(demonstrations.states) for rows in targets.values())
        check_lengths(demonstrations, history=history, horizon=horizon)
        first, last = demonstrations.splits[split]
        self._demonstrations, self._targets = demonstrations, dict(targets)
        self._steps, self._ages = np.arange(horizon), np.arange(history)
        self._first = int(demonstrations.episode_starts[first])
        self._length = int(demonstrations.episode_ends[last - 1]) - self._first
        tokens, mask = tokenize(list(demonstrations.tasks))
        self._tokens, self._token_mask = tokens.numpy(), mask.numpy()

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        data, frames = self._demonstrations, self._first + np.asarray(indices)
        episodes = np.searchsorted(data.episode_ends, frames, side="right")
        observed = np.maximum(frames[:, None] - self._ages, data.episode_starts[episodes, None])
        ends = data.episode_ends[episodes, None]
        steps = frames[:, None] + self._steps
        tasks = data.task_index[frames]
        return Batch(
            observation=Observation(
                images=torch.from_numpy(rearrange(data.frames.take(observed, axis=0), "b age k c h w -> b (age k) c h w")),
                tokens=torch.from_numpy(self._tokens[tasks]),
                token_mask=torch.from_numpy(self._token_mask[tasks]),
                state=torch.from_numpy(rearrange(data.states[observed], "b age s -> b (age s)")),
            ),
            actions=torch.from_numpy(data.actions[np.minimum(steps, ends - 1)]),
            is_pad=torch.from_numpy(steps >= ends),
            targets={name: torch.from_numpy(rows[frames]) for name, rows in self._targets.items()},
        )

    @property
    def run_length(self) -> int:
        """How many frames that follow one another are drawn together: several where they are decoded when they are needed,
        since finding a frame in a video costs more than decoding it."""
        return 1 if is_decoded(self._demonstrations.frames) else RUN_LENGTH

    def order(self, rng: np.random.Generator | None, run_length: int = 1) -> np.ndarray:
        """The samples of an epoch, (n,): runs of `run_length` in a random order drawn from `rng`, or without one as they are.

        Each dataset of a mixture has its share of them: its frames come as often as its weight asks for, in turns.
        """
        if rng is None:
            return np.arange(self._length)
        mixture = self._demonstrations.mixture if self._first == 0 else ()
        if not mixture:
            return _shuffled(rng, 0, self._length, run_length)
        counts = np.array([count for count, _ in mixture])
        shares = np.array([weight for _, weight in mixture]) / sum(weight for _, weight in mixture)
        drawn = np.diff(np.rint(np.cumsum([0, *shares]) * self._length).astype(int))
        parts = []
        for start, count, number in zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), drawn.tolist(), strict=True):
            rounds = [_shuffled(rng, start, count, run_length) for _ in range(-(-number // count))]
            parts.append(np.concatenate(rounds)[:number] if rounds else np.array([], int))
        order = np.concatenate(parts)
        runs = rng.permutation(-(-len(order) // run_length))
        return np.concatenate([order[run * run_length : (run + 1) * run_length] for run in runs])


def _shuffled(rng: np.random.Generator, start: int, count: int, run_length: int) -> np.ndarray:
    """`count` samples from `start` on, in a random order of runs."""
    if run_length == 1:
        return start + rng.permutation(count)
    runs = rng.permutation(-(-count // run_length))
    order = (runs[:, None] * run_length + np.arange(run_length)).ravel()
    return start + order[order < count]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _from_workers(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches. A ValueError of a worker, whose message torch makes a whole traceback, has its own message again."""
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).rpartition("ValueError: ")[2].strip()) from error


class EpochSampler:
    """Holds the number of the epoch, which Lightning sets at its start, as on any sampler."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class BatchLoader:
    """The batches of an epoch, for Lightning and for loops of one's own, which call `loader.sampler.set_epoch(epoch)`.

    - batch_size: samples of one process
    - seed: with one, the order is a permutation drawn from (seed, epoch) alone, and a last, smaller batch is dropped; without,
      the samples are in order and complete
    - same_every_epoch: whether all epochs have the order of the first one (Lightning's `overfit_batches`)
    - num_workers: processes that make batches ahead; 0: each is made when it is asked for. The batches are the same
    - rank, world_size: each process gets its own part of every global batch of `batch_size * world_size` samples; a rest of
      fewer samples than processes is dropped

    `state_dict` holds the position within the epoch. After `load_state_dict` the next iteration yields the very batches that
    would have followed, also where more or fewer processes divide them. Raises ValueError for a batch size that does not fit
    the dataset.
    """

    def __init__(
        self,
        dataset: ActionChunkDataset,
        *,
        batch_size: int,
        seed: int | None = None,
        same_every_epoch: bool = False,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sampler = EpochSampler()
        self.batch_sampler = None  # Lightning looks for one beside a sampler.
        self._dataset, self._seed, self._num_workers = dataset, seed, num_workers
        self._same_every_epoch = same_every_epoch
        self._rank, self._world_size = rank, world_size
        self._identity = {"seed": seed, "batch_size": batch_size * world_size, "frames": len(dataset)}
        self._run_length = dataset.run_length
        self._stride = batch_size * world_size
        self._position = (0, 0)  # the epoch, and how many of its batches were yielded
        self._resuming = False
        if batch_size < 1 or len(self) == 0:
            each = f" for each of {world_size} processes" if world_size > 1 else ""
            raise ValueError(f"batch_size={batch_size}{each}: the split has {len(dataset)} frames")

    def __len__(self) -> int:
        complete, rest = divmod(len(self._dataset), self._stride)
        return complete + (rest >= self._world_size and self._seed is None)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.sampler.epoch
        first = self._position[1] if self._resuming and self._position[0] == epoch else 0
        self._resuming = False
        for number, batch in enumerate(self._batches(epoch, first), start=first):
            self._position = (epoch, number + 1)  # set before the batch is used: a checkpoint of its step counts it
            yield batch

    def _batches(self, epoch: int, first: int) -> Iterable[Batch]:
        """Those of an epoch from the number `first` on, made here or by workers."""
        order = self._dataset.order(self._generator(epoch), self._run_length)
        parts = [
            order[start : start + self._stride] for start in range(first * self._stride, len(self) * self._stride, self._stride)
        ]
        samples = [part[self._rank :: self._world_size] for part in parts]
        if self._num_workers:
            return _from_workers(
                DataLoader(self._dataset, batch_sampler=samples, num_workers=self._num_workers, collate_fn=_as_it_is)
            )
        return map(self._dataset.__getitems__, samples)

    def _generator(self, epoch: int) -> np.random.Generator | None:
        return None if self._seed is None else np.random.default_rng([self._seed, 0 if self._same_every_epoch else epoch])

    def state_dict(self) -> dict[str, Any]:
        epoch, yielded = self.sampler.epoch, self._position[1]
        position = {"epoch": epoch, "batches": yielded if self._position[0] == epoch else 0}
        return position | {"run_length": self._run_length, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken, in the same order also where frames are decoded in the meantime, or no longer.
        Raises ValueError where seed, batch size or data differ: no order fits."""
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(f"cannot resume within an epoch: {name} was {state[name]} and is {value} now")
        self._run_length = state.get("run_length", 1)  # checkpoints of 0.1 have none
        self.sampler.set_epoch(state["epoch"])
        self._position, self._resuming = (state["epoch"], state["batches"]), True


def sample_chunks(
    data: Demonstrations, horizon: int, *, sources: np.ndarray | None = None, most: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of the training split's actions, (n, horizon, a), evenly spaced, padded as in `ActionChunkDataset`; and which of
    them are valid, (n, horizon).

    - sources: for each action the index of the state at the chunk's start that it is relative to, or -1
    """
    first, last = data.splits["train"]
    start, end = data.episode_starts[first], data.episode_ends[last - 1]
    frames = np.linspace(start, end - 1, min(most, end - start)).astype(int)
    ends = data.episode_ends[np.searchsorted(data.episode_ends, frames, side="right"), None]
    steps = frames[:, None] + np.arange(horizon)
    chunks = data.actions[np.minimum(steps, ends - 1)]
    if sources is not None:
        chunks = chunks - np.where(sources >= 0, data.states[frames][:, sources], 0)[:, None].astype(np.float32)
    return chunks, steps < ends


def relative_statistics(data: Demonstrations, horizon: int, sources: np.ndarray, *, most: int = 200_000) -> Statistics:
    """The statistics of the data, where those of the actions are of what is predicted: relative to the state at the start of
    their chunk. Of `most` chunks at most, evenly spaced."""
    chunks, valid = sample_chunks(data, horizon, sources=sources, most=most)
    return training_statistics(data.states[: data.episode_ends[data.splits["train"][1] - 1]], chunks[valid])


def check_lengths(data: Demonstrations, **lengths: int) -> None:
    """Raises ValueError for a horizon or a history, given by name, of no frames or of more than any episode has."""
    longest = int((data.episode_ends - data.episode_starts).max())
    for name, length in lengths.items():
        if not 1 <= length <= longest:
            raise ValueError(f"{name}={length} must be 1 to {longest}, the number of frames of the longest episode")
