"""Datasets of other programs: formats, videos and oddities that are read, and contradictions that are named."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from tests.data.recordings import change, decoded, encode, picture, record, replace, write_video
from vla_mini.data import frames, reader
from vla_mini.data.lerobot.videos import read_frames, read_index
from vla_mini.data.reader import read_dataset

VERSIONS = ("v3.0", "v2.1", "v2.0")
FIRST = {"v3.0": "file-000.parquet", "v2.1": "episode_000000.parquet"}


def in_order(read, per_episode):
    """What belongs to the episodes, a list, in the order in which they were read."""
    return np.concatenate([per_episode[number] for number in read.episode_index])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("codec", [None, "libx264", "libx265", "mpeg4", "libsvtav1"])
def test_every_format_and_codec_gives_the_frames_that_decoding_from_the_start_gives(tmp_path, version, codec):
    lengths = (5, 7, 4)
    size = (64, 96)  # AV1's encoder takes no smaller ones
    root = record(tmp_path / "d", version=version, video=codec, lengths=lengths, size=size)
    videos = sorted(root.rglob("*.mp4"))
    if codec:
        pictures = np.concatenate([decoded(video) for video in videos])
    else:
        pictures = np.stack([picture(e, t, size) for e, length in enumerate(lengths) for t in range(length)])
    read = read_dataset(root)
    assert read.frames.shape == (16, 1, 3, 64, 96)
    np.testing.assert_array_equal(read.frames[:, 0], in_order(read, np.split(pictures, [5, 12])).transpose(0, 3, 1, 2))
    assert read.tasks == ("push it", "lift it")
    assert read.task_index.tolist() == in_order(read, [[0] * 5, [1] * 7, [0] * 4]).tolist()
    streamed = read_dataset(root, cache="none").frames
    assert streamed.shape == read.frames.shape and not isinstance(streamed, np.ndarray)
    rows = np.array([[9, 9, 2], [15, 0, 3]])
    np.testing.assert_array_equal(streamed.take(rows, axis=0), read.frames[rows])
    np.testing.assert_array_equal(streamed[3], read.frames[3])
    np.testing.assert_array_equal(streamed[4:9], read.frames[4:9])


@pytest.mark.parametrize("keyframes", [1, 2, 250])
def test_any_frames_of_a_video_are_those_of_decoding_it_whole(tmp_path, keyframes):
    """Also with frames that are predicted from later ones (B-frames), whose order in the file is another one."""
    write_video(tmp_path / "video.mp4", [picture(0, t, (32, 48)) for t in range(60)], keyframes=keyframes)
    expected = decoded(tmp_path / "video.mp4")
    assert len(read_index(tmp_path / "video.mp4").times) == len(expected) == 60
    rng = np.random.default_rng(0)
    for size in (1, 3, 20, 60):
        numbers = np.sort(rng.choice(60, size, replace=False))
        np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "video.mp4", numbers))), expected[numbers])


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("change_by", [-1, 1])
def test_a_video_of_other_frames_than_its_episode_is_named(tmp_path, version, change_by):
    root = record(tmp_path / "d", version=version, video="libx264")
    video = sorted(root.rglob("*.mp4"))[0]
    count = len(decoded(video)) + change_by
    write_video(video, [picture(0, t, (32, 48)) for t in range(count)])
    if version == "v3.0" and change_by == 1:
        read_dataset(root)  # the times say where each episode lies
        return
    with pytest.raises(ValueError, match=rf"{video} has {count} frames, but its episode says {count - change_by}"):
        read_dataset(root)


def test_damaged_videos_are_named(tmp_path):
    root = record(tmp_path / "d", version="v2.1", video="libx264")
    video = sorted(root.rglob("*.mp4"))[1]
    content = video.read_bytes()
    for damaged in (b"", b"no video", content[: len(content) // 2], content[: len(content) // 2] + bytes(len(content) // 2)):
        video.write_bytes(damaged)
        read_index.cache_clear()
        with pytest.raises(ValueError, match=video.name) as error:
            read_dataset(root)
        assert "\n" not in str(error.value)
    video.unlink()
    with pytest.raises(ValueError, match=r"the video of 'observation.images.top' is missing for episode 1 \(1 in all\)"):
        read_dataset(root)


# ---- oddities that are read


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"info": lambda info: info.update(codebase_version=3.0)}, {}),
        ({"info": lambda info: info.update(splits=None)}, {}),
        ({"info": lambda info: info["features"]["action"].update(shape=3)}, {}),
        ({"info": lambda info: info["features"]["action"].update(names=[["a", "b", "c"]])}, {"action": ("a", "b", "c")}),
        ({"info": lambda info: info["features"]["action"].update(names={"x": 0, "z": 2, "y": 1})}, {"action": ("x", "y", "z")}),
        (
            {"info": lambda info: info["features"]["action"].update(names={"motors": ["a", "a", "b"]})},
            {"action": ("a_0", "a_1", "b")},
        ),
        ({"episodes": lambda rows: [row | {"length": float(row["length"])} for row in rows]}, {}),
        ({"rows": lambda table: table.drop_columns(["timestamp", "frame_index", "index"])}, {}),
        (
            {"cameras": ("observation.images.top", "observation.top")},
            {"cameras": ("observation.images.top", "observation.top")},
        ),
        ({"cameras": ("image", "wrist_image")}, {"cameras": ("image",)}),
        ({"image": lambda e, t, c: encode(picture(e, t, (32, 48)), "JPEG")}, {}),
        (
            {
                "image": lambda e, t, c: encode(picture(e, t, (32, 48))[..., 0]),
                "info": lambda info: info["features"]["observation.images.top"].update(shape=[1, 32, 48]),
            },
            {},
        ),
        (
            {
                "image": lambda e, t, c: encode(np.dstack([picture(e, t, (32, 48)), np.full((32, 48), 9, np.uint8)])),
                "info": lambda info: info["features"]["observation.images.top"].update(shape=[32, 48, 4]),
            },
            {},
        ),
    ],
)
def test_what_other_programs_write_is_read(tmp_path, settings, expected):
    read = read_dataset(record(tmp_path / "d", **settings))
    assert read.states.shape == read.actions.shape == (16, 3)
    assert read.frames.shape[2:] == (3, 32, 48)
    found = read.features._asdict()
    assert {name: found[name] for name in expected} == expected


def test_grey_pictures_have_three_equal_channels_and_transparency_is_dropped(tmp_path):
    grey = record(tmp_path / "grey", image=lambda e, t, c: encode(picture(e, t, (32, 48))[..., 0]))
    frames = read_dataset(grey).frames
    assert (frames[:, :, :1] == frames).all()
    clear = record(
        tmp_path / "clear", image=lambda e, t, c: encode(np.dstack([picture(e, t, (32, 48)), np.full((32, 48), 9, np.uint8)]))
    )
    np.testing.assert_array_equal(read_dataset(clear).frames[0, 0], picture(0, 0, (32, 48)).transpose(2, 0, 1))


def test_depth_beside_colours_is_left_aside_and_by_itself_refused(tmp_path):
    def depth(episode, frame, camera):
        colours = picture(episode, frame, (32, 48))
        return encode(colours[..., 0].astype(np.uint16) * 200 if "depth" in camera else colours)

    both = record(tmp_path / "both", cameras=("observation.images.depth", "observation.images.top"), image=depth)
    read = read_dataset(both)
    assert read.features.cameras == ("top",) and "observation.images.depth (depth or a mask, and no colours)" in read.notes[0]
    hidden = record(tmp_path / "hidden", image=lambda e, t, c: depth(e, t, "depth"))
    with pytest.raises(ValueError, match="row 0: its image cannot be decoded: it is an image of 16 or 32 bits a pixel"):
        read_dataset(hidden)


def test_episodes_with_gaps_files_that_macos_leaves_and_paths_that_lead_nowhere(tmp_path):
    root = record(
        tmp_path / "d",
        version="v2.0",
        video="libx264",
        numbers=(1, 4, 7),
        info=lambda info: info.update(
            data_path="data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet",
            video_path="videos/chunk-{episode_index:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            splits={"train": "0:100"},
        ),
    )
    (root / "data/chunk-000/._episode_000001.parquet").write_bytes(b"\x00\x05\x16\x07")
    read = read_dataset(root)
    assert sorted(read.episode_index.tolist()) == [1, 4, 7]
    assert read.notes == ("its info.json has 100 training episodes, and there are 3",)


def test_features_without_files_and_files_without_features(tmp_path):
    root = record(
        tmp_path / "d",
        version="v2.1",
        video="libx264",
        info=lambda info: info["features"].update(
            {
                "observation.images.gone": {"dtype": "video", "shape": [800, 1280, 3]},
                "next.reward": {"dtype": "float32", "shape": [1]},
            }
        ),
    )
    write_video(root / "videos/chunk-000/observation.images.extra/episode_000000.mp4", [picture(0, 0, (32, 48))])
    read = read_dataset(root)
    assert read.features.cameras == ("top",) and read.features.image_size == (32, 48)
    assert read.notes == ("ignored: observation.images.gone (there is no file of it), next.reward (not an input)",)


# ---- choosing


def test_features_are_chosen_and_joined_by_name(tmp_path):
    def more(table):
        return table.append_column("effort", table["action"]).append_column("goal", table["observation.state"])

    features = {"effort": {"dtype": "float32", "shape": [3]}, "goal": {"dtype": "float32", "shape": [3]}}
    root = record(tmp_path / "d", cameras=("a", "b"), rows=more, info=lambda info: info["features"].update(features))
    read = read_dataset(root, cameras={"top": "b"}, state=["observation.state", "effort"], action="goal", instruction="go on")
    assert read.features.cameras == ("top",) and read.tasks == ("go on",)
    assert read.notes == ("all episodes have the instruction 'go on'",)
    assert read.features.state == (*(f"state_{i}" for i in range(3)), *(f"effort_{i}" for i in range(3)))
    plain = read_dataset(root, cameras={"top": "b"})
    np.testing.assert_array_equal(read.states, np.concatenate([plain.states, plain.actions], axis=1))
    np.testing.assert_array_equal(read.actions, plain.states)


@pytest.mark.parametrize(
    "choice, message",
    [
        (
            {"cameras": {"top": "observation.images.tpo"}},
            r"data.cameras.top=observation.images.tpo: .*did you mean 'observation.images.top'",
        ),
        ({"cameras": {"top": "action"}}, "data.cameras.top=action: .*is kept as float32, and not as an image"),
        ({"state": ["observation.stat"]}, "data.state=observation.stat: .*did you mean 'observation.state'"),
        ({"action": "observation.images.top"}, "'observation.images.top' is kept as image, and not as numbers"),
        ({"instruction": "annotation.human.task"}, "data.instruction=annotation.human.task: .* has no such feature"),
        ({"instruction": "task_indx"}, "data.instruction=task_indx: .* has no such feature"),
        ({"instruction": "actoin"}, "data.instruction=actoin: .*did you mean 'action'"),
        ({"fps": 4}, r"data.fps=4: .* has 10 frames a second; all of them, every second, third ... one are 10, 5, "),
        ({"instruction": "observation.state"}, "data.instruction=observation.state: .* is kept as float32, and not as sent"),
        ({"fps": 20}, "data.fps=20: .* has 10 frames a second"),
        ({"revision": "main"}, "data.revision=main is for datasets on the hub"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(tmp_path, choice, message):
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(record(tmp_path / "d"), **choice)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("written", [[2, 0], ["press it", "pull it"]])
def test_instructions_come_from_a_column_of_indices_or_of_text(tmp_path, written):
    def annotate(table):
        numbers = table["episode_index"].to_pylist()
        return table.append_column("annotation.task", pa.array([written[number % 2] for number in numbers]))

    feature = {"annotation.task": {"dtype": "int64", "shape": [1]}}
    root = record(tmp_path / "d", tasks=("a", "b", "c"), rows=annotate, info=lambda info: info["features"].update(feature))
    read = read_dataset(root, instruction="annotation.task")
    sentences = [read.tasks[read.task_index[start]] for start in read.episode_starts]
    expected = ["c", "a"] if isinstance(written[0], int) else written
    assert sentences == [expected[number % 2] for number in read.episode_index]
    assert set(read.tasks) == set(expected)  # the others occur in no frame


def test_case_and_spaces_of_sentences_are_kept(tmp_path):
    assert read_dataset(record(tmp_path / "d", tasks=(" Lift  IT ", "밀어"))).tasks == (" Lift  IT ", "밀어")


@pytest.mark.parametrize("how, expected", [("last", 1), ("sum", 2), ("mean", 3)])
def test_every_second_frame_has_the_action_that_leads_to_the_next_one(tmp_path, how, expected):
    root = record(tmp_path / "d", lengths=(5, 4, 1, 6))
    whole, read = read_dataset(root), read_dataset(root, fps=5, subsampled_actions=how)
    assert read.features.fps == 5
    for start, end, first, last in zip(
        whole.episode_starts, whole.episode_ends, read.episode_starts, read.episode_ends, strict=True
    ):
        kept = range(start, end, 2)
        assert len(kept) == last - first
        for new, old in enumerate(kept, start=first):
            pair = whole.actions[old : min(old + 2, end)]
            wanted = {"last": pair[-1], "sum": pair.sum(0), "mean": pair.mean(0)}[how]
            np.testing.assert_allclose(read.actions[new], wanted, rtol=1e-6)
            np.testing.assert_array_equal(read.states[new], whole.states[old])
            np.testing.assert_array_equal(read.frames[new], whole.frames[old])


def test_cameras_of_different_sizes_get_one_size(tmp_path):
    sizes = {"observation.images.top": (32, 48), "observation.images.wrist": (20, 20)}
    root = record(
        tmp_path / "d",
        cameras=tuple(sizes),
        image=lambda e, t, camera: encode(np.full((*sizes[camera], 3), 200, np.uint8)),
        info=lambda info: [info["features"][name].update(shape=[*size, 3]) for name, size in sizes.items()],
    )
    read = read_dataset(root)
    assert read.features.image_size == (20, 20)  # the smallest
    assert (read.frames[:, 1] == 200).all()
    assert (read.frames[:, 0, :, 4:16] == 200).all() and (read.frames[:, 0, :, :3] == 0).all()  # with bars above and below
    assert (read_dataset(root, image_size=(16, 24), resize="stretch").frames == 200).all()
    assert (read_dataset(root, image_size=(8, 8), resize="crop").frames == 200).all()


# ---- contradictions that are named


def reversed_rows(table):
    return table.take(list(range(4, -1, -1)) + list(range(5, table.num_rows)))


def ragged(table):
    values = table["action"].to_pylist()
    values[0], values[1] = values[0][:2], [*values[1], 1.0]
    return replace(table, "action", pa.array(values, pa.list_(pa.float32())))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rows": reversed_rows}, "file-000.parquet, row 0: frame_index=4 is not that of frame 0 of episode 0"),
        ({"rows": lambda t: t.take([0, 1, 1, *range(3, 16)])}, "row 2: frame_index=1 is not that of frame 2 of episode 0"),
        (
            {"rows": lambda t: t.drop_columns(["frame_index"]).take([0, 1, 1, *range(3, 16)])},
            "row 2: index=1 is not that of frame 2",
        ),
        (
            {"rows": lambda t: change(t, "timestamp", 3, 0.9)},
            "row 3: timestamp=0.9 is not that of frame 3 of episode 0 at fps=10",
        ),
        ({"rows": lambda t: change(t, "index", 9, 70)}, "row 9: index=70 is not that of frame 4 of episode 1"),
        ({"rows": lambda t: change(t, "episode_index", 9, 0)}, "row 9: episode_index=0 is not that of frame 4 of episode 1"),
        ({"rows": lambda t: t.slice(0, 15)}, "file-000.parquet: 15 rows, but its 3 episodes should have 16"),
        ({"rows": ragged}, "row 1: 'action' holds 4 numbers, not 2 as the rows before"),
        (
            {"rows": lambda t: change(t, "action", 7, [0.0, float("nan"), 0.0])},
            r"row 7: action\[1\] is nan \(episode 1, frame 2\)",
        ),
        (
            {"rows": lambda t: change(t, "observation.state", 15, [0.0, 0.0, float("inf")])},
            r"observation.state\[2\] is inf \(episode 2, frame 3\)",
        ),
        ({"rows": lambda t: change(t, "action", 7, None)}, "'action' has 1 empty values"),
        ({"rows": lambda t: t.append_column("action", t["action"])}, "there are two columns 'action'"),
        ({"rows": lambda t: t.drop_columns(["task_index"])}, "no column 'task_index'"),
        ({"rows": lambda t: replace(t, "action", pa.array(["x"] * 16))}, "'action' is kept as string, not as numbers"),
        ({"rows": lambda t: change(t, "observation.images.top", 0, None)}, "row 0: there is no encoded image"),
        (
            {"task_rows": lambda rows: [*rows, {"task_index": 0, "task": "other"}]},
            "two tasks have the index 0: 'push it' and 'other'",
        ),
        ({"task_rows": lambda rows: rows[:1]}, "there is no task with the index 1, which frames have"),
        ({"tasks": (None,)}, "task 0 has no sentence .null.; give one for all: data.instruction="),
        ({"episodes": lambda rows: [*rows, rows[0]]}, "two episodes have the number 0"),
        ({"episodes": lambda rows: [row | {"length": 0} for row in rows]}, "episode 0 has the length 0"),
        ({"episodes": lambda rows: [rows[0] | {"length": 46579064836}, *rows[1:]]}, "episode 0 has the length 46579064836"),
        (
            {"episodes": lambda rows: [rows[0] | {"length": 9_000_000}, *rows[1:]]},
            "16 rows, but its 3 episodes should have 9000011",
        ),
        ({"episodes": lambda rows: [row | {"length": 4.5} for row in rows]}, "length=4.5 is not an integer"),
        ({"info": lambda info: info.update(codebase_version=[3])}, r"codebase_version=\[3\] is not one of"),
        ({"info": lambda info: info.update(fps="10")}, "fps='10' is not a number above 0"),
        ({"info": lambda info: info.update(fps=0)}, "fps=0 is not a number above 0"),
        ({"info": lambda info: info.update(fps=0.4)}, "timestamp=.* at fps=0.4"),
        ({"info": lambda info: info.update(features=[])}, "'features' is not an object"),
        ({"info": lambda info: info["features"].update(action="x")}, "features.action='x' does not describe a feature"),
        ({"info": lambda info: info["features"]["action"].pop("dtype")}, "'action' has no dtype, and not as numbers"),
        (
            {"info": lambda info: info["features"]["observation.images.top"].pop("shape")},
            r"observation.images.top .its shape \[\] is not",
        ),
        (
            {"info": lambda info: info["features"]["observation.images.top"].update(dtype="float32")},
            "is kept as float32, and not as an image",
        ),
        (
            {"info": lambda info: info["features"].pop("action")},
            "no feature 'action' or 'actions': give data.action, one of observation.state",
        ),
        (
            {"info": lambda info: info.update(data_path="../{chunk_index}")},
            "data_path='../{chunk_index}' is no path within the dataset",
        ),
        ({"info": lambda info: info.update(data_path="data/{nope}")}, "the path 'data/{nope}' cannot be filled in"),
        ({"info": lambda info: info.update(splits=[0, 1])}, r"splits=\[0, 1\] are no ranges"),
        ({"info": lambda info: info.update(fps=10**400)}, "fps=10+ is not a number above 0"),
        (
            {"info": lambda info: info["features"]["observation.images.top"].update(shape=[float("inf"), 4, 3])},
            r"its shape \[\] is not",
        ),
        (
            {
                "video": "libx264",
                "episodes": lambda rows: [rows[0], rows[1], rows[2] | {k: v for k, v in rows[0].items() if "time" in k}],
            },
            "episode 2, .* spans 5 frames",
        ),
        (
            {
                "video": "libx264",
                "lengths": (5, 5, 4),
                "episodes": lambda rows: [rows[0], rows[1] | {k: v for k, v in rows[0].items() if "time" in k}, rows[2]],
            },
            "meta/episodes: episodes 0 and 1 have the same frames of .*mp4",
        ),
    ],
)
def test_contradictions_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(record(tmp_path / "d", **settings))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("meta/episodes.jsonl", b'{"episode_index": 0, "length": 5}\n{"episode_index": 1', "episodes.jsonl, line 2 is damaged"),
        ("meta/episodes.jsonl", b'{"episode_index": 0}\n', "episodes.jsonl, line 1: no 'length'"),
        ("meta/episodes.jsonl", b"", "episodes.jsonl: no episodes"),
        ("meta/tasks.jsonl", b'{"task_index": 0.5, "task": "a"}\n', "task_index=0.5 is not an integer"),
        ("meta/tasks.jsonl", b'{"task_index": 0, "task": 3}\n', "task 0 is 3 and no sentence"),
        ("meta/info.json", b'{"fps": 1, "fps": 2}', "info.json is damaged: the key 'fps' is there twice"),
        ("meta/tasks.jsonl", None, "tasks.parquet is missing, and so is tasks.jsonl"),
        ("data/chunk-000/episode_000001.parquet", None, "episode_000001.parquet is missing"),
    ],
)
def test_damaged_files_of_format_2_are_named(tmp_path, name, content, message):
    root = record(tmp_path / "d", version="v2.1")
    (root / name).unlink() if content is None else (root / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_dataset(root)


# ---- the cache


def test_interrupted_decoding_goes_on_where_it_stopped(tmp_path, monkeypatch):
    root = record(tmp_path / "d", version="v2.1", video="libx264", lengths=(6, 6, 6))
    expected = read_dataset(root, cache=tmp_path / "whole").frames
    decode, finished = frames.read, []

    def interrupted(footage, rows, **options):
        if len(finished) == 2:
            raise KeyboardInterrupt
        yield from decode(footage, rows, **options)
        finished.append(rows.tolist())

    monkeypatch.setattr(frames, "ThreadPoolExecutor", lambda: __import__("concurrent.futures").futures.ThreadPoolExecutor(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(frames, "read", interrupted)
        read_dataset(root, cache=tmp_path / "cache")
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(
            frames, "read", lambda footage, rows, **options: done.append(rows.tolist()) or decode(footage, rows, **options)
        )
        np.testing.assert_array_equal(read_dataset(root, cache=tmp_path / "cache").frames, expected)
    assert len(done) == 1 and done[0] not in finished
    assert not list((tmp_path / "cache").glob(".*.partial")) and not list((tmp_path / "cache").glob(".*.done"))


def test_a_dataset_that_was_moved_or_copied_is_the_same_and_needs_no_decoding(tmp_path, monkeypatch):
    root = record(tmp_path / "a/d", video="libx264")
    first = read_dataset(root, cache=tmp_path / "cache")
    shutil.copytree(root, tmp_path / "b/e")
    monkeypatch.setattr(frames, "_decode_all", lambda *_, **__: pytest.fail("decoded again"))
    assert read_dataset(tmp_path / "b/e", cache=tmp_path / "cache").fingerprint == first.fingerprint


def test_a_start_reads_no_video(tmp_path, monkeypatch):
    root = record(tmp_path / "d", version="v2.1", video="libx264")
    read_dataset(root)
    monkeypatch.setattr("av.open", lambda *_, **__: pytest.fail("a video was opened"))
    read_dataset(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_dataset_in_a_read_only_folder_is_cached_elsewhere(tmp_path, monkeypatch):
    root = record(tmp_path / "fixed/d")
    monkeypatch.setattr(reader, "USER_CACHE", tmp_path / "home")
    (tmp_path / "fixed").chmod(0o500)
    try:
        read_dataset(root)
    finally:
        (tmp_path / "fixed").chmod(0o700)
    assert list((tmp_path / "home").glob("*.u8"))


def test_a_full_disk_names_the_folder_and_the_bytes(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ValueError, match=r"cache: 0.00 GiB of decoded frames do not fit: .*No space left"):
        read_dataset(record(tmp_path / "d"), cache=tmp_path / "cache")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes_can_be_left_out(tmp_path, version):
    root = record(tmp_path / "data", version=version, video="libx264", lengths=(5, 7, 4, 6), tasks=("push it",))
    whole, cache = read_dataset(root), tmp_path / "other"
    chosen = read_dataset(root, exclude_episodes=[1], cache=cache)
    assert chosen.episode_index.tolist() == [0, 2, 3] and chosen.splits == {"train": (0, 2), "validation": (2, 3)}
    kept = np.flatnonzero(np.repeat(whole.episode_index, whole.episode_ends - whole.episode_starts) != 1)
    for name in ("states", "actions", "frames"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(whole, name)[kept])
    with pytest.raises(ValueError, match=r"data.exclude_episodes: .*data has no episode 9; it has 0, 1, 2, 3"):
        read_dataset(root, exclude_episodes=[9])
    with pytest.raises(ValueError, match="one episode alone"):
        read_dataset(root, exclude_episodes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"data.exclude_episodes leaves no episode of .*data"):
        read_dataset(root, exclude_episodes=[0, 1, 2, 3])
    if version == "v2.1":
        (video,) = root.rglob("episode_000001.mp4")
        video.write_bytes(video.read_bytes()[:200])
        with pytest.raises(ValueError, match=r"episode_000001\.mp4 is damaged: Invalid data .*; data.exclude_episodes=\["):
            read_dataset(root, cache=cache)
        assert len(read_dataset(root, exclude_episodes=[1], cache=cache).frames) == len(kept)
        video.unlink()
        with pytest.raises(ValueError, match=r"is missing for episode 1 \(1 in all\); data.exclude_episodes=\[1"):
            read_dataset(root, cache=cache)
        assert len(read_dataset(root, exclude_episodes=[1], cache=cache).frames) == len(kept)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_that_is_left_out_may_hold_anything(tmp_path, version):
    def spoil(table):
        rows = [row for row, number in enumerate(table["episode_index"].to_pylist()) if number == 1]
        for row in rows[:1]:
            table = change(change(table, "action", row, [0.0, float("nan"), 0.0]), "timestamp", row + 1, 7.5)
        return table

    root = record(tmp_path / "data", version=version, lengths=(5, 7, 4, 6), tasks=("push it",), rows=spoil)
    for found in (r"action\[1\] is nan .*data.exclude_episodes=\[1\]|timestamp=7.5 is not that of",):
        with pytest.raises(ValueError, match=found):
            read_dataset(root)
    read = read_dataset(root, exclude_episodes=[1])
    assert read.episode_index.tolist() == [0, 2, 3] and np.isfinite(read.actions).all()
    if version == "v2.1":
        (root / "data/chunk-000/episode_000001.parquet").unlink()
        again = read_dataset(root, exclude_episodes=[1])
        np.testing.assert_array_equal(again.states, read.states)
        np.testing.assert_array_equal(again.frames, read.frames)


@pytest.mark.parametrize("empty", [None, " "])
def test_text_that_is_missing_is_no_instruction(tmp_path, empty):
    def annotate(table):
        return table.append_column("language", pa.array(["lift it", empty] + ["lift it"] * (table.num_rows - 2)))

    feature = {"language": {"dtype": "string", "shape": [1]}}
    root = record(tmp_path / "d", rows=annotate, info=lambda info: info["features"].update(feature))
    with pytest.raises(ValueError, match=r"row 1: 'language' has no text \(1 rows in all\); one sentence for all"):
        read_dataset(root, instruction="language")


def test_a_dataset_may_lack_a_file_of_tasks_or_have_further_columns_in_it(tmp_path):
    root = record(tmp_path / "d", task_rows=lambda rows: [row | {"__index_level_0__": 7} for row in rows])
    assert read_dataset(root).tasks == ("push it", "lift it")
    (root / "meta/tasks.parquet").unlink()
    with pytest.raises(ValueError, match=r"tasks.parquet is missing, and so is tasks.jsonl.*; one sentence for all"):
        read_dataset(root)
    assert read_dataset(root, instruction="lift it").tasks == ("lift it",)


def test_what_info_json_counts_and_leaves_out_is_said(tmp_path):
    def miscount(info):
        info.update(total_episodes=9, total_frames=16, splits={"train": "0:2"})

    notes = read_dataset(record(tmp_path / "d", info=miscount)).notes
    assert notes == (
        "its info.json says total_episodes=9, and there are 3",
        "of 3 episodes 2 are in the split 'train' of its info.json: the others are not used",
    )
    (note,) = read_dataset(record(tmp_path / "e"), fps=5).notes
    assert note == "1 of 2 frames is read, and its action is the last of 2 (data.subsampled_actions)"


def test_without_posix_fallocate_frames_are_decoded_as_well(tmp_path, monkeypatch):
    root = record(tmp_path / "d")
    expected = read_dataset(root).frames
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    np.testing.assert_array_equal(read_dataset(root, cache=tmp_path / "other").frames, expected)


def test_a_path_in_a_folder_that_is_here_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lerobot").mkdir()
    with pytest.raises(ValueError, match=r"data.root=lerobot/pusht: there is no such folder, and the hub is not asked"):
        read_dataset("lerobot/pusht")


def test_frames_above_the_limit_are_not_kept(tmp_path):
    read = read_dataset(record(tmp_path / "d"), cache=tmp_path / "cache", cache_gigabytes=1e-6)
    assert not isinstance(read.frames, np.ndarray) and not (tmp_path / "cache").exists()


def test_a_dataset_of_the_hubs_cache_is_read_and_only_its_chosen_cameras(tmp_path, monkeypatch):
    """Without a network, a hub id is read from the hub's cache, in which files are links."""
    root = record(tmp_path / "made", video="libx264", cameras=("observation.images.top", "observation.images.wrist"))
    repository = tmp_path / "hub/datasets--somebody--pushes"
    snapshot = repository / "snapshots/abc"
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "wrist" not in str(path)):
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(reader, "USER_CACHE", tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    read = read_dataset("somebody/pushes", cameras={"top": "observation.images.top"})
    np.testing.assert_array_equal(read.frames, read_dataset(root, cameras={"top": "observation.images.top"}).frames)
    assert read_dataset("somebody/pushes", revision="main", cameras={"top": "observation.images.top"}).tasks == read.tasks
    # The other camera was not downloaded, which is said, and no camera is ignored because of that.
    with pytest.raises(ValueError, match=r"the video of 'observation.images.wrist' is missing .*; was it downloaded\?"):
        read_dataset("somebody/pushes")
    for path in sorted(root.rglob("*wrist*/**/*.mp4")):  # once it is, what was read before has the same fingerprint
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert len(read_dataset("somebody/pushes").features.cameras) == 2
    again = read_dataset("somebody/pushes", cameras={"top": "observation.images.top"})
    assert again.fingerprint == read.fingerprint
    with pytest.raises(ValueError, match=r"data\.root=somebody/else: there is no such folder, the hub cannot be reached"):
        read_dataset("somebody/else")


def test_a_dataset_of_ours_that_was_edited_is_accepted_when_asked(made_up, dataset):
    info = dataset / "meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"robot_type": "another"}))
    with pytest.raises(
        ValueError, match=r"info.json is damaged.*data.verify=false accepts a dataset that was changed on purpose"
    ):
        read_dataset(dataset)
    assert read_dataset(dataset, verify=False).features == made_up.features
