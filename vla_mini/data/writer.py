"""Episodes -> a LeRobotDataset v3.0 on disk: all of it or nothing.

`encode_episode` turns images uint8 (t, h, w, 3), states (t, s) and actions (t, a) into PNGs and numbers, in any
process; `DatasetWriter` takes such episodes in order, in one process. It writes into `<root>.partial-<process>`, whose
meta/info.json comes last, and renames that to `root` when everything is on the disk. No torch, no pandas, no clock: the
same episodes give the same bytes.
"""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_mini import files
from vla_mini.data import layout
from vla_mini.data.statistics import EpisodeStatistics, count_pixels
from vla_mini.features import Features

# zlib's quickest setting: higher ones take twice as long to save a tenth of the bytes.
PNG_COMPRESSION = 1
# Pixel statistics look at every eighth frame; neighbours hardly differ.
PIXEL_STRIDE = 8


class EncodedEpisode(NamedTuple):
    """One demonstration, ready to be written; small enough to travel between processes."""

    images: dict[str, list[bytes]]  # camera -> a PNG a frame
    pixel_counts: dict[str, np.ndarray]  # camera -> (3, 256), over `num_counted` frames
    num_counted: int
    states: np.ndarray  # (t, s) float32
    actions: np.ndarray  # (t, a) float32
    task: str


def encode_episode(images: dict[str, np.ndarray], *, states: np.ndarray, actions: np.ndarray, task: str) -> EncodedEpisode:
    """Images uint8 (t, h, w, 3) by camera, states (t, s), actions (t, a) and the words -> what `add_episode` takes."""
    return EncodedEpisode(
        images={camera: [encode_png(image) for image in frames] for camera, frames in images.items()},
        pixel_counts={camera: count_pixels(frames[::PIXEL_STRIDE]) for camera, frames in images.items()},
        num_counted=len(states[::PIXEL_STRIDE]),
        states=np.asarray(states, np.float32),
        actions=np.asarray(actions, np.float32),
        task=task,
    )


def encode_png(image: np.ndarray) -> bytes:
    """One uint8 image (h, w, 3) -> PNG, without loss.

    By hand, because Pillow tries five filters on each row of pixels: on drawn scenes that takes twice as long and gains
    nothing. Source of the format: https://www.w3.org/TR/png/ (no filter is a 0 before each row).
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, PNG_COMPRESSION)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


class DatasetWriter:
    """Writes episodes in the order they are added; `finish` makes the dataset appear at `root`.

    Use it as a context: left without `finish` (an exception, Ctrl-C) it removes what it wrote. A killed process leaves
    a `.partial-` folder without meta/info.json, which nothing takes for a dataset.

    Raises ValueError, before any work, when `root` exists and is not an empty folder, or cannot be written.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        features: Features,
        robot_type: str,
        data_file_megabytes: float = layout.DATA_FILE_MEGABYTES,
    ) -> None:
        self.features = features
        self.num_frames = 0
        self._robot_type = robot_type
        self._root = Path(root)
        self._bytes_per_file = data_file_megabytes * 2**20
        self._schema = layout.data_schema(features)
        self._statistics = EpisodeStatistics()
        self._episodes: list[dict[str, Any]] = []
        self._tasks: dict[str, int] = {}
        self._num_files = 0
        self._file: BinaryIO | None = None
        self._table_writer: pq.ParquetWriter | None = None
        self._partial = _start_folder(self._root)

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close_file()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)  # after `finish` there is nothing there

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    def add_episode(self, episode: EncodedEpisode) -> None:
        """Append one episode as one row group; files are split by size, never inside an episode."""
        length = len(episode.states)
        assert length > 0 and len(episode.actions) == length
        assert all(len(episode.images[camera]) == length for camera in self.features.cameras)
        if self._file is None or self._file.tell() >= self._bytes_per_file:
            self._open_file()
        numbers = self._bookkeeping(length, self._tasks.setdefault(episode.task, len(self._tasks)))
        self._table_writer.write_table(self._rows(episode, numbers))
        self._statistics.add(
            {layout.STATE: episode.states, layout.ACTION: episode.actions}
            | {name: column[:, None] for name, column in numbers.items()},
            pixel_counts={layout.IMAGES + camera: counts for camera, counts in episode.pixel_counts.items()},
            num_images=episode.num_counted,
        )
        self._episodes.append(self._describe(episode.task, length))
        self.num_frames += length

    def finish(self, *, splits: dict[str, tuple[int, int]]) -> None:
        """Write the meta files and move the dataset to `root`. `splits`: name -> (first, last exclusive) episode."""
        assert self.num_episodes > 0
        self._close_file()
        episodes = {name: [episode[name] for episode in self._episodes] for name in self._episodes[0]}
        statistics = {name: layout.nested_lists(array) for name, array in self._statistics.per_episode().items()}
        tables = {
            layout.TASKS: layout.tasks_table(list(self._tasks)),
            layout.EPISODES.format(chunk_index=0, file_index=0): pa.table(episodes | statistics),
        }
        for name, table in tables.items():
            path = self._partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
        _write_json(self._partial / layout.STATISTICS, self._statistics.whole())
        _write_json(self._partial / layout.INFO, self._info(splits))
        digests = files.digests(self._partial, layout.files_of(self._partial))
        (self._partial / layout.MANIFEST).write_text(files.manifest_text(digests), encoding="utf-8")
        _synchronise(self._partial)
        os.rename(self._partial, self._root)
        files.sync(self._root.parent)

    def _open_file(self) -> None:
        self._close_file()
        path = self._partial / layout.DATA.format(**_place(self._num_files))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")
        # PNGs never repeat: dictionaries and minima of them would cost time for nothing.
        self._table_writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="snappy",
            use_dictionary=False,
            write_statistics=[*layout.BOOKKEEPING],
            write_page_checksum=True,
        )
        self._num_files += 1

    def _close_file(self) -> None:
        if self._file is not None:
            self._table_writer.close()
            self._file.close()
            self._file = None

    def _bookkeeping(self, length: int, task_index: int) -> dict[str, np.ndarray]:
        """The numbering columns of the next episode, each (length,)."""
        frames = np.arange(length)
        columns = {
            "timestamp": frames / self.features.fps,
            "frame_index": frames,
            "episode_index": np.full(length, self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": np.full(length, task_index),
        }
        return {name: columns[name].astype(dtype) for name, dtype in layout.BOOKKEEPING.items()}

    def _rows(self, episode: EncodedEpisode, numbers: dict[str, np.ndarray]) -> pa.Table:
        names = pa.array([f"frame-{frame:06d}.png" for frame in range(len(episode.states))])
        arrays: list[pa.Array] = []
        for camera in self.features.cameras:
            pngs = pa.array(episode.images[camera], pa.binary())
            arrays.append(pa.StructArray.from_arrays([pngs, names], names=["bytes", "path"]))
        for vectors in (episode.states, episode.actions):
            flat, size = pa.array(vectors.ravel()), vectors.shape[1]
            arrays.append(flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size))
        arrays += [pa.array(column) for column in numbers.values()]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _describe(self, task: str, length: int) -> dict[str, Any]:
        place = _place(self._num_files - 1)
        return {
            "episode_index": self.num_episodes,
            "tasks": [task],
            "length": length,
            "data/chunk_index": place["chunk_index"],
            "data/file_index": place["file_index"],
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
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
            "fps": self.features.fps,
            "splits": {name: f"{first}:{last}" for name, (first, last) in splits.items()},
            "data_path": layout.DATA,
            "video_path": None,
            "manifest": layout.MANIFEST,
            "features": layout.describe_features(self.features),
        }


def _place(file: int) -> dict[str, int]:
    """Where the file of that number goes: LeRobot starts a new folder every thousand files."""
    chunk_index, file_index = divmod(file, layout.FILES_PER_CHUNK)
    return {"chunk_index": chunk_index, "file_index": file_index}


def _start_folder(root: Path) -> Path:
    """A fresh folder beside `root` to write in; refuses a `root` that would be overwritten or cannot be made."""
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}")
    try:
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            raise ValueError(f"output={str(root)!r} exists already; choose another folder or remove it first")
        root.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise ValueError(f"output={str(root)!r} cannot be written: {error.strerror}") from error
    return partial


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _synchronise(folder: Path) -> None:
    """Bring every file and folder below to the disk, so that a power cut cannot leave a dataset with holes."""
    for path in [*folder.rglob("*"), folder]:
        files.sync(path)
