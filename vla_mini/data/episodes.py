"""The episodes of a dataset -> which of them are held out, which frames of each are read, and the action of each of these."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from vla_mini.data.lerobot.metadata import Metadata
from vla_mini.utils.errors import as_value_error, show

# Of a dataset without a validation split, this share of the episodes is held out.
VALIDATION_SHARE = 0.05

Subsampling = Literal["last", "mean", "sum"]


def split(
    metadata: Metadata, task_of_frame: np.ndarray, exclude: Collection[int] = ()
) -> tuple[list[int], dict[str, tuple[int, int]], list[str]]:
    """The order of the episodes that are used, those to train on first; the ranges of both splits; and notes.

    Where the dataset names no validation split, the last episode of each task that has two is held out, and then the last
    ones, until VALIDATION_SHARE of them are. Those to `exclude`, by the dataset's numbers, are left out.
    """
    number, notes = len(metadata.episodes), []
    numbers = [episode.index for episode in metadata.episodes]
    if unknown := set(exclude) - set(numbers):
        known = ", ".join(map(str, numbers)) if len(numbers) <= 20 else f"{len(numbers)}, {min(numbers)} to {max(numbers)}"
        raise ValueError(f"data.exclude_episodes: {metadata.root} has no episode {min(unknown)}; it has {known}")
    excluded = {place for place, episode in enumerate(numbers) if episode in exclude}
    with as_value_error(
        f"{metadata.info}: splits={show(metadata.splits)} cannot be read", ValueError, AttributeError, TypeError
    ):
        spans = {name: tuple(map(int, span.split(":"))) for name, span in metadata.splits.items()}
        first, last = spans.get("train", (0, number))
        validation = spans.get("validation", spans.get("val"))
        if validation is not None:
            validation = range(*validation)
    lengths = np.array([episode.length for episode in metadata.episodes])
    found = {"total_episodes": number, "total_frames": int(lengths.sum())}
    for name, announced in metadata.announced.items():
        if announced != found[name]:
            notes.append(f"its info.json says {name}={announced:g}, and there are {found[name]}")
    if validation is None and last > number > first >= 0:
        notes.append(f"its info.json has {last - first} training episodes, and there are {number}")
        last = number
    elif validation is None and 0 <= last - first < number:
        notes.append(f"of {number} episodes {last - first} are in the split 'train' of its info.json: the others are not used")
    if validation is None:
        task = task_of_frame[np.cumsum(lengths) - lengths].tolist()
        used = [e for e in range(first, last) if e not in excluded]
        last_of, counts = {task[e]: e for e in used}, Counter(task[e] for e in used)
        held_out = {e for each, e in last_of.items() if counts[each] > 1}
        needed = max(1, round(VALIDATION_SHARE * len(used)))
        rest = (e for e in reversed(used) if e not in held_out)
        held_out |= set(itertools.islice(rest, max(0, needed - len(held_out))))
        training, held_out = [e for e in used if e not in held_out], sorted(held_out)
    else:
        training, held_out = ([e for e in each if e not in excluded] for each in (range(first, last), validation))
    used = [*training, *held_out]
    if number - len(excluded) == 1:
        raise ValueError(f"{metadata.info}: there is one episode alone, and validation needs another")
    if not training or not held_out or not {*used} <= {*range(number)}:
        left = f", of which data.exclude_episodes leaves out {len(excluded)}" if excluded else ""
        raise ValueError(f"{metadata.info}: splits={show(metadata.splits)} are not ranges within its {number} episodes{left}")
    rest = sorted({*range(number)} - {*used, *excluded})
    boundary = len(training)
    return [*used, *rest], {"train": (0, boundary), "validation": (boundary, len(used))}, notes


def frame_stride(metadata: Metadata, fps: int | float | None) -> int:
    """The distance between frames that are read."""
    stride = 1 if fps is None else metadata.fps / fps
    if stride < 1 or abs(stride - round(stride)) > 1e-6:
        possible = ", ".join(f"{metadata.fps / divisor:g}" for divisor in (1, 2, 3, 5, 6))
        recorded = f"{metadata.info} has {metadata.fps:g} frames a second"
        raise ValueError(f"data.fps={fps:g}: {recorded}; all of them, every second, third ... one are {possible} ...")
    return round(stride)


def kept_frames(metadata: Metadata, order: Sequence[int], stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The frames that are read, (n,) numbers within the dataset; and the starts and ends of the episodes among them."""
    lengths = np.array([episode.length for episode in metadata.episodes])
    first = np.cumsum(lengths) - lengths
    kept = [np.arange(first[number], first[number] + lengths[number], stride) for number in order]
    ends = np.cumsum([len(each) for each in kept])
    return np.concatenate(kept), ends - [len(each) for each in kept], ends


def subsample(actions: np.ndarray, metadata: Metadata, kept: np.ndarray, stride: int, how: Subsampling) -> np.ndarray:
    """The action from each kept frame to the next one, (n, a)."""
    if stride == 1:
        return actions[kept]
    ends = np.cumsum([episode.length for episode in metadata.episodes])
    stop = np.minimum(kept + stride, ends[np.searchsorted(ends, kept, side="right")])
    if how == "last":
        return actions[stop - 1]
    sums = np.stack([actions[start:end].sum(axis=0) for start, end in zip(kept, stop, strict=True)])
    return sums if how == "sum" else sums / (stop - kept)[:, None].astype(np.float32)
