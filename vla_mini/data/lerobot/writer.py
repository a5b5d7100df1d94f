"""Episodes -> a LeRobotDataset v3.0 on disk: all of it or nothing.

`encode_episode` turns images uint8 (t, h, w, 3), states (t, s) and actions (t, a) into PNGs and numbers, in any
process; `DatasetWriter` takes such episodes in order, in one process. It writes into `.<root>.partial-<process>`, whose
meta/info.json comes last, and renames that to `root` when everything is on the disk. No torch, no pandas, no clock: the
same episodes give the same bytes.
"""

import os
import shutil
import struct
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_mini.data.lerobot import layout
from vla_mini.data.statistics import EpisodeValues, count_pixels, describe_dataset, describe_episode
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.features import Features

# zlib's fastest setting: higher ones take twice as long to save a tenth of the bytes.
PNG_COMPRESSION = 1
# Pixel statistics are those of every eighth frame; neighbours hardly differ.
PIXEL_STRIDE = 8


class EncodedEpisode(NamedTuple):
    """One demonstration, ready to be written; small enough to travel between processes."""

    images: dict[str, list[bytes]]  # column -> a PNG for each frame
    pixel_counts: dict[str, np.ndarray]  # column -> (3, 256), over every PIXEL_STRIDE-th frame
    states: np.ndarray  # (t, s) float32
    actions: np.ndarray  # (t, a) float32
    task: str


def encode_episode(images: dict[str, np.ndarray], *, states: np.ndarray, actions: np.ndarray, task: str) -> EncodedEpisode:
    """Images uint8 (t, h, w, 3) by camera, states (t, s), actions (t, a) and the instruction -> what `add_episode` takes."""
    columns = {layout.IMAGES + camera: frames for camera, frames in images.items()}
    return EncodedEpisode(
        images={name: [encode_png(image) for image in frames] for name, frames in columns.items()},
        pixel_counts={name: count_pixels(frames[::PIXEL_STRIDE]) for name, frames in columns.items()},
        states=np.asarray(states, np.float32),
        actions=np.asarray(actions, np.float32),
        task=task,
    )


def save_episode(path: Path, episode: EncodedEpisode | None) -> None:
    """Write an episode, or that there is none, to a file from which `load_episode` reads it again."""
    arrays: dict[str, np.ndarray] = {}
    if episode is not None:
        arrays = {"states": episode.states, "actions": episode.actions, "task": np.array(episode.task)}
        for name, pngs in episode.images.items():
            arrays[f"lengths/{name}"] = np.array([len(png) for png in pngs])
            arrays[f"pngs/{name}"] = np.frombuffer(b"".join(pngs), np.uint8)
            arrays[f"counts/{name}"] = episode.pixel_counts[name]
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_episode(path: Path) -> EncodedEpisode | None:
    with np.load(path) as arrays:
        if "task" not in arrays:
            return None
        images, counts = {}, {}
        for name in (key.removeprefix("pngs/") for key in arrays if key.startswith("pngs/")):
            pngs, ends = arrays[f"pngs/{name}"].tobytes(), np.cumsum(arrays[f"lengths/{name}"]).tolist()
            images[name] = [pngs[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            counts[name] = arrays[f"counts/{name}"]
        return EncodedEpisode(images, counts, arrays["states"], arrays["actions"], arrays["task"].item())


def encode_png(image: np.ndarray) -> bytes:
    """One uint8 image (h, w, 3) -> PNG, without loss.

    Not by Pillow, which tries five filters on each row of pixels: on drawn scenes that takes twice as long and saves no
    space. Source of the format: https://www.w3.org/TR/png/ (a 0 before each row means that it has no filter).
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, PNG_COMPRESSION)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


class DatasetWriter:
    """Writes episodes in the order in which they are added; `finish` moves the dataset to `root`.

    Use it as a context: left without `finish` (an exception, Ctrl-C) it removes what it wrote. A killed process leaves
    a `.partial-` folder without meta/info.json, which is no dataset.

    Raises ValueError, before any work, when `root` exists and is not an empty folder, or cannot be written.
    """

    def __init__(self, root: str | Path, *, features: Features, robot_type: str) -> None:
        self.num_episodes = self.num_frames = 0
        self._root, self._features, self._robot_type = Path(root), features, robot_type
        self._schema = layout.data_schema(features)
        self._values: list[EpisodeValues] = []
        self._episodes: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._num_files = 0
        self._open_files = ExitStack()
        with as_value_error(f"output={str(root)!r} cannot be written", OSError):
            if self._root.is_file() or (self._root.is_dir() and any(self._root.iterdir())):
                raise ValueError(f"output={str(root)!r} exists already; choose another folder or remove it first")
            self._partial = files.make_temporary_folder(self._root)

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._open_files.close()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)  # after `finish` there is nothing there

    def add_episode(self, episode: EncodedEpisode) -> None:
        """Append one episode as one row group; files are split by size, never inside an episode."""
        length = len(episode.states)
        assert length > 0
        vectors = self._vectors(episode)
        columns: dict[str, Any] = {name: list(rows) if rows.shape[1] > 1 else rows[:, 0] for name, rows in vectors.items()}
        for name, pngs in episode.images.items():
            columns[name] = [{"bytes": png, "path": f"frame-{i:06d}.png"} for i, png in enumerate(pngs)]
        if self._num_files == 0 or self._file.tell() >= layout.DATA_FILE_MEGABYTES * 2**20:
            self._open_file()
        self._table_writer.write_table(pa.table(columns, schema=self._schema))
        self._values.append(EpisodeValues(vectors, episode.pixel_counts, num_images=len(episode.states[::PIXEL_STRIDE])))
        row = {
            "episode_index": self.num_episodes,
            "tasks": [episode.task],
            "length": length,
            **{f"data/{name}": index for name, index in _file_location(self._num_files - 1).items()},
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
            **{f"meta/episodes/{name}": index for name, index in _file_location(0).items()},
        }
        for feature, described in describe_episode(self._values[-1]).items():
            row |= {f"stats/{feature}/{statistic}": value for statistic, value in described.items()}
        self._episodes.append(row)
        self.num_episodes += 1
        self.num_frames += length

    def finish(self, *, splits: dict[str, tuple[int, int]]) -> None:
        """Write the meta files and move the dataset to `root`. `splits`: name -> (first, last exclusive) episode."""
        assert self.num_episodes > 0
        self._open_files.close()
        path = self._partial / layout.EPISODES.format(**_file_location(0))
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), path)
        pq.write_table(layout.tasks_table(list(self._tasks)), self._partial / layout.TASKS)
        files.write_json(self._partial / layout.STATISTICS, describe_dataset(self._values), indent=4)
        files.write_json(self._partial / layout.INFO, self._info(splits), indent=4)
        checksums = files.digests(self._partial, layout.files_of(self._partial))
        files.write_manifest(self._partial, layout.MANIFEST, checksums)
        files.sync_tree(self._partial)
        os.rename(self._partial, self._root)  # Fails where another process has put a dataset there meanwhile.
        files.sync(self._root.parent)

    def _open_file(self) -> None:
        self._open_files.close()
        path = self._partial / layout.DATA.format(**_file_location(self._num_files))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open_files.enter_context(path.open("xb"))
        # PNGs never repeat: dictionaries and minima of them would cost time for nothing.
        options = {"use_dictionary": False, "write_statistics": [*layout.BOOKKEEPING], "write_page_checksum": True}
        self._table_writer = self._open_files.enter_context(pq.ParquetWriter(self._file, self._schema, **options))
        self._num_files += 1

    def _vectors(self, episode: EncodedEpisode) -> dict[str, np.ndarray]:
        """Every column of the next episode but its images, each (t, d)."""
        frames = np.arange(len(episode.states))[:, None]
        return {
            layout.STATE: episode.states,
            layout.ACTION: episode.actions,
            "timestamp": (frames / self._features.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full_like(frames, self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": np.full_like(frames, self._tasks.setdefault(episode.task, len(self._tasks))),
        }

    def _info(self, splits: dict[str, tuple[int, int]]) -> dict[str, Any]:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": layout.DATA_FILE_MEGABYTES,
            "video_files_size_in_mb": layout.VIDEO_FILE_MEGABYTES,
            "fps": self._features.fps,
            "splits": {name: f"{first}:{last}" for name, (first, last) in splits.items()},
            "data_path": layout.DATA,
            "video_path": None,
            "manifest": layout.MANIFEST,
            "features": layout.describe_features(self._features),
        }


def _file_location(file: int) -> dict[str, int]:
    """The folder and the name of the file of that number: LeRobot starts a new folder every thousand files."""
    return dict(zip(("chunk_index", "file_index"), divmod(file, layout.FILES_PER_CHUNK), strict=True))
