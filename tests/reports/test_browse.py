"""scripts/browse.py end to end on made-up datasets: the page, browse.json, exit codes, and that nothing else is written."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.doctor.test_recordings import EPISODES, FAULTS, FEATURES, FRAMES, a_blind_camera, a_jump, healthy, write
from tests.factory import ROOT, command
from tests.reports.helpers import check_self_contained, drawings, texts
from vla_mini.data.frames import StreamedFrames
from vla_mini.data.reader import read_dataset
from vla_mini.reports.browse import STILLS, choose_episodes, thumbnail_size
from vla_mini.reports.drawing.charts import ENVELOPE, Dimension, _envelope, dimension_grid

SHARED = ROOT.parent / "shared" / "datasets"


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def browse(*arguments: str, code: int = 0) -> tuple[str, dict]:
    """The page and browse.json."""
    shutil.rmtree("page", ignore_errors=True)
    assert command("browse", *arguments, "output=page") == code
    with open("page/browse.html", encoding="utf-8") as page, open("page/browse.json", encoding="utf-8") as results:
        return page.read(), json.load(results)


def test_a_healthy_dataset(tmp_path, capsys):
    made = healthy()
    made.tasks[1] = "lift the <b>cup</b>"
    write(tmp_path / "data", made)
    html, results = browse("data=data", "episodes=4")
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and all(line.startswith("pass") for line in lines)
    assert re.fullmatch(r"11 pass; \d+ s; page/browse\.html", last)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "page"}  # no cache beside the dataset
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"browse.html", "browse.json"}
    check_self_contained(html)
    assert "All checks passed." in html and "6 of 6 dimensions move" in html and "One task" not in html
    assert html.count("data:image/jpeg") == 4 * STILLS * 2 and "&lt;b&gt;cup" in html
    (grid,) = drawings(html)
    assert {"x", "y", "grip"} <= set(texts(grid))
    assert results["passed"] and results["format"] == "v3.0" and results["fps"] == 10
    assert (results["episodes"], results["frames"], results["recorded_seconds"]) == (EPISODES, EPISODES * FRAMES, 36.0)
    assert results["lengths"] == {"min": FRAMES, "median": FRAMES, "max": FRAMES}
    assert results["splits"] == {"train": 5, "validation": 1}
    assert results["cameras"]["wrist"] == {"feature": "observation.images.wrist", "kept_as": "images", "size": [24, 32]}
    tasks = {entry["task"]: (entry["episodes"], entry["frames"]) for entry in results["tasks"]}
    assert tasks == {"push the block": (3, 180), "lift the cup": (2, 120), "lift the <b>cup</b>": (1, 60)}
    assert list(tasks) == ["push the block", "lift the cup", "lift the <b>cup</b>"]  # the most frequent one first
    statistics = read_dataset("data", cache="none").statistics.action
    assert results["action"]["x"]["q99"] == pytest.approx(float(statistics.q99[0])) and not results["state"]["grip"]["still"]


def test_a_finding_is_shown_with_its_episode_and_what_to_do(tmp_path):
    made = healthy()
    a_jump(made)
    write(tmp_path / "data", made)
    html, results = browse("data=data", "episodes=2")
    (finding,) = (finding for finding in results["findings"] if finding["status"] != "pass")
    assert finding["check"] == "jumps" and finding["episodes"] == [3] and results["passed"]
    shown = " ".join(re.sub("<[^>]*>", " ", html).split())
    assert "No check failed, and 1 finding should be looked at." in shown
    assert "episode 3 · 60 frames, 6.0 s · train · jumps" in shown
    assert "frames were lost, the robot was reset within an episode" in shown


def test_what_is_wrong_ends_with_exit_code_1(tmp_path, capsys):
    made = healthy()
    a_blind_camera(made)
    write(tmp_path / "data", made)
    html, results = browse("data=data", code=1)
    assert not results["passed"] and "1 check failed." in html
    out, err = capsys.readouterr()
    assert "fail  pixels" in out and out.splitlines()[-1].startswith("10 pass, 1 fail: pixels; ") and err == ""


def test_reading_settings_are_those_of_training(tmp_path):
    write(tmp_path / "data", healthy())
    _, results = browse(
        "data=data", "data.cameras={main: observation.images.wrist}", "data.fps=5", "data.instruction=do it", "data.verify=true"
    )
    assert list(results["cameras"]) == ["main"] and results["fps"] == 5 and results["frames"] == EPISODES * FRAMES / 2
    assert [entry["task"] for entry in results["tasks"]] == ["do it"]
    assert browse("data.root=data")[1]["data"] == "data"


def test_dimensions_that_do_not_move_are_not_drawn(tmp_path):
    made = healthy()
    for values in (*made.states, *made.actions):
        values[:] = 0.5
    html, _ = browse(f"data={write(tmp_path / 'data', made)}", code=1)
    assert "<svg" not in html


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data=nowhere"], "nowhere"),
        ([], "data.root"),
        (["data=data", "data.cameras={a: nothing}"], "data.cameras.a=nothing"),
        (["data=data", "data.horizon=8"], "unknown key 'data.horizon'"),
        (["data=data", "episodes=0"], "episodes"),
        (["data=data", "output=data"], "data exists already"),
    ],
)
def test_refused_before_work_starts(tmp_path, capsys, arguments, text):
    write(tmp_path / "data", healthy())
    assert command("browse", "output=page", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and text in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_film_strips_show_findings_first_and_then_the_dataset_evenly(tmp_path):
    from vla_mini.doctor.finding import Finding
    from vla_mini.doctor.images import ImageScan

    data = read_dataset(write(tmp_path / "data", healthy()), cache="none")
    scan = ImageScan(list(range(EPISODES)), [], [], [], [], {})
    assert choose_episodes(data, scan, [], 3) in ([0, 2, 5], [0, 3, 5])
    assert choose_episodes(data, scan, [Finding("warn", "", episodes=(3, 4))], 4) == [0, 3, 4, 5]
    assert choose_episodes(data, scan, [Finding("pass", "", episodes=(3, 4))], 2) == [0, 5]
    assert choose_episodes(data, scan, [Finding("warn", "", episodes=tuple(range(6)))], 50) == list(range(6))


@pytest.mark.parametrize(("size", "expected"), [((480, 640), (96, 128)), ((24, 32), (24, 32)), ((1080, 1920), (96, 171))])
def test_thumbnails_keep_their_proportions(size, expected):
    assert thumbnail_size(size) == expected


def test_a_curve_with_fewer_points_keeps_its_spikes():
    values = np.zeros(1000)
    values[[333, 777]] = (5, -3)
    times, kept = _envelope(np.arange(1000.0), values)
    assert len(kept) == 2 * ENVELOPE and (np.diff(times) >= 0).all() and kept.max() == 5 and kept.min() == -3
    assert times[kept.argmax()] == 333


def test_a_dimension_is_drawn_between_its_limits():
    curve = ("blue", np.arange(3.0), np.array([0.0, 1, 2]))
    plot = Dimension("elbow", [curve], {"blue": curve[2], "amber": curve[2]}, (0.0, 2.0), (0.1, 1.9))
    svg = dimension_grid("grid", [plot] * 5, columns=3)
    assert svg == dimension_grid("grid", [plot] * 5, columns=3)
    (drawing,) = drawings(svg)
    assert texts(drawing) == 5 * ["elbow", "2.0", "0.0"]
    assert "var(--blue)" in svg and "var(--amber)" in svg


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/datasets is not there")
@pytest.mark.parametrize(
    ("name", "format", "open_findings"),
    [
        ("pusht", "v3.0", set()),
        ("g1_yellow_bottle", "v2.1", set()),
        ("gr1_pick_place_sim", "v2.0", {"still", "outliers", "jumps"}),
    ],
)
def test_real_datasets(name, format, open_findings):
    html, results = browse(f"data={SHARED / name}", "examined_episodes=2", "episodes=2")
    check_self_contained(html)
    assert results["format"] == format and html.count("data:image/jpeg") == 2 * STILLS
    assert {finding["check"] for finding in results["findings"] if finding["status"] != "pass"} == open_findings


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/datasets is not there")
def test_a_preview_of_a_video_shows_what_its_frames_show():
    data = read_dataset(SHARED / "g1_yellow_bottle", cache="none")
    preview = data.frames.preview((96, 128))[np.array([5, 400])].astype(int)
    exact = StreamedFrames(data.frames.footage, size=(96, 128), resize="letterbox")[np.array([5, 400])].astype(int)
    assert preview.shape == exact.shape == (2, 1, 3, 96, 128)
    assert np.abs(preview - exact).mean() < 8 < 2 * 8 < np.abs(preview[0] - exact[1]).mean()


def test_every_check_has_a_fault_that_it_finds():
    assert {check for check, *_ in FAULTS.values()} | {"actions", "readable"} == {
        *("still", "outliers", "jumps", "idle", "lengths", "duplicates", "tasks", "actions", "readable", "pixels", "frozen")
    }
    assert FEATURES.image_size == (24, 32)
