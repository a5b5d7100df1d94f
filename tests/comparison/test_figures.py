"""compare.py end to end on two tiny runs and one that fails: its figures are those of the runs' own files."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.factory import command
from vla_mini import Policy
from vla_mini.comparison.figures import pooled
from vla_mini.pages.comparison import cells, comparison_markdown, comparison_page, comparison_picture, comparison_table

VARIANTS = {
    "plain": "action=regression",
    "flow": "action=flow optimizer.lr=1e-3",
    "wild": "optimizer=sgd optimizer.lr=1e38 trainer.gradient_clip_val=null guard.patience=1",
}


def compare(*arguments: str, variants=tuple(VARIANTS)) -> int:
    named = [f"variants.{name}={VARIANTS[name]}" for name in variants]
    budget = ["seeds=[0]", "budget.steps=4", "budget.selections=2"]
    return command("compare", "experiment=toy_pick_smoke", *named, *budget, *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory in which three variants were compared, one of which could not be trained."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert compare("output=first") == 1
    return place


@pytest.fixture(autouse=True)
def here(request, monkeypatch):
    if "place" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("place"))


@pytest.fixture(scope="module")
def results(place) -> dict:
    return json.loads((place / "first/comparison.json").read_text())


def test_the_figures_are_those_of_the_runs(results):
    for variant in ("plain", "flow"):
        figures = results["variants"][variant]
        (run,) = figures["runs"]
        folder = Path(run["folder"])
        metrics = json.loads((folder / "evaluation/metrics.json").read_text())
        assert run["evaluation"] == metrics
        for split, rates in metrics["splits"].items():
            assert figures["splits"][split] == {key: value for key, value in rates.items() if key != "two_words"}
        assert figures["grounding"] == metrics["grounding"]
        policy = Policy.from_pretrained(folder / "policy")
        assert figures["parameters"] == sum(parameter.numel() for parameter in policy.parameters())
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        assert [value for _, _, value in run["curves"]["loss"]] == losses and len(losses) == 4
        assert [step for step, _, _ in run["curves"]["success"]] == [2, 4]  # budget.selections
        assert figures["samples_per_second"] == float(
            [row["samples_per_second"] for row in rows if row["samples_per_second"]][-1]
        )
        played = [float(row["selection/seconds"]) for row in rows if row["selection/seconds"]]
        trained = [float(row["seconds"]) for row in rows if row["seconds"]]
        assert played == sorted(played) and figures["training_seconds"] == max(*played, *trained)
        assert 0 < figures["act_milliseconds"] < 1000
    assert results["variants"]["plain"]["runs"][0]["folder"].startswith("runs/comparison/plain-")


def test_a_failed_variant_is_reported_and_the_others_are_compared(results, place):
    figures = results["variants"]["wild"]
    assert figures["runs"] == [] and "not finite" in figures["failed"][0]["reason"]
    rows = {row[0]: row[1:] for row in cells(results, intervals=True)}
    assert rows["wild"][0] == "failed" and set(rows["wild"][1:]) == {"–"} and rows["plain"][0] == "0.0 % (0.0–65.8)"
    for name in ("comparison.md", "comparison.html"):
        assert "wild, seed 0: failed: " in (place / "first" / name).read_text()


def test_finished_runs_are_found_again(results, place, capsys):
    folders = [Path(results["variants"][variant]["runs"][0]["folder"]) for variant in ("plain", "flow")]
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    assert compare("output=second", variants=["plain", "flow"]) == 0
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == before
    again = json.loads((place / "second/comparison.json").read_text())["variants"]
    assert all(again[variant]["runs"] == results["variants"][variant]["runs"] for variant in ("plain", "flow"))
    assert "plain, seed 0: finished before" in (out := capsys.readouterr().out) and "| flow " in out


def test_the_files_stand_alone(place, results):
    names = {"comparison.html", "comparison.json", "comparison.md", "comparison.svg"}
    assert {path.name for path in (place / "first").iterdir()} == names
    page = (place / "first/comparison.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    picture = ElementTree.fromstring((place / "first/comparison.svg").read_text())
    words = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"plain", "flow", "optimizer step", "second of training", "Loss", "Success"} <= words
    assert "var(" not in (place / "first/comparison.svg").read_text()


# ---- pooling and the table, by hand-made figures


def evaluation(episodes: int, success: float, **splits: float) -> dict:
    rates = {"episodes": episodes, "success_rate": success, "success_ci95": [0, 1], "wrong_object_rate": 0.1}
    check = {"episodes": episodes, "success_rate": success, "original_object_rate": 0.25, "chance_rate": 0.3}
    both = {"two_words": {"episodes": 1, "success_rate": 1.0}}
    named = {"seen": rates | both} | {name: rates | {"success_rate": rate} for name, rate in splits.items()}
    return {"episodes": episodes, "splits": named, "grounding": {"swapped": check, "blank": check}}


def run(seed: int, evaluation: dict, *, seconds_to_90: float | None = None) -> dict:
    curves = {"loss": [[20.0, 1.5, 0.5]], "success": [[20.0, 1.5, 0.5]]}
    speed = {"training_seconds": 10.0 + seed, "samples_per_second": 100.0, "seconds_to_90": seconds_to_90}
    return {"seed": seed, "folder": "runs/x", "evaluation": evaluation, "curves": curves} | speed


def table_of(*runs: dict, failed=()) -> dict:
    figures = pooled(runs) | {"act_milliseconds": 1.25, "parameters": 1234567, "arguments": ["a=b"], "steps_per_second": None}
    variants = {"one": figures | {"runs": list(runs), "failed": list(failed)}}
    budget = {"steps": 400, "seconds": None}
    about = {
        "name": "study",
        "question": None,
        "seeds": [0, 1],
        "machine": {"processor": "abacus", "cores": 1, "accelerator": None},
        "versions": "",
        "budget": budget,
    }
    return about | {"variants": variants}


def test_seeds_are_pooled_episode_by_episode():
    together = pooled([run(0, evaluation(200, 0.99)), run(1, evaluation(100, 0.9))])
    seen = together["splits"]["seen"]
    assert (seen["episodes"], seen["success_rate"]) == (300, pytest.approx(288 / 300))
    z, p, n = 1.959964, 288 / 300, 300  # Wilson 1927, written out
    centre, margin = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert seen["success_ci95"] == pytest.approx([(centre - margin) / (1 + z**2 / n), (centre + margin) / (1 + z**2 / n)], 1e-6)
    assert seen["wrong_object_rate"] == pytest.approx(0.1)
    assert together["grounding"]["swapped"]["success_rate"] == pytest.approx(288 / 300)
    assert together["training_seconds"] == 10.5


def test_the_table_says_what_was_found():
    runs = (run(0, evaluation(200, 1.0, synonyms=0.5), seconds_to_90=8.0), run(1, evaluation(200, 0.9, synonyms=0.5)))
    results = table_of(*runs, failed=[{"seed": 2, "reason": "disk | full"}])
    row = dict(zip(*cells(results, intervals=True), strict=True))
    assert row[""] == "one (2 of 3 runs)" and row["seen"] == "95.0 % (92.4–96.7)"
    assert row["synonyms"] == "50.0 % (45.1–54.9)"  # a split that nothing here knows by name
    assert (row["wrong object"], row["swapped"], row["blank"]) == ("10.0 %", "95.0 %", "25.0 %")
    assert (row["parameters"], row["act"], row["training"]) == ("1,234,567", "1.2 ms", "10 s")
    assert row["to 90 %"] == "8.0 s (1 of 2)"
    lines = comparison_table(results).splitlines()
    assert (
        len(lines) == 3 and len({len(line) for line in lines}) == 1 and all(line.count("|") == len(row) + 1 for line in lines)
    )
    assert (
        "disk | full" in (page := comparison_page(results, explanations={"synonyms": "other words"})) and "Other words" in page
    )


def test_a_comparison_of_failures_says_so():
    results = table_of(failed=[{"seed": 0, "reason": "disk full"}])
    assert cells(results, intervals=True)[1][:2] == ("one", "failed")
    assert comparison_picture(results) is None and "comparison.svg" not in comparison_markdown(results)
    assert "disk full" in comparison_markdown(results) and "No run finished" in comparison_page(results, explanations={})


def test_runs_too_short_for_a_figure_have_none():
    bare = run(0, evaluation(2, 0.0)) | {
        "training_seconds": None,
        "samples_per_second": None,
        "curves": {"loss": [], "success": []},
    }
    row = dict(zip(*cells(table_of(bare), intervals=True), strict=True))
    assert (row["samples/s"], row["to 90 %"], row["training"]) == ("–", "–", "–")
    assert (
        "Loss"
        not in comparison_page(table_of(bare), explanations={})
        .partition("Where it comes from")[0]
        .partition("Training</h2>")[2]
    )
