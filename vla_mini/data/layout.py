"""How a LeRobotDataset v3.0 lies on disk: the names of its files and columns, and their types.

    meta/info.json, stats.json, tasks.parquet, episodes/…   what there is
    data/chunk-000/file-000.parquet, …                      a row a frame, a row group an episode, images encoded inside

Source: lerobot 0.4.4 (lerobot/datasets/utils.py, lerobot_dataset.py); data/README.md describes it for users.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_mini.features import Features

VERSION = "v3.0"
INFO = "meta/info.json"
STATISTICS = "meta/stats.json"
MANIFEST = "meta/manifest.json"  # ours: the SHA-256 of each other file; info.json names it, so that it is missed
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
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
    """All files of the dataset at `root` but the manifest."""
    found = [*sorted((root / "meta").rglob("*")), *sorted((root / "data").rglob("*.parquet"))]
    return [path for path in found if path.is_file() and path != root / MANIFEST]


def describe_features(features: Features) -> dict[str, dict[str, Any]]:
    """Every column of the data files, as meta/info.json lists them: name -> dtype, shape, names."""
    height, width = features.image_size
    images = {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    return {
        **{IMAGES + camera: images for camera in features.cameras},
        STATE: {"dtype": "float32", "shape": [features.state_size], "names": list(features.state)},
        ACTION: {"dtype": "float32", "shape": [features.action_size], "names": list(features.action)},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in BOOKKEEPING.items()},
    }


def data_schema(features: Features) -> pa.Schema:
    """The Arrow schema of the data files, with the feature description that Hugging Face `datasets` looks for."""
    columns: dict[str, tuple[pa.DataType, dict[str, Any]]] = {}
    for camera in features.cameras:
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns[IMAGES + camera] = (image, {"_type": "Image"})
    for name, size in ((STATE, features.state_size), (ACTION, features.action_size)):
        columns[name] = _vector(size)
    for name, dtype in BOOKKEEPING.items():
        columns[name] = (_ARROW[dtype], {"dtype": dtype, "_type": "Value"})
    described = {"info": {"features": {name: feature for name, (_, feature) in columns.items()}}}
    schema = pa.schema([(name, arrow) for name, (arrow, _) in columns.items()])
    return schema.with_metadata({"huggingface": json.dumps(described)})


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet: to pandas, a frame indexed by the task's words; row position equals task_index."""
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
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def nested_lists(array: np.ndarray) -> pa.Array:
    """(rows, ...) -> a column of `rows` lists, of lists, as deep as the array."""
    column = pa.array(array.ravel())
    for size in reversed(array.shape[1:]):
        column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
    return column


_ARROW = {"float32": pa.float32(), "int64": pa.int64()}


def _vector(size: int) -> tuple[pa.DataType, dict[str, Any]]:
    """A fixed-length list of float32, except that LeRobot keeps vectors of one element as plain numbers."""
    number = {"dtype": "float32", "_type": "Value"}
    if size == 1:
        return pa.float32(), number
    return pa.list_(pa.float32(), size), {"feature": number, "length": size, "_type": "List"}
