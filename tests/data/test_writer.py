"""What the writer promises: LeRobot's layout, all or nothing, the same bytes for the same episodes."""

import io
import json
import subprocess
import sys

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vla_mini.data.lerobot import layout
from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode, encode_png


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 1, 3), (5, 300, 3)])
def test_png_is_lossless_and_sound(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    decoded = Image.open(io.BytesIO(encode_png(image)))
    decoded.verify()
    decoded = Image.open(io.BytesIO(encode_png(image)))
    assert decoded.format == "PNG" and decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), image)


def test_info_is_what_lerobot_expects(dataset):
    info = json.loads((dataset / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "made_up",
        "total_episodes": 5,
        "total_frames": 23,
        "total_tasks": 3,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 5,
        "splits": {"train": "0:4", "validation": "4:5"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "manifest": "meta/manifest.json",
    }
    image = {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channels"]}
    assert features["observation.images.front"] == features["observation.images.wrist"] == image
    assert features["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "closed"]}
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "close"]}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        assert features[name] == {"dtype": "int64", "shape": [1], "names": None}


def test_data_file_has_a_row_group_an_episode_and_the_feature_description(made_up, dataset):
    parquet = pq.ParquetFile(dataset / "data/chunk-000/file-000.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == list(made_up.lengths)
    schema = parquet.schema_arrow
    described = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(described) == schema.names
    assert described["observation.images.front"] == {"_type": "Image"}
    assert described["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 2, "_type": "List"}
    assert schema.field("action").type == pa.list_(pa.float32(), 2)
    rows = parquet.read().to_pandas()
    np.testing.assert_allclose(rows["timestamp"], rows["frame_index"] / 5)
    assert rows["index"].tolist() == list(range(23))
    assert rows["frame_index"].tolist() == [frame for length in made_up.lengths for frame in range(length)]
    assert rows["task_index"].tolist() == np.repeat([0, 1, 0, 2, 1], made_up.lengths).tolist()


def test_tasks_are_a_pandas_frame_indexed_by_the_instructions(made_up, dataset):
    tasks = pandas.read_parquet(dataset / "meta/tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks.index.tolist() == list(dict.fromkeys(made_up.tasks)) and tasks["task_index"].tolist() == [0, 1, 2]


def test_episodes_tell_where_their_frames_are(made_up, dataset, truth):
    episodes = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [e["length"] for e in episodes] == list(made_up.lengths)
    assert [e["dataset_to_index"] for e in episodes] == np.cumsum(made_up.lengths).tolist()
    assert [e["tasks"] for e in episodes] == [[task] for task in made_up.tasks]
    for episode, images, states in zip(episodes, truth.images, truth.states, strict=True):
        np.testing.assert_allclose(episode["stats/observation.state/mean"], states.mean(0, dtype=np.float64))
        np.testing.assert_allclose(episode["stats/index/max"], [episode["dataset_to_index"] - 1])
        lowest = images[::8, 1].min(axis=(0, 1, 2)) / 255  # every eighth frame is counted
        np.testing.assert_allclose(episode["stats/observation.images.wrist/min"], lowest[:, None, None])
        assert episode["stats/observation.images.wrist/count"] == [len(images[::8])]


def test_stats_cover_all_episodes(dataset, truth):
    stats = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate(truth.actions).astype(np.float64)
    for name, expected in {"min": actions.min(0), "std": actions.std(0), "q10": np.quantile(actions, 0.1, 0)}.items():
        np.testing.assert_allclose(stats["action"][name], expected)
    assert stats["action"]["count"] == [23]
    pixels = np.concatenate([images[::8, 0] for images in truth.images]) / 255
    image = stats["observation.images.front"]
    np.testing.assert_allclose(np.ravel(image["mean"]), pixels.mean(axis=(0, 1, 2)))
    assert np.shape(image["q99"]) == (3, 1, 1) and image["count"] == [len(pixels)]
    assert set(image) == set(stats["timestamp"]) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def test_files_are_split_by_size_between_episodes(made_up, tmp_path, monkeypatch):
    truth = made_up.truth(lengths=(100,) * 6)
    one_episode = 100 * 2 * 6 * 8 * 3 / 2**20  # noise does not compress; the rest of a row is less than half of its images
    monkeypatch.setattr(layout, "DATA_FILE_MEGABYTES", 1.5 * one_episode)
    made_up.write(tmp_path / "split", truth)
    files = sorted((tmp_path / "split/data").rglob("*.parquet"))
    assert [file.name for file in files] == ["file-000.parquet", "file-001.parquet", "file-002.parquet"]
    assert [pq.ParquetFile(file).metadata.num_rows for file in files] == [200, 200, 200]
    episodes = pq.read_table(tmp_path / "split/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["data/file_index"].to_pylist() == [0, 0, 1, 1, 2, 2]


def test_same_episodes_give_the_same_bytes(made_up, tmp_path, truth):
    def contents(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first, second = made_up.write(tmp_path / "a", truth), made_up.write(tmp_path / "b", truth)
    assert contents(first) == contents(second)


def test_an_interrupted_writer_leaves_nothing(made_up, tmp_path, truth):
    with (
        pytest.raises(KeyboardInterrupt),
        DatasetWriter(tmp_path / "d", features=made_up.features, robot_type="r") as writer,
    ):
        images = {camera: truth.images[0][:, 0] for camera in made_up.features.cameras}
        writer.add_episode(encode_episode(images, states=truth.states[0], actions=truth.actions[0], task="t"))
        assert list(tmp_path.iterdir()), "it must have been writing"
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_dataset(tmp_path):
    code = f"""
import os, numpy as np
from vla_mini.data.lerobot import layout
from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.utils.features import Features
features = Features(("top",), (4, 4), ("x",), ("dx",), 10)
writer = DatasetWriter({str(tmp_path / "d")!r}, features=features, robot_type="r")
images = {{"top": np.zeros((2, 4, 4, 3), np.uint8)}}
writer.add_episode(encode_episode(images, states=np.zeros((2, 1)), actions=np.zeros((2, 1)), task="t"))
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -9
    assert not (tmp_path / "d").exists() and list(tmp_path.glob(".d.partial-*"))
    assert not list(tmp_path.rglob("info.json"))


@pytest.mark.parametrize("what", ["file", "folder", "under a file"])
def test_an_output_in_the_way_is_refused_and_untouched(made_up, tmp_path, what):
    root = tmp_path / "d"
    if what == "folder":
        root.mkdir()
        (root / "precious").write_text("mine")
    else:
        root.write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"output='.*d"):
        DatasetWriter(root / "deeper" if what == "under a file" else root, features=made_up.features, robot_type="r")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_empty_folder_is_filled(made_up, tmp_path, truth):
    (tmp_path / "d").mkdir()
    assert (made_up.write(tmp_path / "d", truth) / "meta/info.json").is_file()
