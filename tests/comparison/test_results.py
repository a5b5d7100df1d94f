"""compare.py end to end on two tiny runs and one that fails: its figures are those in the runs' own files."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.factory import command
from vla_mini import Policy
from vla_mini.comparison.results import pool

VARIANTS = {
    "plain": "action=regression",
    "flow": "action=flow action.hidden=64 action.num_steps=2 optimizer.lr=1e-3",
    "diverging": "optimizer=sgd optimizer.lr=1e38 trainer.gradient_clip_val=null guard.patience=1",
}


def compare(*arguments: str, variants=tuple(VARIANTS)) -> int:
    named = [f"variants.{name}={VARIANTS[name]}" for name in variants]
    budget = ["seeds=[0]", "budget.steps=4", "budget.selections=2"]
    return command("compare", "experiment=toy_pick_smoke", "execute=8", *named, *budget, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory in which three variants were compared, one of which failed."""
    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert compare("output=first") == 1
    return folder


@pytest.fixture(autouse=True)
def working_directory(request, monkeypatch):
    if "folder" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("folder"))


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return json.loads((folder / "first/comparison.json").read_text())


def test_the_results_are_those_of_the_runs(results):
    for variant in ("plain", "flow"):
        found = results["variants"][variant]
        (run,) = found["runs"]
        folder = Path(run["folder"])
        metrics = json.loads((folder / "evaluation/metrics.json").read_text())
        assert run["evaluation"] == metrics
        for split, rates in metrics["splits"].items():
            assert found["splits"][split] == {key: value for key, value in rates.items() if key != "two_words"}
        assert all(found["grounding"][check].items() <= rates.items() for check, rates in metrics["grounding"].items())
        policy = Policy.from_pretrained(folder / "policy")
        assert found["parameters"] == sum(parameter.numel() for parameter in policy.parameters())
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        columns = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
        assert [value for _, _, value in run["curves"]["loss"]] == columns["train/loss"] and len(columns["train/loss"]) == 4
        assert [step for step, _, _ in run["curves"]["success"]] == [2, 4]  # budget.selections
        assert found["samples_per_second"] == columns["samples_per_second"][-1]
        success_seconds = columns["selection/seconds"]
        assert success_seconds == sorted(success_seconds)
        assert found["training_seconds"] == max(*success_seconds, *columns["seconds"])
        assert 0 < found["act_milliseconds"] < 1000
    assert results["variants"]["plain"]["runs"][0]["folder"].startswith("runs/comparison/plain-")
    assert results["budget"]["steps"] == 4 and results["versions"]["torch"] and results["machine"]["cores"] >= 1


def test_a_failed_variant_is_reported_and_the_others_are_compared(results, folder):
    found = results["variants"]["diverging"]
    assert found["runs"] == [] and "not finite" in found["failed"][0]["reason"]
    for name in ("comparison.md", "comparison.html"):
        assert "diverging, seed 0: failed: " in (folder / "first" / name).read_text()


def test_finished_runs_are_not_repeated(results, folder, capsys):
    folders = [Path(results["variants"][variant]["runs"][0]["folder"]) for variant in ("plain", "flow")]
    before = {path: path.stat().st_mtime_ns for run in folders for path in run.rglob("*")}
    assert compare("output=second", variants=["plain", "flow"]) == 0
    assert {path: path.stat().st_mtime_ns for run in folders for path in run.rglob("*")} == before
    again = json.loads((folder / "second/comparison.json").read_text())["variants"]
    assert all(again[variant]["runs"] == results["variants"][variant]["runs"] for variant in ("plain", "flow"))
    assert "plain, seed 0: finished before" in (out := capsys.readouterr().out) and "| flow " in out


def test_the_files_are_self_contained(folder, results):
    names = {"comparison.html", "comparison.json", "comparison.md", "comparison.svg"}
    assert {path.name for path in (folder / "first").iterdir()} == names
    page = (folder / "first/comparison.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    picture = (folder / "first/comparison.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg") and "var(" not in picture


def evaluation(episodes: int, success: float) -> dict:
    """What metrics.json holds of a run, as far as it is pooled."""
    split = {"episodes": episodes, "success_rate": success, "success_ci95": [0, 1], "wrong_object_rate": 0.1}
    check = {"episodes": episodes, "success_rate": success, "original_object_rate": 0.25}
    return {"splits": {"seen": split | {"two_words": {"episodes": 1, "success_rate": 1.0}}}, "grounding": {"swapped": check}}


def test_seeds_are_pooled_by_episode():
    speeds = [{"training_seconds": seconds, "samples_per_second": None, "seconds_to_90": None} for seconds in (10.0, 11.0)]
    evaluations = [evaluation(200, 0.99), evaluation(100, 0.9)]
    together = pool([{"evaluation": each} | speed for each, speed in zip(evaluations, speeds, strict=True)])
    seen = together["splits"]["seen"]
    assert (seen["episodes"], seen["success_rate"]) == (300, pytest.approx(288 / 300))
    z, p, n = 1.959964, 288 / 300, 300  # Wilson 1927, written out
    centre, margin = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert seen["success_ci95"] == pytest.approx([(centre - margin) / (1 + z**2 / n), (centre + margin) / (1 + z**2 / n)], 1e-6)
    assert seen["wrong_object_rate"] == pytest.approx(0.1) and "two_words" not in seen
    assert together["grounding"]["swapped"]["success_rate"] == pytest.approx(288 / 300)
    assert (together["training_seconds"], together["samples_per_second"]) == (10.5, None)
    assert pool([]) == {}
