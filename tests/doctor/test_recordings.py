"""Each fault of a recording is found by its own check, on a dataset that has exactly that fault, and none on a healthy one."""

import json
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.data.reader import read_dataset
from vla_mini.doctor import images
from vla_mini.doctor.checks import check_recordings
from vla_mini.utils.features import Features

FEATURES = Features(("front", "wrist"), (24, 32), state=("x", "y", "grip"), action=("x", "y", "grip"), fps=10)
EPISODES, FRAMES = 6, 60


class Made(NamedTuple):
    """What is recorded: of each episode images (t, 2, h, w, 3), states (t, 3) and actions (t, 3), and its sentence."""

    images: list[np.ndarray]
    states: list[np.ndarray]
    actions: list[np.ndarray]
    tasks: list[str]


def healthy(seed: int = 0) -> Made:
    """Smooth movement, a gripper that switches, commands ahead of the state, and a bright square that moves with the state."""
    random, made = np.random.default_rng(seed), Made([], [], [], [])
    for episode in range(EPISODES):
        time = np.linspace(0, 1, FRAMES + 3)[:, None]
        path = random.uniform(-1, 1, 2) + random.uniform(0.5, 1, 2) * np.sin(2 * time * random.uniform(2, 4, 2) + 1)
        grip = (time > random.uniform(0.3, 0.7)).astype(float)
        values = np.concatenate([path, grip], axis=1).astype(np.float32)
        made.states.append(values[:FRAMES])
        made.actions.append(values[3:] + random.normal(0, 0.01, (FRAMES, 3)).astype(np.float32) * np.float32([1, 1, 0]))
        frames = random.integers(60, 90, (1, 2, 24, 32, 3)).repeat(FRAMES, axis=0).astype(np.uint8)
        for frame, (x, y, _) in enumerate(values[:FRAMES]):
            frames[frame] += random.integers(0, 6, frames[frame].shape, dtype=np.uint8)  # noise of the sensor
            row, column = int(10 + 4 * y), int(14 + 5 * x)
            frames[frame, :, row : row + 4, column : column + 4] = 220
        made.images.append(frames)
        made.tasks.append(("push the block", "lift the cup")[episode % 2])
    return made


def write(root, made: Made, splits=None):
    with DatasetWriter(root, features=FEATURES, robot_type="made_up") as writer:
        for pictures, states, actions, task in zip(*made, strict=True):
            cameras = {camera: pictures[:, k] for k, camera in enumerate(FEATURES.cameras)}
            writer.add_episode(encode_episode(cameras, states=states, actions=actions, task=task))
        last = len(made.states)
        writer.finish(splits=splits or {"train": (0, last - 1), "validation": (last - 1, last)})
    return root


def findings(root, **reading):
    data = read_dataset(root, cache="none", **reading)
    return {finding.check: finding for finding in check_recordings(data, lambda: images.scan(data, episodes=None, stills=3))}


def not_passed(found):
    return {name: finding for name, finding in found.items() if finding.status != "pass"}


def test_a_healthy_dataset_has_no_findings(tmp_path):
    found = findings(write(tmp_path / "data", healthy()))
    assert not_passed(found) == {}
    names = "still outliers jumps idle lengths duplicates tasks actions readable pixels frozen"
    assert list(found) == names.split()
    assert found["lengths"].measured == "60 to 60 frames, median 60 (6.0 s)"
    assert "commands of their own" in found["actions"].measured


def still_dimension(made):
    for values in (*made.states, *made.actions):
        values[:, 1] = 0.3


def outliers(made):
    made.states[2][20:22, 0] = 400  # two frames, so that it is not lost in a thousandth


def a_jump(made):
    made.states[3][30:, 0] += 1.2


def an_angle_that_wraps_around(made):
    for values in (*made.states, *made.actions):  # of a joint that turns once, from 0 to a full turn and on
        values[:, 0] = 3 * np.sin(np.linspace(0, 3, FRAMES))
    turn = np.linspace(0, 7, FRAMES)
    made.states[4][:, 0] = (turn + np.pi) % (2 * np.pi) - np.pi


def idle_start(made):
    for part in (made.states, made.actions):
        part[1][:15] = part[1][15]


def idle_end(made):
    for part in (made.states, made.actions):
        part[5][-25:] = part[5][-25]


def a_short_episode(made):
    for part in made[:3]:
        part[2] = part[2][20:26]


def near_duplicates(made):
    made.states[4] = made.states[1] + np.float32(1e-3)
    made.actions[4] = made.actions[1]


def the_same_task_twice(made):
    made.tasks[2] = "Push the  block"


def a_dark_camera(made):
    made.images[3][10:14, 1] = np.random.default_rng(0).integers(0, 13, (4, 24, 32, 3))  # dark, with noise
    made.images[3][14:18, 1] = 128  # of one colour


def a_blind_camera(made):
    for pictures in made.images:
        pictures[:, 1] = 128


def a_camera_that_stops(made):
    made.images[2][20:40, 0] = made.images[2][20, 0]


FAULTS = {
    still_dimension: ("still", "2 of 6 dimensions do not move in the training split: state 'y'; action 'y'", ()),
    outliers: ("outliers", "state 'x', 98 % of whose values lie in 0.", (2,)),
    a_jump: ("jumps", "1 dimension jumps within one frame: state 'x' by", (3,)),
    an_angle_that_wraps_around: ("jumps", "state 'x' by 100% of its range", (4,)),
    idle_start: ("idle", "at most 1.5 s, at the start of episode 1", (1,)),
    idle_end: ("idle", "at most 2.4 s, at the end of episode 5", (5,)),
    a_short_episode: ("lengths", "1 of 6 episodes are very short: episode 2 (6 frames)", (2,)),
    near_duplicates: ("duplicates", "1 of 6 episodes are near-duplicates of others: episodes 1 and 4", (1, 4)),
    the_same_task_twice: (
        "tasks",
        "3 tasks, of which these differ only in case, spaces or punctuation: 'push the block' and 'Push the  block'",
        (),
    ),
    a_dark_camera: ("pixels", "camera 'wrist' is dark or of one colour in 8 frames, 8 of them in episode 3", (3,)),
    a_blind_camera: ("pixels", "camera 'wrist' shows nothing (standard deviation 0.0 of 255)", ()),
    a_camera_that_stops: (
        "frozen",
        "camera 'front' stops for 1.9 s while the state moves, in episode 2 from frame 20 on",
        (2,),
    ),
}
# A step that sets the scale of the others is both.
ALSO = {outliers: {"jumps"}}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_by_its_check_alone(tmp_path, fault):
    made = healthy()
    fault(made)
    check, text, episodes = FAULTS[fault]
    found = not_passed(findings(write(tmp_path / "data", made)))
    assert found.keys() - ALSO.get(fault, set()) == {check}, found
    finding = found[check]
    assert text in finding.measured and finding.advice and finding.episodes == episodes, finding
    assert finding.status == ("fail" if fault is a_blind_camera else "warn")


def test_what_no_healthy_dataset_has_fails(tmp_path):
    made = healthy()
    for actions in made.actions:
        actions[:] = 0.5
    made.images[2][:, 0] = made.images[2][0, 0]  # the camera has stopped for the whole episode
    found = not_passed(findings(write(tmp_path / "data", made)))
    assert {name: finding.status for name, finding in found.items()} == {"still": "fail", "frozen": "fail"}


def test_a_camera_may_repeat_images_and_stand_still_with_the_robot(tmp_path):
    made = healthy()
    for pictures in made.images:
        pictures[1::2] = pictures[::2]
    for part in (made.states, made.actions, made.images):
        part[3][20:40] = part[3][20]
    found = findings(write(tmp_path / "data", made))
    assert "of one, 52% of the frames repeat the one before" in found["frozen"].measured
    assert not_passed(found).keys() <= {"jumps"}


@pytest.mark.parametrize(
    ("later", "text"), [(0, "the states of the same frame"), (1, "the states of the next frame")], ids=["same", "next"]
)
def test_actions_that_are_states_are_a_fact(tmp_path, later, text):
    made = healthy()
    actions = [np.concatenate([states[later:], states[-1:].repeat(later, axis=0)]) for states in made.states]
    found = findings(write(tmp_path / "data", made._replace(actions=actions)))
    assert text in found["actions"].measured and not_passed(found) == {}


def test_a_frame_that_cannot_be_decoded_is_named_and_the_others_are_examined(tmp_path):
    root = write(tmp_path / "data", healthy())
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    column = table.schema.get_field_index("observation.images.front")
    values = table.column(column).to_pylist()
    values[2 * FRAMES + 7]["bytes"] = b"no image"
    damaged = table.set_column(column, table.schema.field(column), [values])
    pq.write_table(damaged, path, row_group_size=FRAMES)
    data = read_dataset(root, cache="none", verify=False)
    scan = images.scan(data, episodes=None, stills=2)
    found = images.readable(data, scan)
    assert found.status == "fail" and found.episodes == (2,) and f"{path}, row {2 * FRAMES + 7}" in found.measured
    assert len(scan.episodes) == EPISODES - 1 and images.frozen(data, scan).status == "pass"


def test_episodes_are_named_by_the_numbers_that_the_dataset_gives_them(tmp_path):
    made = healthy()
    a_jump(made)
    root = write(tmp_path / "data", made, splits={"validation": (0, 2), "train": (2, 6)})
    data = read_dataset(root, cache="none")
    assert data.episode_index.tolist() == [2, 3, 4, 5, 0, 1]
    jump = findings(root)["jumps"]
    assert jump.episodes == (3,) and "in episode 3, frame 30" in jump.measured


def test_a_scan_examines_so_many_episodes_and_takes_stills_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BLOCK", 7)
    made = healthy()
    data = read_dataset(write(tmp_path / "data", made), cache="none")
    scan = images.scan(data, episodes=3, stills=4)
    assert scan.episodes == [0, 2, 5] or scan.episodes == [0, 3, 5]
    for episode, brightness, change, stills in zip(scan.episodes, scan.brightness, scan.change, scan.stills, strict=True):
        pictures = made.images[episode]
        np.testing.assert_array_equal(
            stills, pictures[np.linspace(0, FRAMES - 1, 4).round().astype(int)].transpose(0, 1, 4, 2, 3)
        )
        np.testing.assert_allclose(brightness, pictures.mean(axis=(2, 3, 4)), atol=1)  # of a part of the pixels
        steps = np.abs(np.diff(pictures.astype(int), axis=0)).max(axis=(2, 3, 4))
        assert (change[0] == 255).all()
        np.testing.assert_array_equal(change[1:], steps)


def test_findings_can_be_written_as_json(tmp_path):
    made = healthy()
    a_jump(made)
    found = findings(write(tmp_path / "data", made))
    assert json.loads(json.dumps([finding._asdict() for finding in found.values()]))
