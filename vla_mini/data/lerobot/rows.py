"""The rows of a dataset's data files -> the numbers of all frames, checked: each row is the frame that it says it is.

    columns of vectors -> float32 (n, d), finite        columns of one value -> int64 or text (n,)

An episode's rows have to follow one another in time: `episode_index`, `frame_index`, `index` and `timestamp`, those of them
that there are, must agree. Else the file, the row and the column are named.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vla_mini.data.lerobot.metadata import Episode, Metadata
from vla_mini.data.lerobot.tables import read_table
from vla_mini.utils.errors import show

BOOKKEEPING = ("episode_index", "frame_index", "index", "timestamp")


class Rows(NamedTuple):
    """The columns that were asked for, over the frames of all episodes in their order."""

    vectors: dict[str, np.ndarray]  # (n, d) float32
    values: dict[str, np.ndarray]  # (n,) int64, or text as an array of objects
    row: np.ndarray  # (n,) int64, the row of each frame in its data file


def by_data_file(episodes: Sequence[Episode]) -> Iterator[tuple[Path, list[Episode]]]:
    """The episodes of each data file."""
    for file, group in groupby(episodes, lambda episode: episode.data_file):
        yield file, list(group)


def read_rows(
    metadata: Metadata, *, vectors: Mapping[str, int | None], values: Sequence[str] = (), exclude: Collection[int] = ()
) -> Rows:
    """The numbers of every frame.

    - vectors: columns of numbers, and how many there are in each row (None: as many as in the first one)
    - values: columns of one integer or text
    - exclude: episodes whose rows may be wrong. A file of these alone is not read: all in it is 0

    Raises ValueError, naming file, row and column, for rows that are out of order, missing or doubled, and for numbers that
    are missing or not finite.
    """
    groups = list(by_data_file(metadata.episodes))
    if len({file for file, _ in groups}) < len(groups):
        raise ValueError(f"{metadata.root / 'meta/episodes'}: the episodes of one data file do not follow one another")
    sizes, parts, unread = dict(vectors), [], []
    for file, episodes in groups:
        if all(episode.index in exclude for episode in episodes):
            unread.append((len(parts), sum(episode.length for episode in episodes)))
            parts.append({})
            continue
        table = read_table(file, [*dict.fromkeys([*vectors, *values])], optional=[c for c in BOOKKEEPING if c not in values])
        used = _check_order(file, table, episodes, exclude, fps=metadata.fps, several=metadata.version == "v3.0")
        found = {}
        for name in vectors:
            found[name] = _vectors(file, name, table[name], sizes[name], episodes, used)
            sizes[name] = found[name].shape[1]
        found |= {name: _values(file, name, table[name]) for name in values}
        parts.append(found | {"": np.arange(table.num_rows)})
    if len(unread) == len(parts):
        raise ValueError(f"data.exclude_episodes leaves no episode of {metadata.root}")
    for place, length in unread:
        model = next(part for part in parts if part)
        parts[place] = {name: np.zeros((length, *each.shape[1:]), each.dtype) for name, each in model.items()}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Rows({name: joined[name] for name in vectors}, {name: joined[name] for name in values}, joined[""])


def _check_order(
    file: Path, table: pa.Table, episodes: Sequence[Episode], exclude: Collection[int], *, fps: int | float, several: bool
) -> np.ndarray:
    """Which rows are of episodes that are used, bool (n,). ValueError where one of these is not where it belongs."""
    lengths = np.array([episode.length for episode in episodes])
    starts = np.cumsum(lengths) - lengths
    if table.num_rows != lengths.sum():
        numbers = f"episode {episodes[0].index}" if len(episodes) == 1 else f"its {len(episodes)} episodes"
        raise ValueError(f"{file}: {table.num_rows} rows, but {numbers} should have {lengths.sum()}")
    used = ~np.repeat([episode.index in exclude for episode in episodes], lengths)
    frame = np.arange(table.num_rows) - np.repeat(starts, lengths)
    expected = {"episode_index": np.repeat([episode.index for episode in episodes], lengths), "frame_index": frame}
    if several and "episode_index" not in table.column_names:
        raise ValueError(f"{file}: no column 'episode_index'")
    for name in (name for name in BOOKKEEPING if name in table.column_names):
        column = _numbers(file, name, table[name], np.float64 if name == "timestamp" else np.int64)
        if name == "timestamp":  # may begin anywhere, and may jitter by less than half a frame
            found = np.rint((column - np.repeat(column[starts], lengths)) * fps)
            wanted = frame
        elif name == "index":  # of a part of a dataset, it does not begin at 0
            found, wanted = column - np.repeat(column[starts], lengths), frame
        else:
            found, wanted = column, expected[name]
        wrong = np.flatnonzero((found != wanted) & used)
        if len(wrong):
            row, episode = int(wrong[0]), int(expected["episode_index"][wrong[0]])
            what = f"frame {frame[row]} of episode {episode}"
            what += f" at fps={fps:g}" if name == "timestamp" else ""
            raise ValueError(f"{file}, row {row}: {name}={show(column[row].item())} is not that of {what}")
    return used


def _numbers(file: Path, name: str, column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    """A column of one number a row, also where it is kept as lists of one."""
    flat = _flat(file, name, column)
    if len(flat) != len(column):
        raise ValueError(f"{file}: {name!r} holds {len(flat)} numbers in {len(column)} rows")
    found = flat.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        whole = found.astype(dtype)
    wrong = np.flatnonzero(whole != found)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{file}, row {row}: {name}={show(found[row].item())} is not an integer")
    return whole


def _vectors(
    file: Path, name: str, column: pa.ChunkedArray, size: int | None, episodes: Sequence[Episode], used: np.ndarray
) -> np.ndarray:
    flat = _flat(file, name, column)
    size = len(flat) // len(column) if size is None else size
    if len(flat) != len(column) * size:
        raise ValueError(f"{file}: {name!r} holds {len(flat) // len(column)} numbers a row, not {size}")
    with np.errstate(over="ignore"):
        found = flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)
    bad = np.argwhere(~np.isfinite(found) & used[:, None])
    if len(bad):
        row, dimension = map(int, bad[0])
        ends = np.cumsum([episode.length for episode in episodes])
        number = int(np.searchsorted(ends, row, side="right"))
        episode, frame = episodes[number], row - int(ends[number] - episodes[number].length)
        place = f"episode {episode.index}, frame {frame}"
        told = f"{name}[{dimension}] is {found[row, dimension]} ({place})"
        raise ValueError(f"{file}, row {row}: {told}: repair it, or data.exclude_episodes=[{episode.index}]")
    return found


def _values(file: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        found = np.array(column.to_pylist(), dtype=object)
        if empty := [row for row, text in enumerate(found) if not (text or "").strip()]:
            told = f"row {empty[0]}: {name!r} has no text ({len(empty)} rows in all)"
            raise ValueError(f'{file}, {told}; one sentence for all is given by data.instruction="pick up the bottle"')
        return found
    return _numbers(file, name, column, np.int64)


def _flat(file: Path, name: str, column: pa.ChunkedArray) -> Any:
    """All numbers of a column, whose rows are numbers, or lists of equal length, or lists of these."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        _refuse_nulls(file, name, values)
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if len(lengths) and (wrong := np.flatnonzero(lengths != lengths[0])).size:
            row = int(wrong[0])
            raise ValueError(f"{file}, row {row}: {name!r} holds {lengths[row]} numbers, not {lengths[0]} as the rows before")
        values = pc.list_flatten(values)
    _refuse_nulls(file, name, values)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{file}: {name!r} is kept as {kind}, not as numbers")
    return values


def _refuse_nulls(file: Path, name: str, values: Any) -> None:
    if values.null_count:
        place = int(np.flatnonzero(pc.is_null(values).to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{file}: {name!r} has {values.null_count} empty values (null), the first at {place}")
