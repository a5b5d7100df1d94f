"""Several datasets with the same features -> Demonstrations of all, whose training frames are drawn by weight.

Episodes to train on come first, those of each dataset together; then all validation episodes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_mini.data.frames import Frames, LazyFrames, is_decoded
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.utils.errors import show


def read_demonstrations(*, root: str | None = None, roots: Mapping[str, float] | None = None, **options: Any) -> Demonstrations:
    """The dataset at `root`, or a mixture of those at `roots`, each with a weight; `options` are those of `read_dataset`."""
    if not roots:
        assert root is not None
        return read_dataset(root, **options)
    return mix({path: read_dataset(path, **options) for path in roots}, roots)


def mix(datasets: Mapping[str, Demonstrations], weights: Mapping[str, float]) -> Demonstrations:
    """Datasets by name -> one. Statistics are those of all training frames together, each once.

    Raises ValueError where the features of two datasets differ.
    """
    (first, model), *others = datasets.items()
    for name, other in others:
        for field, ours, theirs in zip(model.features._fields, model.features, other.features, strict=True):
            if ours != theirs:
                hint = "; give data.image_size=[height,width]" if field == "image_size" else ""
                raise ValueError(f"data.roots: {field} is {show(ours)} in {first}, and {show(theirs)} in {name}{hint}")
    each = list(datasets.values())
    tasks = tuple(dict.fromkeys(task for data in each for task in data.tasks))
    parts = _Parts(each)
    starts, ends = parts.episodes()
    states, actions = parts.rows([data.states for data in each]), parts.rows([data.actions for data in each])
    task_index = parts.rows([np.array([tasks.index(task) for task in data.tasks])[data.task_index] for data in each])
    training = sum(data.splits["train"][1] for data in each)
    held_out = sum(data.splits["validation"][1] - data.splits["validation"][0] for data in each)
    described = [(data.fingerprint, weights[name]) for name, data in datasets.items()]
    frames = sum(parts.training_frames)
    return Demonstrations(
        features=model.features,
        tasks=tasks,
        episode_index=parts.per_episode([data.episode_index for data in each]),
        episode_starts=starts,
        episode_ends=ends,
        splits={"train": (0, training), "validation": (training, training + held_out)},
        states=states,
        actions=actions,
        task_index=task_index,
        frames=JoinedFrames([data.frames for data in each], parts.spans),
        statistics=training_statistics(states[:frames], actions[:frames]),
        fingerprint=hashlib.sha256(repr(described).encode()).hexdigest(),
        notes=tuple(f"{name}: {note}" for name, data in datasets.items() for note in data.notes),
        mixture=tuple(zip(parts.training_frames, (float(weights[name]) for name in datasets), strict=True)),
    )


class _Parts:
    """Which episodes and frames of each dataset come where: first all to train on, then all that are held out."""

    def __init__(self, datasets: Sequence[Demonstrations]) -> None:
        self._datasets = datasets
        self._episodes = [(i, *data.splits[split]) for split in ("train", "validation") for i, data in enumerate(datasets)]
        # (dataset, first frame, last frame exclusive)
        self.spans = [
            (i, int(datasets[i].episode_starts[first]), int(datasets[i].episode_ends[last - 1]))
            for i, first, last in self._episodes
        ]
        self.training_frames = [last - first for _, first, last in self.spans[: len(datasets)]]

    def rows(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([arrays[i][first:last] for i, first, last in self.spans])

    def per_episode(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([arrays[i][first:last] for i, first, last in self._episodes])

    def episodes(self) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.per_episode([data.episode_ends - data.episode_starts for data in self._datasets])
        ends = np.cumsum(lengths)
        return ends - lengths, ends


class JoinedFrames(LazyFrames):
    """The frames of several datasets: of spans (dataset, first frame, last frame exclusive), one after another."""

    def __init__(self, frames: Sequence[Frames], spans: Sequence[tuple[int, int, int]]) -> None:
        self._frames, self._spans = list(frames), list(spans)
        self._ends = np.cumsum([last - first for _, first, last in spans])
        self.shape = (int(self._ends[-1]), *frames[0].shape[1:])
        self.decoded = all(is_decoded(each) for each in frames)

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        assert axis == 0
        found = np.empty((*np.shape(rows), *self.shape[1:]), np.uint8)
        place = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(place).tolist():
            dataset, first, last = self._spans[number]
            chosen = place == number
            within = rows[chosen] - (self._ends[number] - (last - first)) + first
            found[chosen] = self._frames[dataset].take(within, axis=0)
        return found
