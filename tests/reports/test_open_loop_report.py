"""What open_loop.py found becomes files in a run's folder, and these alone a part of its report."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.reports.helpers import check_self_contained, drawings, texts
from tests.table_policy import TASKS, TablePolicy, demonstrations, recorded_chunks
from vla_mini.evaluation.looks import Look
from vla_mini.evaluation.open_loop import evaluate_open_loop
from vla_mini.evaluation.open_loop_texts import BASELINES, WORDS, verdict, verdict_on_words
from vla_mini.reports.open_loop import read_open_loop, write_open_loop
from vla_mini.reports.run import write_report

LOG = "step,validation/loss,seconds\n9,1.5,1\n19,0.5,2\n"


def make_looks(*, attention=True) -> list[Look]:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)  # two cameras
    heat = np.linspace(0, 1, images[..., 0].size).reshape(2, 8, 12)
    return [Look(5, frame, images, heat if attention else None, heat) for frame in (0, 3, 6)]


@pytest.fixture
def metrics():
    data = demonstrations()
    return evaluate_open_loop(TablePolicy(recorded_chunks(data) + 0.5), data)


def write_run(folder, metrics, **options):
    (folder / "metrics.csv").write_text(LOG)
    (folder / "config.yaml").write_text("env:\n  id: null\n")
    write_open_loop(folder / "evaluation", metrics, make_looks(**options), cameras=("top", "left/wrist"))
    return write_report(folder).read_text(encoding="utf-8")


def test_the_report_shows_errors_words_and_where_the_policy_looks(tmp_path, metrics):
    html = write_run(tmp_path, metrics)
    check_self_contained(html)
    errors = {name: f"{found['std']:.2f}" for name, found in metrics["errors"].items()}
    assert f"{errors['policy']}<small> open-loop error" in html and verdict(metrics) in html
    assert all(f"<dt>{name.replace('_', ' ')}</dt><dd>{errors[name]}</dd>" in html for name in BASELINES)
    assert "<dt>validation loss</dt><dd>0.5</dd></div><div><dt>at step</dt><dd>20</dd>" in html
    unescaped = html.replace("&#39;", "'")
    assert verdict_on_words(metrics) in unescaped and all(f"<td>{text}</td>" in unescaped for text in WORDS.values())
    assert "the state at the start of the chunk, where a state has the joint" in html and "10 of 10 frames" in html
    first, second, by_step, by_joint, *looks = drawings(html)[:10]
    assert all({"x", "grip", "seconds"} <= set(texts(trace)) for trace in (first, second))
    assert {"policy", "mean action", "hold", "nearest frame", "step of the chunk"} <= set(texts(by_step))
    assert {"x", "grip", "standard deviations"} <= set(texts(by_joint))
    assert texts(looks[0]) == ["frame 0, 0.0 s", "frame 3, 0.3 s", "frame 6, 0.6 s"] and texts(looks[1]) == []
    assert all(f"“{task}”" in html for task in TASKS)
    assert html.count("What the policy gets") == html.count("Attention:") == html.count("Sensitivity:") == 2
    assert "What the policy gets · left/wrist" in html


def test_files_hold_the_numbers_and_the_pictures(tmp_path, metrics):
    write_run(tmp_path, metrics)
    written = json.loads((tmp_path / "evaluation/open_loop.json").read_text())
    assert {name: written[name] for name in metrics} == metrics
    shown = written["looks"]
    assert (shown["episode"], shown["frames"]) == (5, [0, 3, 6]) and list(shown["cameras"]) == ["top", "left/wrist"]
    files = [file for kinds in shown["cameras"].values() for files in kinds.values() for file in files]
    assert {path.name for path in (tmp_path / "evaluation/open_loop").iterdir()} == set(files) and len(files) == 18
    image = Image.open(tmp_path / "evaluation/open_loop" / shown["cameras"]["left/wrist"]["image"][2])
    np.testing.assert_array_equal(np.asarray(image), make_looks()[2].images[1])


def test_a_trunk_without_attention(tmp_path, metrics):
    html = write_run(tmp_path, metrics, attention=False)
    assert html.count("Sensitivity:") == 2 and "Attention:" not in html


def test_many_joints_are_summarised(tmp_path, metrics):
    """Twelve are drawn, the table has all, and one that stands still is counted."""
    names = [f"joint {number}" for number in range(20)]
    joints = {name: {"std": 1.0, "hold": "last action", "predicted": "absolute"} for name in names}
    for found in metrics["errors"].values():
        found["by_joint"]["raw"] = {name: 0.1 * number for number, name in enumerate(names)}
        found["by_joint"]["std"] = {**found["by_joint"]["raw"], "joint 7": None}
    html = write_run(tmp_path, metrics | {"joints": joints})
    assert "the 12 largest of 19 that move, of 20" in html and "The 2 of 20 joints that vary most" in html
    by_joint = drawings(html)[3]
    assert [text for text in texts(by_joint) if text.startswith("joint")] == names[::-1][:12]
    assert all(f"<td>{name}</td>" in html for name in names)
    assert '<b style="color: var(--green)">Hold</b>: the last recorded action.' in html


def test_steps_and_joints_without_an_error_are_left_out(tmp_path, metrics):
    for found in metrics["errors"].values():
        found["by_joint"]["std"] = dict.fromkeys(found["by_joint"]["std"])  # nothing moves in the training split
        found["by_step"]["std"][2:] = [None, None]
    html = write_run(tmp_path, metrics)
    assert "no joint moves" in html
    assert {"policy", "mean action"} <= set(texts(drawings(html)[2]))  # at the ends of their lines, the second step


def test_a_run_without_the_file_has_no_such_section(tmp_path):
    assert read_open_loop(tmp_path) == {}
    (tmp_path / "metrics.csv").write_text(LOG)
    (tmp_path / "config.yaml").write_text("env:\n  id: null\n")
    assert "Where the policy looks" not in write_report(tmp_path).read_text()
