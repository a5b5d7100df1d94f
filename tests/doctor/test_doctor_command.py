"""scripts/doctor.py end to end, in this process: its output, doctor.json, exit codes, and that no other file remains."""

import json

import numpy as np
import pytest

from tests.factory import command
from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.data.reader import read_dataset
from vla_mini.doctor import learning

SMALL = ["experiment=toy_pick_smoke", "vision.width=16", "trunk.width=32", "language.width=16"]


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_healthy_run(root, capsys, tmp_path):
    assert command("doctor", *SMALL, f"data.root={root}", "output=checked") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "checked" / "doctor.json").read_text())
    assert found["passed"] and found["experiment"] == "toy_pick_smoke" and found["machine"]["cores"] >= 1
    checks = {check["check"]: check for check in found["checks"]}
    assert len(checks) == len(found["checks"]) == 34 and {"packages", "jumps", "replay", "one batch", "speed"} <= checks.keys()
    assert not [check for check in found["checks"] if check["status"] == "fail"]
    assert [line for line in lines if not line.startswith(" ")] == [
        f"{check['status']:<6}{name:<16}{check['measured']}" for name, check in checks.items()
    ]
    assert " pass" in last and "fail" not in last
    assert [path.name for path in tmp_path.iterdir()] == ["checked"]


def test_a_failed_check_ends_with_exit_code_1(demonstrations, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "MAX_STEPS", 40)  # the check that fails is another one
    write_with_swapped_channels(tmp_path / "swapped", demonstrations)
    assert command("doctor", *SMALL, f"data.root={tmp_path / 'swapped'}") == 1
    out, err = capsys.readouterr()
    assert "fail  images" in out and "red and blue are swapped" in out and "do: correct this" in out
    assert out.splitlines()[-1].partition(";")[0].endswith("1 fail: images") and err == ""
    assert not (tmp_path / "doctor.json").exists()


def test_missing_demonstrations_are_collected_in_a_temporary_folder(capsys, tmp_path):
    assert command("doctor", *SMALL, "data.episodes=12", "data.batch_size=4096", "augmentation=default") == 0
    assert capsys.readouterr().out.startswith("collecting 12 demonstrations, since data/toy_pick_12_seed0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data.root=nowhere", "data.episodes=null"], "nowhere"),
        (["freeze=[visoin]"], "'visoin'; did you mean 'vision'?"),
        (["output=/proc/nowhere"], "/proc/nowhere"),
        (["vision=patch", "vision.patch_size=7"], "patch_size=7"),
        (["resume=nowhere"], "nowhere"),
    ],
)
def test_refused_before_work_starts(root, capsys, tmp_path, arguments, text):
    assert command("doctor", *SMALL, f"data.root={root}", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and text in err
    assert list(tmp_path.iterdir()) == []


def write_with_swapped_channels(folder, data):
    """The demonstrations with colours in the order blue, green, red."""
    with DatasetWriter(folder, features=data.features, robot_type="toy_pick") as writer:
        for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
            images = np.ascontiguousarray(np.moveaxis(data.frames[start:end, 0, ::-1], 1, -1))
            vectors = {"states": data.states[start:end], "actions": data.actions[start:end]}
            writer.add_episode(encode_episode({"top": images}, **vectors, task=data.tasks[data.task_index[start]]))
        writer.finish(splits=data.splits)
    assert read_dataset(folder).features == data.features
