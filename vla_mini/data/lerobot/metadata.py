"""The metadata of a LeRobotDataset v3.0, v2.1 or v2.0 -> `Metadata`: features, tasks, episodes, and the files that hold each.

    v3.0: meta/tasks.parquet, meta/episodes/*/*.parquet; many episodes in one data file and in one video
    v2.x: meta/tasks.jsonl,   meta/episodes.jsonl;       a data file and, for each camera, a video for each episode

Whatever is missing, contradictory or not understood is a ValueError that names the file. No torch.
"""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vla_mini.data.lerobot import layout
from vla_mini.data.lerobot.tables import is_whole, read_table, whole_numbers
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error, show

VERSIONS = ("v3.0", "v2.1", "v2.0")
MOST_FRAMES = 10**7  # of an episode: four days at 30 a second. A larger number is damage


class Feature(NamedTuple):
    """A feature as info.json describes it. `shape` is () where it isn't a list of sizes."""

    dtype: str  # a NumPy name, "image", "video" or "string"
    shape: tuple[int, ...]
    names: Any
    is_depth: bool


class VideoPart(NamedTuple):
    """Where the frames of an episode lie in a video: from the frame of the number `first` on."""

    file: Path
    first: int


class Episode(NamedTuple):
    """An episode, and the files that hold it."""

    index: int
    length: int  # frames
    data_file: Path
    videos: dict[str, VideoPart]  # by feature; without those whose file is missing


class Metadata(NamedTuple):
    """What a dataset says of itself."""

    root: Path
    version: str
    fps: int | float
    features: dict[str, Feature]
    episodes: tuple[Episode, ...]  # in the order of their rows
    tasks: dict[int, str | None]  # the sentence of each task, by its index
    splits: dict[str, str]  # name -> "first:last", as written
    announced: dict[str, int | float]  # total_episodes and total_frames of info.json

    @property
    def info(self) -> Path:
        return self.root / layout.INFO


def read_metadata(root: Path) -> Metadata:
    """Read meta/ of the dataset at `root`."""
    path = root / layout.INFO
    if not path.is_file():
        raise ValueError(f"{root} holds no LeRobot dataset: there is no file {path}")
    info = files.read_json(path)
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise ValueError(f"{path}: 'features' is not an object")
    version = _version(path, info.get("codebase_version"))
    features = {name: _feature(path, name, described) for name, described in info["features"].items()}
    paths = {name: info.get(name) for name in ("data_path", "video_path")}
    for name, pattern in paths.items():
        if not isinstance(pattern, str | None) or ".." in Path(pattern or "").parts or (pattern or "").startswith("/"):
            raise ValueError(f"{path}: {name}={show(pattern)} is no path within the dataset")
    videos = [name for name, feature in features.items() if feature.dtype == "video"]
    fps = positive_number(path, "fps", info.get("fps"))
    if version == "v3.0":
        episodes = _episodes_v3(root, paths, videos, fps)
    else:
        chunks_size = int(positive_number(path, "chunks_size", info.get("chunks_size", layout.FILES_PER_CHUNK)))
        episodes = _episodes_v2(root, paths, videos, chunks_size)
    splits = info.get("splits") or {}
    if not isinstance(splits, dict):
        raise ValueError(f"{path}: splits={show(splits)} are no ranges of episodes by name")
    announced = {name: info[name] for name in ("total_episodes", "total_frames") if is_whole(info.get(name))}
    return Metadata(root, version, fps, features, episodes, _tasks(root), splits, announced)


def positive_number(path: Path, name: str, value: Any) -> int | float:
    """A number above 0, an int where it is whole."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{path}: {name}={show(value)} is not a number above 0")
    return int(value) if value == int(value) else value


def _version(path: Path, value: Any) -> str:
    version = f"v{value}" if isinstance(value, int | float) and not isinstance(value, bool) else value
    version = re.sub(r"^(v\d)$", r"\1.0", version) if isinstance(version, str) else version
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise ValueError(f"{path}: codebase_version={show(value)} is not one of LeRobot's formats {known}")
    return version


def _feature(path: Path, name: str, described: Any) -> Feature:
    if not isinstance(described, dict):
        raise ValueError(f"{path}: features.{name}={show(described)} does not describe a feature")
    shape = described.get("shape")
    shape = [shape] if isinstance(shape, int | float) else shape
    whole = isinstance(shape, list) and all(is_whole(size) and size >= 0 for size in shape)
    details = described.get("info") or described.get("video_info") or {}
    depth = isinstance(details, dict) and any(details.get(key) for key in ("video.is_depth_map", "is_depth_map"))
    dtype = described.get("dtype")
    return Feature(
        dtype if isinstance(dtype, str) else "",
        tuple(map(int, shape)) if whole and shape else (),
        described.get("names"),
        bool(depth) or "depth" in name.lower(),
    )


def _tasks(root: Path) -> dict[int, str | None]:
    """The sentence of each task. Its column has any name: pandas calls an unnamed index `__index_level_0__`."""
    path = root / layout.TASKS
    if path.is_file():
        table = read_table(path)
        names = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or (len(names) != 1 and "task" not in names):
            raise ValueError(f"{path}: columns {table.column_names} instead of task and task_index")
        sentences = table["task" if "task" in names else names[0]].to_pylist()
        pairs = list(zip(whole_numbers(path, "task_index", table["task_index"]), sentences, strict=True))
    else:
        path = root / layout.TASKS_V2
        if not path.is_file():  # there may be sentences in a column, or one for all
            return {}
        rows = _read_lines(path, ("task_index", "task"))
        pairs = [(_whole(path, "task_index", row["task_index"]), row["task"]) for row in rows]
    tasks: dict[int, str | None] = {}
    for index, task in pairs:
        if index in tasks:
            raise ValueError(f"{path}: two tasks have the index {index}: {show(tasks[index])} and {show(task)}")
        if not isinstance(task, str | None):
            raise ValueError(f"{path}: task {index} is {show(task)} and no sentence")
        tasks[index] = task
    return tasks


def _episodes_v3(root: Path, paths: Mapping[str, Any], videos: list[str], fps: int | float) -> tuple[Episode, ...]:
    listed = sorted(path for path in (root / "meta/episodes").rglob("*.parquet") if not path.name.startswith("."))
    listed = listed or [root / layout.EPISODES.format(chunk_index=0, file_index=0)]
    required = ("episode_index", "length", "data/chunk_index", "data/file_index")
    keys = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    optional = [f"videos/{video}/{key}" for video in videos for key in keys]
    rows: list[dict[str, Any]] = []
    for path in listed:
        table = read_table(path, required, optional=optional)
        numbers = {name: whole_numbers(path, name, table[name]) for name in required}
        rest = {name: table[name].to_pylist() for name in table.column_names if name not in required}
        columns = numbers | rest
        rows += [dict(zip(columns, values, strict=True)) | {"path": path} for values in zip(*columns.values(), strict=True)]
    if not rows:
        raise ValueError(f"{listed[0]}: no episodes")
    rows.sort(key=lambda row: row["episode_index"])
    _check_numbers([(row["path"], row["episode_index"], row["length"]) for row in rows])
    data_path, video_path = paths["data_path"] or layout.DATA, paths["video_path"] or layout.VIDEO
    spans: dict[Path, list[tuple[int, int, int]]] = {}  # of each video: first frame, last one exclusive, episode
    parts: list[dict[str, VideoPart]] = []
    for row in rows:
        found = {}
        for video in videos:
            place = {key: row.get(f"videos/{video}/{key}") for key in keys}
            if any(value is None or value != value for value in (place[key] for key in keys[:3])):
                continue  # a feature without files
            numbers = {key: _whole(row["path"], f"videos/{video}/{key}", place[key]) for key in keys[:2]}
            file = _formatted(root, video_path, video_key=video, **numbers)
            if not file.is_file():
                continue
            first = _first_frame(row, video, place["from_timestamp"], place["to_timestamp"], fps)
            spans.setdefault(file, []).append((first, first + row["length"], row["episode_index"]))
            found[video] = VideoPart(file, first)
        parts.append(found)
    for file, used in spans.items():
        for (_, end, one), (first, _, other) in pairwise(sorted(used)):
            if first < end:
                raise ValueError(f"{root / 'meta/episodes'}: episodes {one} and {other} have the same frames of {file}")
    return tuple(
        Episode(
            row["episode_index"],
            row["length"],
            _formatted(root, data_path, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]),
            found,
        )
        for row, found in zip(rows, parts, strict=True)
    )


def _first_frame(row: Mapping[str, Any], video: str, start: Any, end: Any, fps: int | float) -> int:
    """The number of an episode's first frame in its video, from the times in its row, which also say how many frames it has."""
    for time in (start, end):
        number = isinstance(time, int | float) and not isinstance(time, bool)
        if not (number and 0 <= time * fps < 2**53) and not (time is end and time is None):
            raise ValueError(f"{row['path']}: of episode {row['episode_index']}, {show(time)} is no time in videos/{video}")
    first = round(start * fps)
    if end is not None and round(end * fps) - first != row["length"]:
        found = f"videos/{video} spans {round(end * fps) - first} frames ({start:g} to {end:g} s)"
        raise ValueError(f"{row['path']}: of episode {row['episode_index']}, {found}, but its length is {row['length']}")
    return first


def _episodes_v2(root: Path, paths: Mapping[str, Any], videos: list[str], chunks_size: int) -> tuple[Episode, ...]:
    path = root / layout.EPISODES_V2
    rows = _read_lines(path, ("episode_index", "length"))
    if not rows:
        raise ValueError(f"{path}: no episodes")
    found = [(_whole(path, "episode_index", row["episode_index"]), _whole(path, "length", row["length"])) for row in rows]
    found.sort()
    _check_numbers([(path, index, length) for index, length in found])
    # Some datasets' paths do not lead to their files, which then are found by their names.
    by_name = {file.relative_to(root).parts[-2:]: file for file in root.glob("videos/*/*/*.mp4")}
    data_by_name = {file.name: file for file in (root / "data").rglob("*.parquet") if not file.name.startswith(".")}
    episodes = []
    for index, length in found:
        place = {"episode_chunk": index // chunks_size, "episode_index": index}
        data_file = _formatted(root, paths["data_path"] or layout.DATA_V2, **place)
        if not data_file.is_file():
            data_file = data_by_name.get(data_file.name, data_file)
        parts = {}
        for video in videos:
            file = _formatted(root, paths["video_path"] or layout.VIDEO_V2, video_key=video, **place)
            file = file if file.is_file() else by_name.get((video, file.name), file)
            if file.is_file():
                parts[video] = VideoPart(file, 0)
        episodes.append(Episode(index, length, data_file, parts))
    return tuple(episodes)


def _check_numbers(rows: list[tuple[Path, int, int]]) -> None:
    """Each episode has a number of its own, and at least one frame. `rows` are sorted by number."""
    before = None
    for path, index, length in rows:
        if index == before or index < 0:
            raise ValueError(f"{path}: {'two episodes have' if index == before else 'an episode has'} the number {index}")
        if not 1 <= length <= MOST_FRAMES:
            raise ValueError(f"{path}: episode {index} has the length {length}")
        before = index


def _formatted(root: Path, pattern: str, **values: Any) -> Path:
    with as_value_error(f"{root / layout.INFO}: the path {pattern!r} cannot be filled in", Exception):
        return root / pattern.format(**values)


def _whole(path: Path, name: str, value: Any) -> int:
    if not is_whole(value):
        raise ValueError(f"{path}: {name}={show(value)} is not an integer")
    return int(value)


def _read_lines(path: Path, required: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    rows = []
    for number, line in enumerate(files.require_file(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if missing := [name for name in required if not isinstance(row, dict) or name not in row]:
            raise ValueError(f"{path}, line {number}: no {missing[0]!r}")
        rows.append(row)
    return rows
