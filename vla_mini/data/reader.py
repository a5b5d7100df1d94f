"""A LeRobotDataset v3.0 on disk -> Demonstrations: states (n, s), actions (n, a), frames uint8 (n, k, c, h, w), tasks.

Reads what vla-mini writes and what others write, as long as images are kept as images: any number of cameras of one
size, in one file or many. Frames are decoded once (frames.py). No torch.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_mini.data import layout
from vla_mini.data.frames import map_frames
from vla_mini.data.statistics import training_statistics
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.features import Features, Statistics

# Of a dataset without a validation split, the last episodes are held out.
VALIDATION_SHARE = 0.05


class Demonstrations(NamedTuple):
    """All frames of all episodes, one after another, with actions and instructions."""

    features: Features
    tasks: tuple[str, ...]
    episode_starts: np.ndarray  # (episodes,) int64
    episode_ends: np.ndarray  # (episodes,) int64, exclusive
    splits: dict[str, tuple[int, int]]  # "train" and "validation" -> (first, last exclusive) episode
    states: np.ndarray  # (n, s) float32, raw units
    actions: np.ndarray  # (n, a) float32, raw units
    task_index: np.ndarray  # (n,) int64
    frames: np.ndarray  # (n, k, c, h, w) uint8, memory-mapped
    statistics: Statistics  # of the training split
    fingerprint: str  # SHA-256 over the dataset's files


def read_dataset(root: str | Path, *, cache: str | Path | None = None) -> Demonstrations:
    """Read the dataset at `root`. Images that were not decoded before are decoded now.

    Decoded frames are kept in the folder `cache` (None: `.cache` beside `root`). Raises ValueError, naming the file,
    for whatever is missing, cut short or not understood.
    """
    root = Path(root)
    digests = files.digests(root, layout.files_of(root))
    if not (root / layout.INFO).is_file():
        raise ValueError(f"{root} holds no LeRobot dataset: there is no file {root / layout.INFO}")
    info = files.read_json(root / layout.INFO)
    if (root / layout.MANIFEST).is_file() or "manifest" in info:  # In datasets from elsewhere, damage shows in the structure.
        files.check_manifest(root, layout.MANIFEST, digests)
    features, image_columns = _read_features(root / layout.INFO, info)
    episode_index, lengths, data_files = _read_episodes(root, info.get("data_path") or layout.DATA)
    rows = _read_rows(data_files, features)
    if not np.array_equal(np.repeat(episode_index, lengths), rows["episode_index"]):
        raise ValueError(f"{root / 'data'}: its rows are not those of the episodes listed under {root / 'meta/episodes'}")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    splits = _read_splits(root / layout.INFO, info.get("splits", {}), len(ends))
    train = slice(starts[splits["train"][0]], ends[splits["train"][1] - 1])
    fingerprint = hashlib.sha256("".join(f"{digest} {name}\n" for name, digest in digests.items()).encode()).hexdigest()
    frames = map_frames(
        (root.absolute().parent / ".cache" if cache is None else Path(cache)) / f"{fingerprint}.u8",
        data_files=data_files,
        columns=image_columns,
        shape=(int(ends[-1]), len(features.cameras), 3, *features.image_size),
    )
    return Demonstrations(
        features=features,
        tasks=_read_tasks(root / layout.TASKS, rows["task_index"]),
        episode_starts=starts,
        episode_ends=ends,
        splits=splits,
        states=rows[layout.STATE],
        actions=rows[layout.ACTION],
        task_index=rows["task_index"],
        frames=frames,
        statistics=training_statistics(rows[layout.STATE][train], rows[layout.ACTION][train]),
        fingerprint=fingerprint,
    )


def _read_features(path: Path, info: dict[str, Any]) -> tuple[Features, list[str]]:
    """The features that info.json describes, and the columns of the images."""
    with as_value_error(f"{path} is damaged", AttributeError, KeyError, TypeError):
        version, described = info["codebase_version"], info["features"]
        if not version.startswith("v3."):
            raise ValueError(f"{path}: LeRobot format {version} is not v3.0; LeRobot's own converter brings it there")
        if videos := [name for name, feature in described.items() if feature["dtype"] == "video"]:
            raise ValueError(f"{path}: {videos[0]!r} is kept as video; only datasets that keep images as images can be read")
        if missing := [name for name in (layout.STATE, layout.ACTION) if name not in described]:
            raise ValueError(f"{path}: no feature {missing[0]!r}")
        shapes = {name: feature["shape"] for name, feature in described.items() if feature["dtype"] == "image"}
        # LeRobot writes the channels last, others write them first.
        sizes = {name: tuple(shape[:2] if shape[2] == 3 else shape[1:]) for name, shape in shapes.items()}
        if len(set(sizes.values())) != 1:
            found = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
            found = found or "no feature of dtype image"
            raise ValueError(f"{path}: all cameras must have one image size, found {found}")
        features = Features(
            cameras=tuple(name.removeprefix(layout.IMAGES).removeprefix("observation.") for name in sizes),
            image_size=next(iter(sizes.values())),
            state=_element_names(described[layout.STATE], "state"),
            action=_element_names(described[layout.ACTION], "action"),
            fps=round(info["fps"]),
        )
    return features, list(sizes)


def _element_names(feature: dict[str, Any], prefix: str) -> tuple[str, ...]:
    """The names of a vector's elements, which are written as a list, as {group: list}, or not at all."""
    (size,), names = feature["shape"], feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    if not names or len(names) != size:
        names = [f"{prefix}_{i}" for i in range(size)]
    return tuple(map(str, names))


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    files.require_file(path)
    with as_value_error(f"{path} is damaged or cut short", pa.ArrowException, OSError):
        table = pq.read_table(path, columns=columns, partitioning=None, page_checksum_verification=True)
    if missing := set(columns or ()) - set(table.column_names):
        raise ValueError(f"{path}: no column {min(missing)!r}")
    return table.replace_schema_metadata()  # without the descriptions for pandas and Hugging Face in the schema


def _read_tasks(path: Path, task_index: np.ndarray) -> tuple[str, ...]:
    """The instruction of each task, by index. The column has any name: pandas calls its unnamed index `__index_level_0__`."""
    table = _read_table(path)
    names = set(table.column_names) - {"task_index"}
    if len(names) != 1 or table.num_columns != 2:
        raise ValueError(f"{path}: columns {table.column_names} instead of task and task_index")
    tasks = dict(zip(table["task_index"].to_pylist(), table[names.pop()].to_pylist(), strict=True))
    if missing := {*range(len(tasks)), *np.unique(task_index).tolist()} - tasks.keys():
        raise ValueError(f"{path}: no task with index {min(missing)}")
    return tuple(tasks[i] for i in range(len(tasks)))


def _read_episodes(root: Path, data_path: str) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """The numbers of the episodes, their lengths in frames, and the data files that hold them, in this order."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    paths = sorted((root / "meta/episodes").rglob("*.parquet")) or [root / layout.EPISODES.format(chunk_index=0, file_index=0)]
    episodes = pa.concat_tables([_read_table(path, columns) for path in paths]).sort_by("episode_index")
    if not episodes.num_rows:
        raise ValueError(f"{paths[0]}: no episodes")
    index, lengths, chunks, numbers = (episodes[name].to_numpy() for name in columns)
    locations = dict.fromkeys(zip(chunks.tolist(), numbers.tolist(), strict=True))
    return index, lengths, [root / data_path.format(chunk_index=chunk, file_index=file) for chunk, file in locations]


def _read_rows(data_files: list[Path], features: Features) -> dict[str, np.ndarray]:
    """The numbers of all frames: states (n, s) and actions (n, a) float32, episode_index and task_index (n,) int64."""
    vectors = {layout.STATE: (features.state_size,), layout.ACTION: (features.action_size,)}
    shapes: dict[str, tuple[int, ...]] = vectors | {"episode_index": (), "task_index": ()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for file in data_files:
        table = _read_table(file, list(shapes))
        for name, shape in shapes.items():
            values = table[name].combine_chunks()
            flat = pc.list_flatten(values) if pa.types.is_nested(values.type) else values
            expected = table.num_rows * math.prod(shape)
            if flat.null_count or len(flat) != expected:
                raise ValueError(f"{file}: {name!r} holds {len(flat)} numbers ({flat.null_count} null), not {expected}")
            parts[name].append(flat.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    return {name: np.concatenate(parts[name]).astype(np.float32 if name in vectors else np.int64) for name in shapes}


def _read_splits(path: Path, described: dict[str, str], num_episodes: int) -> dict[str, tuple[int, int]]:
    """The training and validation episodes; the last ones are held out where the dataset names only `train`."""
    with as_value_error(f"{path}: splits={described!r} cannot be read", ValueError, AttributeError):
        spans = {name: tuple(map(int, span.split(":"))) for name, span in described.items()}
        first, last = spans.get("train", (0, num_episodes))
        boundary = last - max(1, round(VALIDATION_SHARE * (last - first)))
        splits = {"train": (first, boundary), "validation": (boundary, last)}
        if validation := spans.get("validation", spans.get("val")):
            splits = {"train": (first, last), "validation": validation}
        are_ranges = all(0 <= first < last <= num_episodes for first, last in splits.values())
    if not are_ranges:
        raise ValueError(f"{path}: splits={described!r} are not ranges within its {num_episodes} episodes")
    return splits
