"""Datasets as other programs write them: LeRobot v2.0, v2.1 and v3.0, with images or videos, and any row or key changed."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10


def picture(episode: int, frame: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth image that is another one for each frame, uint8 (*size, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin((rows * (1 + k) + columns * (2 - k)) / 9 + 0.7 * frame + 2 * episode) for k in range(3)]
    return np.uint8(127 + 120 * np.stack(waves, axis=-1))


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_video(path: Path, images: Sequence[np.ndarray], *, codec: str = "libx264", keyframes: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", keyframes
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decoded(path: Path) -> np.ndarray:
    """All frames of a video, decoded from its start by PyAV alone, (n, h, w, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def unchanged(value: Any) -> Any:
    return value


def record(
    root: Path,
    *,
    version: str = "v3.0",
    lengths: Sequence[int] = (5, 7, 4),
    numbers: Sequence[int] | None = None,
    cameras: Sequence[str] = ("observation.images.top",),
    video: str | None = None,
    size: tuple[int, int] = (32, 48),
    tasks: Sequence[str | None] = ("push it", "lift it"),
    image: Callable[[int, int, str], bytes] | None = None,
    rows: Callable[[pa.Table], pa.Table] = unchanged,
    episodes: Callable[[list[dict]], list[dict]] = unchanged,
    info: Callable[[dict], Any] = unchanged,
    task_rows: Callable[[list[dict]], list[dict]] = unchanged,
) -> Path:
    """Write a dataset to `root`, which is returned.

    - numbers: of the episodes; default: 0, 1 ...
    - video: a codec, or None for images
    - image: (episode, frame, camera) -> encoded image
    - rows, episodes, info, task_rows: change the table of a data file, the rows of the episodes, info.json, the tasks
    """
    numbers = list(range(len(lengths))) if numbers is None else list(numbers)
    starts = np.cumsum([0, *lengths])
    rng = np.random.default_rng(0)
    states, actions = (rng.uniform(-1, 1, (starts[-1], 3)).astype(np.float32) for _ in range(2))
    image = image or (lambda episode, frame, camera: encode(picture(episode, frame, size)))
    tables = []
    for place, length in enumerate(lengths):
        columns: dict[str, Any] = {}
        if video is None:
            for camera in cameras:
                values = [{"bytes": image(place, frame, camera), "path": None} for frame in range(length)]
                columns[camera] = pa.array(values, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        kept = slice(starts[place], starts[place + 1])
        columns |= {"observation.state": pa.array(states[kept].tolist(), pa.list_(pa.float32()))}
        columns |= {"action": pa.array(actions[kept].tolist(), pa.list_(pa.float32()))}
        columns |= {"timestamp": pa.array([frame / FPS for frame in range(length)], pa.float32())}
        columns |= {"frame_index": list(range(length)), "episode_index": [numbers[place]] * length}
        columns |= {"index": list(range(kept.start, kept.stop)), "task_index": [place % len(tasks)] * length}
        tables.append(pa.table(columns))
    vector = {"dtype": "float32", "shape": [3], "names": None}
    described = {"dtype": "video" if video else "image", "shape": [*size, 3], "names": ["height", "width", "channels"]}
    about: dict[str, Any] = {"codebase_version": version, "fps": FPS, "splits": {"train": f"0:{len(lengths)}"}}
    about["features"] = {camera: dict(described) for camera in cameras} | {"observation.state": vector, "action": dict(vector)}
    task_lines = task_rows([{"task_index": index, "task": task} for index, task in enumerate(tasks)])
    rows_of = [{"episode_index": number, "length": length} for number, length in zip(numbers, lengths, strict=True)]
    (root / "meta").mkdir(parents=True)
    if version == "v3.0":
        about["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        about["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if video else None
        (root / "data/chunk-000").mkdir(parents=True)
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(rows(pa.concat_tables(tables)), root / "data/chunk-000/file-000.parquet")
        pq.write_table(pa.Table.from_pylist(task_lines), root / "meta/tasks.parquet")
        for place, row in enumerate(rows_of):
            row |= {"data/chunk_index": 0, "data/file_index": 0}
            for camera in cameras if video else ():
                times = {"from_timestamp": starts[place] / FPS, "to_timestamp": starts[place + 1] / FPS}
                row |= {f"videos/{camera}/{key}": value for key, value in {"chunk_index": 0, "file_index": 0, **times}.items()}
        pq.write_table(pa.Table.from_pylist(episodes(rows_of)), root / "meta/episodes/chunk-000/file-000.parquet")
        for camera in cameras if video else ():
            pictures = [picture(place, frame, size) for place, length in enumerate(lengths) for frame in range(length)]
            write_video(root / f"videos/{camera}/chunk-000/file-000.mp4", pictures, codec=video)
    else:
        about["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        about["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4" if video else None
        (root / "data/chunk-000").mkdir(parents=True)
        for place, number in enumerate(numbers):
            pq.write_table(rows(tables[place]), root / f"data/chunk-000/episode_{number:06d}.parquet")
            for camera in cameras if video else ():
                pictures = [picture(place, frame, size) for frame in range(lengths[place])]
                write_video(root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4", pictures, codec=video)
        write_lines(root / "meta/episodes.jsonl", episodes(rows_of))
        write_lines(root / "meta/tasks.jsonl", task_lines)
    info(about)
    (root / "meta/info.json").write_text(json.dumps(about))
    return root


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def replace(table: pa.Table, column: str, values: Any) -> pa.Table:
    """The table with another column of that name."""
    return table.set_column(table.column_names.index(column), column, values)


def change(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """The table with another value in one row; the type becomes what holds all values."""
    values = table[column].to_pylist()
    values[row] = value
    return replace(table, column, pa.array(values))
