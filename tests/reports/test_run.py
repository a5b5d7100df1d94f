import base64

import pytest

from tests.reach import REACH
from tests.reports.helpers import check_self_contained, drawings, texts
from tests.reports.test_videos import result
from vla_mini.envs import get_spec
from vla_mini.evaluation.metrics import summarize
from vla_mini.reports.run import write_report
from vla_mini.reports.videos import write_videos
from vla_mini.utils.files import write_json

LOG = """epoch,gradients/trunk,gradients/trunk/zeros,gradients/total,learning_rate,seconds,selection/success_rate,\
selection/wrong_object_rate,step,train/loss,train/keyframe,validation/loss
0,0.5,0.1,0.5,0.001,1.5,,,0,2.0,1.0,
0,,,,,,0.25,0.0,9,,,1.5
1,0.4,0.1,0.4,0.002,3.0,,,10,1.0,0.5,
1,,,,,,0.75,0.0,19,,,0.5
"""
CONFIG = "env:\n  id: vla_mini/ToyPick-v0\nname: <b>&\n"
TOY_PICK = "vla_mini/ToyPick-v0"


def write_evaluation(folder, env_id: str, *, checks=(), **changes) -> dict:
    """Two successes of three episodes in each split and check: metrics.json and videos, as after an evaluation."""
    spec = get_spec(env_id)
    changes |= {"task": next(iter(spec.tasks), None)}
    results = [result(episode=number, success=number > 0, original_object=True, chance=0.5, **changes) for number in range(3)]
    splits = dict.fromkeys(spec.splits, results)
    metrics = summarize(splits, dict.fromkeys(checks, results), spec, seed=0, seconds=1.0)
    (folder / "evaluation").mkdir()
    write_json(folder / "evaluation" / "metrics.json", metrics)
    write_videos(folder / "evaluation" / "videos", splits, rates=spec.rates)
    return metrics


def test_report_is_complete_and_self_contained(tmp_path):
    write_evaluation(tmp_path, TOY_PICK, checks=("swapped", "blank"))
    (tmp_path / "metrics.csv").write_text(LOG)
    (tmp_path / "config.yaml").write_text(CONFIG)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    check_self_contained(html)
    for gif in (tmp_path / "evaluation" / "videos").glob("*.gif"):
        assert base64.b64encode(gif.read_bytes()).decode() in html
    assert "66.7<small> % success" in html and "name: &lt;b&gt;&amp;" in html
    spec = get_spec(TOY_PICK)
    for words in ("held out pairs", "two words: success 66.7 % of 3", "by chance 50.0 %", "pick up the red cube", "torch"):
        assert words in html
    assert all(explanation in html for explanation in (*spec.splits.values(), *spec.checks.values()))
    loss, success, gradients, rate = (texts(drawing) for drawing in drawings(html))
    assert {"train", "validation", "keyframe"} <= set(loss) and {"success", "wrong object"} <= set(success)
    assert "best 75.0 % at step 20" in html
    assert "total" not in gradients and "optimizer step" in rate


def test_report_of_a_run_without_anything(tmp_path):
    html = write_report(tmp_path).read_text()
    assert "has not been evaluated" in html and "<svg" not in html


def test_report_without_an_environment_shows_the_validation_loss(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    (tmp_path / "config.yaml").write_text("env:\n  id: null\n")
    html = write_report(tmp_path).read_text()
    assert "0.5<small> validation loss" in html and "<dt>at step</dt><dd>20</dd>" in html
    assert "Grounding" not in html and len(drawings(html)) == 4


def test_report_of_another_environment_shows_its_rates_and_tasks(tmp_path):
    write_evaluation(tmp_path, REACH, instruction="go to the left", overshot=True, far=True)
    html = write_report(tmp_path).read_text()
    assert "Tasks" in html and "<b>left</b>go to the left" in html
    assert "overshot 100.0 %" in html and "far: success 66.7 % of 3" in html
    assert "Grounding" not in html and "wrong object" not in html


def test_report_of_an_environment_that_is_not_installed(tmp_path):
    metrics = write_evaluation(tmp_path, TOY_PICK)
    write_json(tmp_path / "evaluation" / "metrics.json", metrics | {"env": "elsewhere/Gone-v0"})
    assert "elsewhere/Gone-v0" in write_report(tmp_path).read_text()


def test_writing_again_replaces_the_report(tmp_path):
    first = write_report(tmp_path).read_text()
    (tmp_path / "metrics.csv").write_text(LOG)
    assert write_report(tmp_path).read_text() != first
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "report.html"}


def test_refuses_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")
