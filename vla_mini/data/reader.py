"""A LeRobotDataset v3.0 on disk -> Demonstrations: states (n, s), actions (n, a), frames uint8 (n, k, c, h, w), tasks.

Reads what vla-mini writes and what others write, as long as images are kept as images: any number of cameras of one
size, in one file or many. Frames are decoded once (frames.py). No torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_mini import files
from vla_mini.data import layout
from vla_mini.data.frames import Progress, map_frames
from vla_mini.data.statistics import training_statistics
from vla_mini.features import Features, Statistics

# A dataset without a validation split lends its last episodes.
VALIDATION_SHARE = 0.05


class Demonstrations(NamedTuple):
    """All frames of all episodes, one after another, with what was done and said."""

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


def read_dataset(root: str | Path, *, cache: str | Path | None = None, progress: Progress | None = None) -> Demonstrations:
    """Read the dataset at `root`; images not decoded before are decoded now, and `progress(done, total)` counts them.

    Decoded frames are kept in the folder `cache` (None: `.cache` beside `root`). Raises ValueError, naming the file,
    for whatever is missing, cut short or not understood.
    """
    root = Path(root)
    digests = files.digests(root, layout.files_of(root))
    info = _read_info(root)
    if (root / layout.MANIFEST).is_file():
        files.check_manifest(root, layout.MANIFEST, digests)
    elif "manifest" in info:  # datasets from elsewhere have none, and what is wrong shows in their structure
        raise ValueError(f"{root / layout.MANIFEST} is missing")
    features = _read_features(root, info)
    episodes = _read_episodes(root)
    data_files = _data_files(root, info, episodes)
    rows = _read_rows(data_files, features)
    starts, ends = _episode_bounds(root, episodes, rows)
    splits = _read_splits(root, info, len(ends))
    train = slice(starts[splits["train"][0]], ends[splits["train"][1] - 1])
    fingerprint = hashlib.sha256("".join(f"{digest} {name}\n" for name, digest in digests.items()).encode()).hexdigest()
    return Demonstrations(
        features=features,
        tasks=_read_tasks(root, rows["task_index"]),
        episode_starts=starts,
        episode_ends=ends,
        splits=splits,
        states=rows[layout.STATE],
        actions=rows[layout.ACTION],
        task_index=rows["task_index"],
        frames=map_frames(
            (root.absolute().parent / ".cache" if cache is None else Path(cache)) / f"{fingerprint}.u8",
            files=data_files,
            columns=_image_columns(info),
            shape=(int(ends[-1]), len(features.cameras), 3, *features.image_size),
            progress=progress,
        ),
        statistics=training_statistics(rows[layout.STATE][train], rows[layout.ACTION][train]),
        fingerprint=fingerprint,
    )


def _read_info(root: Path) -> dict[str, Any]:
    path = root / layout.INFO
    if not path.is_file():
        raise ValueError(f"{root} holds no LeRobot dataset: there is no file {path}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, described, _ = info["codebase_version"], info["features"], float(info["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not version.startswith("v3."):
        raise ValueError(f"{path}: LeRobot format {version} is not v3.0; LeRobot's own converter brings it there")
    videos = [name for name, feature in described.items() if feature["dtype"] == "video"]
    if videos:
        raise ValueError(f"{path}: {videos[0]!r} is kept as video; only datasets that keep images as images can be read")
    missing = [name for name in (layout.STATE, layout.ACTION) if name not in described]
    if missing or not _image_columns(info):
        raise ValueError(f"{path}: no feature {missing[0]!r}" if missing else f"{path}: no feature of dtype 'image'")
    return info


def _image_columns(info: dict[str, Any]) -> list[str]:
    return [name for name, feature in info["features"].items() if feature["dtype"] == "image"]


def _read_features(root: Path, info: dict[str, Any]) -> Features:
    sizes = {name: _image_size(info["features"][name]["shape"]) for name in _image_columns(info)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise ValueError(f"{root / layout.INFO}: all cameras must have one image size, found {found}")
    return Features(
        cameras=tuple(name.removeprefix(layout.IMAGES).removeprefix("observation.") for name in sizes),
        image_size=next(iter(sizes.values())),
        state=_element_names(info["features"][layout.STATE], "state"),
        action=_element_names(info["features"][layout.ACTION], "action"),
        fps=round(info["fps"]),
    )


def _image_size(shape: list[int]) -> tuple[int, int]:
    """(height, width), whether the shape is written with the channels last, as LeRobot does, or first."""
    height, width = shape[:2] if shape[2] == 3 else shape[1:]
    return height, width


def _element_names(feature: dict[str, Any], prefix: str) -> tuple[str, ...]:
    """The names of a vector's elements; others write them as a list, as {group: list}, or not at all."""
    (size,), names = feature["shape"], feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    if not names or len(names) != size:
        names = [f"{prefix}_{i}" for i in range(size)]
    return tuple(map(str, names))


def _read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        # Read as it is, without the pandas or Hugging Face descriptions in the schema.
        return pq.read_table(
            path, columns=columns, partitioning=None, page_checksum_verification=True
        ).replace_schema_metadata()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


def _read_tasks(root: Path, task_index: np.ndarray) -> tuple[str, ...]:
    """The words of each task, by index. pandas calls its unnamed index `__index_level_0__`; either name will do."""
    path = root / layout.TASKS
    table = _read_table(path)
    words = [name for name in table.column_names if name != "task_index"]
    if len(words) != 1 or "task_index" not in table.column_names:
        raise ValueError(f"{path}: columns {table.column_names} instead of task and task_index")
    tasks = dict(zip(table["task_index"].to_pylist(), table[words[0]].to_pylist(), strict=True))
    unknown = set(np.unique(task_index).tolist()) - tasks.keys()
    if unknown or sorted(tasks) != list(range(len(tasks))):
        raise ValueError(f"{path}: no task with index {min(unknown or set(range(len(tasks))) - tasks.keys())}")
    return tuple(tasks[i] for i in range(len(tasks)))


def _read_episodes(root: Path) -> pa.Table:
    paths = sorted((root / "meta/episodes").rglob("*.parquet"))
    if not paths:
        raise ValueError(f"{root / layout.EPISODES.format(chunk_index=0, file_index=0)} is missing")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    episodes = pa.concat_tables([_read_table(path, columns) for path in paths]).sort_by("episode_index")
    if not episodes.num_rows or set(episodes.column_names) != set(columns):
        raise ValueError(f"{paths[0]}: no episodes with {', '.join(columns)}")
    return episodes


def _data_files(root: Path, info: dict[str, Any], episodes: pa.Table) -> list[Path]:
    """The data files in the order of their rows."""
    places = zip(episodes["data/chunk_index"].to_pylist(), episodes["data/file_index"].to_pylist(), strict=True)
    template = info.get("data_path") or layout.DATA
    return [root / template.format(chunk_index=chunk, file_index=file) for chunk, file in dict.fromkeys(places)]


def _read_rows(files: list[Path], features: Features) -> dict[str, np.ndarray]:
    """The numbers of all frames: states (n, s) and actions (n, a) float32, episode_index and task_index (n,) int64."""
    sizes = {layout.STATE: features.state_size, layout.ACTION: features.action_size}
    names = [*sizes, "episode_index", "task_index"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for file in files:
        table = _read_table(file, names)
        if set(table.column_names) != set(names):
            raise ValueError(f"{file}: no column {(set(names) - set(table.column_names)).pop()!r}")
        for name in names:
            values = table[name].combine_chunks()
            flat = pc.list_flatten(values) if pa.types.is_nested(values.type) else values
            expected = table.num_rows * sizes.get(name, 1)
            if flat.null_count or len(flat) != expected:
                raise ValueError(f"{file}: {name!r} holds {len(flat)} numbers ({flat.null_count} null), not {expected}")
            parts[name].append(flat.to_numpy(zero_copy_only=False))
    rows = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    vectors = {name: rows[name].reshape(-1, size).astype(np.float32) for name, size in sizes.items()}
    return vectors | {name: rows[name].astype(np.int64) for name in ("episode_index", "task_index")}


def _episode_bounds(root: Path, episodes: pa.Table, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends exclusive) of all episodes, in frames."""
    lengths = episodes["length"].to_numpy()
    if not np.array_equal(np.repeat(episodes["episode_index"].to_numpy(), lengths), rows["episode_index"]):
        raise ValueError(f"{root / 'data'}: its rows are not those of the episodes listed under {root / 'meta/episodes'}")
    ends = np.cumsum(lengths)
    return ends - lengths, ends


def _read_splits(root: Path, info: dict[str, Any], num_episodes: int) -> dict[str, tuple[int, int]]:
    """The training and validation episodes; the last ones are held out where the dataset names only `train`."""
    path = root / layout.INFO
    try:
        named = {name: tuple(map(int, span.split(":"))) for name, span in info.get("splits", {}).items()}
        first, last = named.get("train", (0, num_episodes))
        held_out = max(1, round(VALIDATION_SHARE * (last - first)))
        splits = {"train": (first, last), "validation": named.get("validation", named.get("val"))}
        if splits["validation"] is None:
            splits = {"train": (first, last - held_out), "validation": (last - held_out, last)}
        spans = [(first, last) for first, last in splits.values()]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: splits={info.get('splits')!r} cannot be read: {error}") from error
    if not all(0 <= first < last <= num_episodes for first, last in spans):
        raise ValueError(
            f"{path}: splits={info.get('splits')!r} do not give training and validation any of {num_episodes} episodes"
        )
    return splits
