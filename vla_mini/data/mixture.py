"""Several datasets with the same features -> Demonstrations of all, whose training frames are drawn by weight.

Episodes to train on come first, those of each dataset together; then all validation episodes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_mini.data.frames import Frames, LazyFrames, is_decoded
from vla_mini.data.lerobot.choice import unique_names
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.data.statistics import training_statistics
from vla_mini.utils.errors import show
from vla_mini.utils.features import Statistics, Units


def read_demonstrations(
    *,
    root: str | None = None,
    roots: Mapping[str, float] | None = None,
    statistics: Literal["together", "by_dataset"] = "together",
    **options: Any,
) -> Demonstrations:
    """The dataset at `root`, or a mixture of those at `roots`, each with a weight; `options` are those of `read_dataset`."""
    if not roots:
        assert root is not None
        return read_dataset(root, **options)
    return mix({path: read_dataset(path, **options) for path in roots}, roots, statistics=statistics)


def mix(
    datasets: Mapping[str, Demonstrations],
    weights: Mapping[str, float],
    *,
    statistics: Literal["together", "by_dataset"] = "together",
) -> Demonstrations:
    """Datasets by name -> one. Statistics are those of all training frames, each once.

    - statistics: "by_dataset": the states and actions of each are first shifted and scaled to the mean and the standard
      deviation of the first one's. `units` has the way back

    Raises ValueError where the features of two datasets differ.
    """
    (first, model), *others = datasets.items()
    for name, other in others:
        differences = [
            f"{field} is {_short(ours)} in {first}, and {_short(theirs)} in {name}"
            for field, ours, theirs in zip(model.features._fields, model.features, other.features, strict=True)
            if ours != theirs
        ]
        if differences:
            hint = "; give data.image_size=[height,width]" if model.features.image_size != other.features.image_size else ""
            raise ValueError(f"data.roots takes datasets with the same features: {'; '.join(differences)}{hint}")
    each, units = list(datasets.values()), {}
    if statistics == "by_dataset":
        names = unique_names([Path(name).name for name in datasets])
        units = {name: _units(model.statistics, data.statistics) for name, data in zip(names, each, strict=True)}
        each = [_in_units(data, of) for data, of in zip(each, units.values(), strict=True)]
    tasks = tuple(dict.fromkeys(task for data in each for task in data.tasks))
    parts = _Parts(each)
    starts, ends = parts.episodes()
    states, actions = parts.rows([data.states for data in each]), parts.rows([data.actions for data in each])
    task_index = parts.rows([np.array([tasks.index(task) for task in data.tasks])[data.task_index] for data in each])
    training = sum(data.splits["train"][1] for data in each)
    held_out = sum(data.splits["validation"][1] - data.splits["validation"][0] for data in each)
    described = [(data.fingerprint, weights[name]) for name, data in datasets.items()] + ([statistics] if units else [])
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
        units=units,
        mixture=tuple(zip(parts.training_frames, (float(weights[name]) for name in datasets), strict=True)),
    )


def _short(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _units(own: Statistics, other: Statistics) -> Units:
    """From the units of a dataset with the statistics `own` to those of another. What stands still in one is only shifted."""
    found = []
    for ours, theirs in zip(own, other, strict=True):
        scale = np.where(ours.still | theirs.still, 1, theirs.std / np.where(ours.still, 1, ours.std).astype(float))
        found += [scale, theirs.mean - scale * ours.mean]
    return Units(*(tuple(map(float, values)) for values in found))


def _in_units(data: Demonstrations, units: Units) -> Demonstrations:
    """A dataset, whose own `units` these are, in the others."""
    states = (data.states - np.array(units.state_shift)) / np.array(units.state_scale)
    actions = (data.actions - np.array(units.action_shift)) / np.array(units.action_scale)
    return data._replace(states=states.astype(np.float32), actions=actions.astype(np.float32))


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
