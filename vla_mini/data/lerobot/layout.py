"""The format of a LeRobotDataset on disk: the names of its files and columns, and the types of those that we write (v3.0).

    meta/info.json, stats.json, tasks.parquet, episodes/…   features, statistics, instructions, episodes
    data/chunk-000/file-000.parquet, …                      a row per frame, a row group per episode, images encoded inside

Source: lerobot 0.4.4 (lerobot/datasets/utils.py, lerobot_dataset.py); data/README.md describes it for users.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from vla_mini.utils.features import Features

VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
MANIFEST = "meta/manifest.json"  # ours: the SHA-256 of each other file; info.json names it
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# of the formats v2.0 and v2.1
TASKS_V2 = "meta/tasks.jsonl"
EPISODES_V2 = "meta/episodes.jsonl"
DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
FILES_PER_CHUNK = 1000
DATA_FILE_MEGABYTES = 100
VIDEO_FILE_MEGABYTES = 200

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def files_of(root: Path) -> list[Path]:
    """All files of the dataset at `root` but the manifest, and the hidden ones that macOS leaves."""
    patterns = {"meta": "*", "data": "*.parquet", "videos": "*.mp4"}
    found = [path for folder, pattern in patterns.items() for path in sorted((root / folder).rglob(pattern))]
    return [path for path in found if path.is_file() and not path.name.startswith(".") and path != root / MANIFEST]


def describe_features(features: Features) -> dict[str, dict[str, Any]]:
    """Every column of the data files, as meta/info.json lists them: name -> dtype, shape, names."""
    image = {"dtype": "image", "shape": [*features.image_size, 3], "names": ["height", "width", "channels"]}
    return {
        **{IMAGES + camera: image for camera in features.cameras},
        STATE: {"dtype": "float32", "shape": [features.state_size], "names": list(features.state)},
        ACTION: {"dtype": "float32", "shape": [features.action_size], "names": list(features.action)},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in BOOKKEEPING.items()},
    }


def data_schema(features: Features) -> pa.Schema:
    """The Arrow schema of the data files, with the feature description that Hugging Face `datasets` looks for."""
    types: dict[str, pa.DataType] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, feature in describe_features(features).items():
        dtype, size = feature["dtype"], feature["shape"][0]
        if dtype == "image":
            types[name], described[name] = pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Image"}
            continue
        types[name], described[name] = pa.type_for_alias(dtype), {"dtype": dtype, "_type": "Value"}
        if size > 1:  # LeRobot keeps vectors of one element as plain numbers.
            types[name] = pa.list_(types[name], size)
            described[name] = {"feature": described[name], "length": size, "_type": "List"}
    return pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet: for pandas, a frame indexed by the task's instruction; row position equals task_index."""
    columns = [
        {"name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "field_name": column["name"], "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": [*range(len(tasks))], "task": tasks})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})
