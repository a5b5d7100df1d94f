import base64
import json
import re

import pytest

from vla_mini.evaluation.evaluate import evaluate
from vla_mini.evaluation.report import read_curves, write_report
from vla_mini.pages.plots import Curve

LOG = """epoch,gradients/trunk,gradients/vision,learning_rate,seconds,selection/success_rate,step,train/loss,\
validation/loss
0,0.5,0.25,0.001,1.5,,0,2.0,
0,,,,,0.25,9,,1.5
1,0.4,nan,0.002,3.0,,10,1.0,
1,,,,,0.75,19,,0.5
"""


def test_report_is_whole_and_fetches_nothing(tmp_path, toy_pick, expert):
    metrics = evaluate(expert(), toy_pick, episodes=4, output=tmp_path / "evaluation")
    (tmp_path / "metrics.csv").write_text(LOG)
    (tmp_path / "config.yaml").write_text("vision:\n  _target_: vla_mini.vision.conv.ConvVision\nname: <b>&\n")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    for gif in (tmp_path / "evaluation" / "videos").glob("*.gif"):
        assert base64.b64encode(gif.read_bytes()).decode() in html
    assert f"{100 * metrics['success_rate']:.1f}<small> % success" in html
    assert html.count("<svg") == 4
    for words in ("held out pairs", "nothing said", "another object named", "vla_mini.vision.conv.ConvVision"):
        assert words in html
    assert "name: &lt;b&gt;&amp;" in html
    for entry in json.loads((tmp_path / "evaluation" / "videos" / "index.json").read_text()):
        assert entry["instruction"] in html


def test_report_of_a_run_without_anything(tmp_path):
    html = write_report(tmp_path).read_text()
    assert "has not been evaluated" in html
    assert "<svg" not in html


def test_report_of_an_environment_from_elsewhere(tmp_path, reach, reach_policy):
    evaluate(reach_policy(), reach, episodes=3, output=tmp_path / "evaluation")
    html = write_report(tmp_path).read_text()
    assert "Grounding" not in html
    assert "go to the goal" in html


def test_writing_again_replaces_the_report(tmp_path):
    first = write_report(tmp_path).read_text()
    (tmp_path / "metrics.csv").write_text(LOG)
    assert write_report(tmp_path).read_text() != first
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "report.html"}


def test_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_curves_leave_out_empty_cells_and_what_is_no_number(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves["train/loss"] == Curve((1, 11), (2.0, 1.0))
    assert curves["validation/loss"] == Curve((10, 20), (1.5, 0.5))
    assert curves["gradients/vision"] == Curve((1,), (0.25,))
    assert read_curves(tmp_path / "missing.csv") == {}
