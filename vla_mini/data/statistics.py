"""How numbers and pixels are distributed: (n, d) values or (c, 256) pixel counts -> a row of d for each of STATISTICS.

Everything is exact, quantiles included: vectors are few enough to be sorted whole, and counts of bytes forget nothing.
"""

from typing import Any

import numpy as np

from vla_mini.features import Moments, Statistics

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", *QUANTILES)
_LEVELS = np.arange(256) / 255


def training_statistics(states: np.ndarray, actions: np.ndarray) -> Statistics:
    """States (n, s) and actions (n, a) of the training split -> what a policy normalises with, float32."""
    return Statistics(state=_moments(states), action=_moments(actions))


def describe(values: np.ndarray) -> np.ndarray:
    """(n, d) values -> (statistics, d) float64. The standard deviation is the population's, as in LeRobot."""
    assert values.ndim == 2 and len(values) > 0, values.shape
    values = values.astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return np.stack([values.min(0), values.max(0), values.mean(0), values.std(0), *quantiles])


def count_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, c) -> (c, 256): how often each channel takes each value. Counts of episodes add up."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])


def describe_pixels(counts: np.ndarray) -> np.ndarray:
    """(c, 256) pixel counts -> (statistics, c) float64, pixels taken as 0..1; a quantile is a value that occurs."""
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ _LEVELS
    std = np.sqrt(np.maximum(share @ _LEVELS**2 - mean**2, 0))
    seen, cumulative = counts > 0, np.cumsum(counts, axis=1)
    lowest, highest = seen.argmax(axis=1), 255 - seen[:, ::-1].argmax(axis=1)
    quantiles = [(cumulative < q * cumulative[:, -1:]).sum(axis=1) for q in QUANTILES.values()]
    return np.stack([_LEVELS[lowest], _LEVELS[highest], mean, std, *(_LEVELS[q] for q in quantiles)])


class EpisodeStatistics:
    """Gathers what LeRobot keeps about each episode and about all of them together."""

    def __init__(self) -> None:
        self._values: list[dict[str, np.ndarray]] = []  # per episode: feature -> (n, d)
        self._counts: list[dict[str, np.ndarray]] = []  # per episode: image feature -> (c, 256)
        self._num_images: list[int] = []  # per episode: the frames that were looked at
        self._episodes: list[dict[str, np.ndarray]] = []  # per episode: feature -> (statistics, d)

    def add(self, values: dict[str, np.ndarray], *, pixel_counts: dict[str, np.ndarray], num_images: int) -> None:
        """One episode: the (n, d) values of its vectors, the (c, 256) counts of `num_images` of its frames."""
        self._values.append(values)
        self._counts.append(pixel_counts)
        self._num_images.append(num_images)
        # All columns in one go: describing them one by one would cost as much as drawing the episode.
        edges = np.cumsum([column.shape[1] for column in values.values()])[:-1]
        described = np.split(describe(np.concatenate(list(values.values()), axis=1)), edges, axis=1)
        pixels = {name: describe_pixels(counts) for name, counts in pixel_counts.items()}
        self._episodes.append(dict(zip(values, described, strict=True)) | pixels)

    def per_episode(self) -> dict[str, np.ndarray]:
        """Columns of meta/episodes: `stats/<feature>/<statistic>` -> (episodes, d), of pixels (episodes, c, 1, 1)."""
        columns: dict[str, np.ndarray] = {}
        for name in self._episodes[0]:
            described = self._shaped(name, np.stack([episode[name] for episode in self._episodes]))
            columns |= {f"stats/{name}/{statistic}": described[:, i] for i, statistic in enumerate(STATISTICS)}
            columns[f"stats/{name}/count"] = np.array([[count] for count in self._num_rows(name)])
        return columns

    def whole(self) -> dict[str, dict[str, Any]]:
        """meta/stats.json: feature -> statistic -> value, over all episodes."""
        described = {name: describe(np.concatenate([v[name] for v in self._values])) for name in self._values[0]}
        described |= {name: describe_pixels(sum(c[name] for c in self._counts)) for name in self._counts[0]}
        return {
            name: {statistic: row.tolist() for statistic, row in zip(STATISTICS, self._shaped(name, rows), strict=True)}
            | {"count": [sum(self._num_rows(name))]}
            for name, rows in described.items()
        }

    def _num_rows(self, name: str) -> list[int]:
        """Per episode, its frames; of image features, as in LeRobot, the frames that were looked at."""
        return self._num_images if name in self._counts[0] else [len(values[name]) for values in self._values]

    def _shaped(self, name: str, described: np.ndarray) -> np.ndarray:
        """Vectors stay (..., d), pixels become (..., c, 1, 1)."""
        return described[..., None, None] if name in self._counts[0] else described


def _moments(values: np.ndarray) -> Moments:
    rows = dict(zip(STATISTICS, describe(values).astype(np.float32), strict=True))
    quantiles = np.quantile(values, np.linspace(0, 1, 101), axis=0).astype(np.float32)
    return Moments(**{name: row for name, row in rows.items() if name in Moments._fields}, quantiles=quantiles)
