"""Reading back what was written, reading what other programs wrote, and naming the file that is broken."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vla_mini.data import frames
from vla_mini.data.lerobot import layout
from vla_mini.data.reader import read_dataset
from vla_mini.utils.features import Features

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def rewrite(path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_round_trip(made_up, dataset, truth):
    read = read_dataset(dataset)
    assert read.features == made_up.features
    assert read.splits == {"train": (0, 4), "validation": (4, 5)}
    assert (read.episode_ends - read.episode_starts).tolist() == list(made_up.lengths)
    np.testing.assert_array_equal(read.frames, np.concatenate(truth.images).transpose(0, 1, 4, 2, 3))
    np.testing.assert_array_equal(read.states, np.concatenate(truth.states))
    np.testing.assert_array_equal(read.actions, np.concatenate(truth.actions))
    assert [read.tasks[i] for i in read.task_index] == np.repeat(made_up.tasks, made_up.lengths).tolist()
    np.testing.assert_allclose(read.statistics.state.mean, np.concatenate(truth.states[:4]).mean(0), rtol=1e-5)
    assert isinstance(read.frames, np.memmap)
    assert np.shares_memory(torch.from_numpy(read.frames).numpy(), read.frames)  # of a read-only map torch would warn


def test_vectors_of_one_element_and_many_files(made_up, tmp_path, monkeypatch):
    features = Features(("top",), (4, 4), ("x",), ("dx",), 10)
    truth = made_up.truth(features, lengths=(7, 2000, 3))  # more than one block of frames
    monkeypatch.setattr(layout, "DATA_FILE_MEGABYTES", 1e-6)
    read = read_dataset(made_up.write(tmp_path / "d", truth, features=features))
    assert len(list((tmp_path / "d/data").rglob("*.parquet"))) == 3
    np.testing.assert_array_equal(read.frames, np.concatenate(truth.images).transpose(0, 1, 4, 2, 3))
    np.testing.assert_array_equal(read.actions, np.concatenate(truth.actions))


def test_a_second_start_decodes_nothing_and_a_changed_dataset_is_decoded_again(made_up, dataset, tmp_path, truth, monkeypatch):
    first = read_dataset(dataset)
    moved = tmp_path / "elsewhere"
    shutil.copytree(dataset, moved)
    with monkeypatch.context() as patch:
        patch.setattr(frames, "_decode_all", lambda *_, **__: pytest.fail("decoded again"))
        assert read_dataset(dataset).fingerprint == read_dataset(moved).fingerprint == first.fingerprint
    other = truth._replace(images=[255 - images for images in truth.images])
    changed = read_dataset(made_up.write(tmp_path / "changed", other))
    assert changed.fingerprint != first.fingerprint
    np.testing.assert_array_equal(changed.frames, 255 - first.frames)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[::-1], lambda data: data[:-1] + b"?"])
def test_a_damaged_cache_is_named_and_decoded_again(dataset, tmp_path, damage):
    expected = read_dataset(dataset).frames.copy()
    cache, manifest = sorted((tmp_path / ".cache").glob("[!.]*"))
    cache.write_bytes(damage(cache.read_bytes()))
    with pytest.warns(UserWarning, match=f"{cache.name} is damaged: its images are decoded again"):
        np.testing.assert_array_equal(read_dataset(dataset).frames, expected)
    np.testing.assert_array_equal(read_dataset(dataset).frames, expected)
    assert sorted((tmp_path / ".cache").glob("[!.]*")) == [cache, manifest]
    manifest.unlink()  # as a process leaves it that is killed between the two files
    np.testing.assert_array_equal(read_dataset(dataset).frames, expected)
    assert manifest.is_file()


def test_a_dataset_of_ours_without_its_manifest_is_refused(dataset):
    (dataset / "meta/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"meta/manifest\.json is missing"):
        read_dataset(dataset)


def test_writing_to_frames_does_not_reach_the_cache(dataset):
    read = read_dataset(dataset)
    before = read.frames[0].copy()
    read.frames[0] = 0
    np.testing.assert_array_equal(read_dataset(dataset).frames[0], before)


@pytest.mark.parametrize("num_episodes, validation", [(1, None), (5, [2, 4]), (60, [57, 58, 59])])
def test_without_a_validation_split_each_task_that_has_two_episodes_gets_one(made_up, tmp_path, num_episodes, validation):
    truth = made_up.truth(lengths=(2,) * num_episodes)
    root = made_up.write(tmp_path / "d", truth, splits={"train": (0, num_episodes)})
    if validation is None:
        with pytest.raises(ValueError, match="there is one episode alone, and validation needs another"):
            read_dataset(root)
        return
    read = read_dataset(root)
    first, last = read.splits["validation"]
    assert read.splits["train"] == (0, first) and last == num_episodes
    assert read.episode_index.tolist() == [*(e for e in range(num_episodes) if e not in validation), *validation]
    held_out = {made_up.tasks[read.episode_index[e] % len(made_up.tasks)] for e in range(first, last)}
    assert held_out == {task for task in made_up.tasks if num_episodes > 5 or made_up.tasks.count(task) > 1}
    order = np.concatenate([truth.states[e] for e in read.episode_index])
    np.testing.assert_array_equal(read.states, order)
    pixels = np.concatenate([truth.images[e] for e in read.episode_index]).transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(read.frames, pixels)


def test_variations_of_the_format_are_read(made_up, dataset, truth):
    """Lists of any length, names in groups or absent, float frame rates, an unnamed pandas index, channels first."""
    info = json.loads((dataset / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = {"motors": ["a", "b", "c"]}
    info["features"]["action"]["names"] = None
    info["features"]["observation.images.front"]["shape"] = [3, 6, 8]
    info["features"]["observation.image"] = info["features"].pop("observation.images.front")
    made_up.edit_info(dataset, features=info["features"], fps=5.0)

    def loosen(table):
        columns = {name: table[name] for name in table.column_names}
        columns["action"] = columns["action"].cast(pa.list_(pa.float64()))
        columns["observation.image"] = columns.pop("observation.images.front")
        return pa.table(columns)

    rewrite(dataset / DATA, loosen)
    rewrite(dataset / "meta/tasks.parquet", lambda t: t.rename_columns(["task_index", "__index_level_0__"]))
    read = read_dataset(dataset)
    assert read.features == Features(("wrist", "image"), (6, 8), ("a", "b", "c"), ("action_0", "action_1"), 5)
    assert read.tasks == tuple(dict.fromkeys(made_up.tasks))
    np.testing.assert_array_equal(read.actions, np.concatenate(truth.actions))
    np.testing.assert_array_equal(read.frames[:, 1], np.concatenate(truth.images)[:, 0].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", EPISODES, DATA])
@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_broken_file_is_named(dataset, name, damage):
    path = dataset / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.raises(ValueError) as error:
        read_dataset(dataset)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_one_flipped_bit_is_found_without_our_checksums_too(made_up, dataset):
    made_up.edit_info(dataset)
    path = dataset / DATA
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="file-000"):
        read_dataset(dataset)
    assert not list((dataset.parent / ".cache").glob("[!.]*"))  # not even the frames before it


def broken_image(table):
    column = table["observation.images.wrist"].combine_chunks()
    pngs = column.field("bytes").to_pylist()
    pngs[7] = pngs[7][:40]
    images = pa.StructArray.from_arrays([pa.array(pngs), column.field("path")], names=["bytes", "path"])
    return table.set_column(table.column_names.index("observation.images.wrist"), "observation.images.wrist", images)


@pytest.mark.parametrize(
    "change, message",
    [
        (broken_image, "file-000.parquet, row 7: it is not an image that Pillow can read"),
        (lambda table: table.drop_columns(["observation.images.wrist"]), "file-000.parquet.*observation.images.wrist"),
        (lambda table: table.drop_columns(["action"]), "file-000.parquet.*action"),
        (lambda table: table.slice(1), "file-000.parquet: 22 rows, but its 5 episodes should have 23"),
    ],
)
def test_data_that_do_not_fit_are_refused(made_up, dataset, change, message, monkeypatch):
    monkeypatch.setattr(frames, "UNIT", 5)
    made_up.edit_info(dataset)
    rewrite(dataset / DATA, change)
    with pytest.raises(ValueError, match=message):
        read_dataset(dataset)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"codebase_version": "v1.6"}, "info.json: codebase_version='v1.6' is not one of LeRobot's formats v3.0, v2.1, v2.0"),
        ({"splits": {"train": "0:9", "validation": "9:10"}}, "splits="),
        ({"splits": {"train": "all"}}, "splits="),
    ],
)
def test_unsupported_info_is_refused(made_up, dataset, changes, message):
    made_up.edit_info(dataset, **changes)
    with pytest.raises(ValueError, match=message):
        read_dataset(dataset)


@pytest.mark.parametrize(
    "feature, change, message",
    [
        ("observation.images.wrist", {"dtype": "video"}, "the video of 'observation.images.wrist' is missing for episode 0"),
        ("observation.images.wrist", {"shape": [9, 8, 3]}, r"row 0: an image of \(6, 8\) pixels instead of \(9, 8\)"),
        ("action", None, "no feature 'action'"),
    ],
)
def test_features_that_cannot_be_used_are_refused(made_up, dataset, feature, change, message):
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features = {n: f | (change or {}) if n == feature else f for n, f in features.items() if change or n != feature}
    made_up.edit_info(dataset, features=features)
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(dataset)
    assert "\n" not in str(error.value)


def test_images_of_another_size_than_announced_are_refused(made_up, dataset):
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    for camera in made_up.features.cameras:
        features[f"observation.images.{camera}"]["shape"] = [8, 6, 3]
    made_up.edit_info(dataset, features=features)
    with pytest.raises(ValueError, match=r"row 0: an image of \(6, 8\) pixels instead of \(8, 6\)"):
        read_dataset(dataset)


def test_a_folder_without_a_dataset_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no LeRobot dataset"):
        read_dataset(tmp_path / "nothing")


def test_an_unwritable_cache_is_named(dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        read_dataset(dataset, cache=tmp_path / "file/cache")
