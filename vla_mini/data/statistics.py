"""Statistics of numbers and pixels: (n, d) values or (c, 256) pixel counts -> a row of d or c for each of STATISTICS.

All are exact, quantiles included: the values of vectors are few enough to be sorted, and pixels are counted by value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_mini.utils.features import FeatureStatistics, Statistics

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", *QUANTILES)
_LEVELS = np.arange(256) / 255


def training_statistics(states: np.ndarray, actions: np.ndarray) -> Statistics:
    """States (n, s) and actions (n, a) of the training split -> what a policy normalises with, in float32."""
    rows = [dict(zip(STATISTICS, describe(values).astype(np.float32), strict=True)) for values in (states, actions)]
    return Statistics(*(FeatureStatistics(**{name: row[name] for name in FeatureStatistics._fields}) for row in rows))


def describe(values: np.ndarray) -> np.ndarray:
    """(n, d) values -> (statistics, d) float64. The standard deviation is the population's, as in LeRobot."""
    values = values.astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return np.stack([values.min(0), values.max(0), values.mean(0), values.std(0), *quantiles])


def count_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, c) -> (c, 256): how often each channel takes each value. Counts of episodes add up."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])


def describe_pixels(counts: np.ndarray) -> np.ndarray:
    """(c, 256) pixel counts -> (statistics, c, 1, 1) float64, pixels taken as 0..1; a quantile is a value that occurs."""
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ _LEVELS
    std = np.sqrt(np.maximum(share @ _LEVELS**2 - mean**2, 0))
    seen, cumulative = counts > 0, np.cumsum(counts, axis=1)
    lowest, highest = seen.argmax(axis=1), 255 - seen[:, ::-1].argmax(axis=1)
    quantiles = [(cumulative < q * cumulative[:, -1:]).sum(axis=1) for q in QUANTILES.values()]
    return np.stack([_LEVELS[lowest], _LEVELS[highest], mean, std, *(_LEVELS[q] for q in quantiles)])[..., None, None]


class EpisodeValues(NamedTuple):
    """The values of one episode, or of several, by feature."""

    vectors: dict[str, np.ndarray]  # (n, d)
    pixel_counts: dict[str, np.ndarray]  # (c, 256)
    num_images: int  # so many frames had their pixels counted


def describe_episode(episode: EpisodeValues) -> dict[str, dict[str, Any]]:
    """Feature -> statistic -> a list (d) or (c, 1, 1), as meta/episodes holds them."""
    # All columns at once: describing them one by one would take as long as rendering the episode.
    edges = np.cumsum([column.shape[1] for column in episode.vectors.values()])[:-1]
    described = np.split(describe(np.concatenate([*episode.vectors.values()], axis=1)), edges, axis=1)
    return _with_pixels(dict(zip(episode.vectors, described, strict=True)), episode)


def describe_dataset(episodes: Sequence[EpisodeValues]) -> dict[str, dict[str, Any]]:
    """The same over all episodes, as meta/stats.json holds them."""
    vectors, pixel_counts, num_images = zip(*episodes, strict=True)
    together = EpisodeValues(
        {name: np.concatenate([each[name] for each in vectors]) for name in vectors[0]},
        {name: sum(each[name] for each in pixel_counts) for name in pixel_counts[0]},
        sum(num_images),
    )
    return _with_pixels({name: describe(values) for name, values in together.vectors.items()}, together)


def _with_pixels(described: dict[str, np.ndarray], values: EpisodeValues) -> dict[str, dict[str, Any]]:
    described |= {name: describe_pixels(counts) for name, counts in values.pixel_counts.items()}
    # The count of an image feature is, as in LeRobot, that of the frames whose pixels were counted.
    counts = {name: len(rows) for name, rows in values.vectors.items()} | dict.fromkeys(values.pixel_counts, values.num_images)
    return {
        name: dict(zip(STATISTICS, rows.tolist(), strict=True)) | {"count": [counts[name]]} for name, rows in described.items()
    }
