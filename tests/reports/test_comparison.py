"""The table, the page and the picture of a comparison, from results made by hand."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.reports.helpers import check_self_contained, drawings, texts
from vla_mini.comparison.results import pool
from vla_mini.reports.comparison import comparison_table, table_rows, write_comparison

FAILED = {"seed": 2, "reason": "disk | full"}


def evaluation(episodes: int, success: float, **splits: float) -> dict:
    rates = {"episodes": episodes, "success_rate": success, "success_ci95": [0, 1], "wrong_object_rate": 0.1}
    check = {"episodes": episodes, "success_rate": 0.25, "original_object_rate": 0.25, "chance_rate": 0.3}
    subset = {"two_words": {"episodes": 1, "success_rate": 1.0}}
    named = {"seen": rates | subset} | {name: rates | {"success_rate": rate} for name, rate in splits.items()}
    return {
        "env": "vla_mini/ToyPick-v0",
        "episodes": episodes,
        "splits": named,
        "grounding": {"swapped": check, "blank": check},
    }


def run(seed: int, evaluation: dict, *, seconds_to_90: float | None = None) -> dict:
    curves = {"loss": [[20.0, 1.5, 0.5], [40.0, 3.0, 0.25]], "success": [[20.0, 1.5, 0.5]]}
    speed = {"training_seconds": 10.0 + seed, "samples_per_second": 1234.0, "seconds_to_90": seconds_to_90}
    return {"seed": seed, "folder": f"runs/x-{seed}", "evaluation": evaluation, "curves": curves} | speed


def results_of(*runs: dict, failed=()) -> dict:
    figures = pool(runs) | {"act_milliseconds": 1.25, "parameters": 1234567, "arguments": ["a=b"], "steps_per_second": None}
    return {
        "name": "study",
        "question": "Which is <best>?",
        "seeds": [0, 1],
        "machine": {"processor": "abacus", "cores": 1, "gpus": []},
        "versions": {"torch": "2.0"},
        "budget": {"steps": 400, "seconds": None},
        "variants": {"one": figures | {"runs": list(runs), "failed": list(failed)}},
    }


RUNS = (run(0, evaluation(200, 1.0, synonyms=0.5), seconds_to_90=8.0), run(1, evaluation(200, 0.9, synonyms=0.5)))


def test_the_table_holds_the_figures():
    results = results_of(*RUNS, failed=[FAILED])
    row = dict(zip(*table_rows(results, intervals=True), strict=True))
    assert row[""] == "one (2 of 3 runs)" and row["seen"] == "95.0 % (92.4–96.7)"
    assert row["synonyms"] == "50.0 % (45.1–54.9)"
    assert (row["wrong object"], row["swapped"], row["blank"]) == ("10.0 %", "25.0 %", "25.0 %")
    assert (row["parameters"], row["samples/s"], row["act"], row["training"]) == ("1,234,567", "1,234", "1.2 ms", "10 s")
    assert row["to 90 %"] == "8.0 s (1 of 2)"
    lines = comparison_table(results).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(row) + 1 for line in lines)


def test_the_files_stand_alone(tmp_path):
    results = results_of(*RUNS, failed=[FAILED])
    assert write_comparison(tmp_path, results) == tmp_path / "comparison.html"
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    check_self_contained(html)
    assert "95.0<small> % success" in html and "Which is &lt;best&gt;?" in html and html.count("<svg") == 4
    for words in ("disk | full", "Colour, shape and verb in words", "one: a=b", "runs/x-1", "2.0"):
        assert words in html
    picture = ElementTree.fromstring((tmp_path / "comparison.svg").read_text())
    assert {"optimizer step", "second of training", "Loss", "Success"} <= set(texts(picture))
    markdown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "(comparison.svg)" in markdown and "- one, seed 2: failed: disk | full" in markdown
    assert "Swapped: the same scenes" in markdown and "400 optimizer steps; seeds 0, 1, 200 scenes" in markdown


def test_a_comparison_of_failures_says_so(tmp_path):
    results = results_of(failed=[FAILED])
    assert table_rows(results, intervals=True)[1] == ["one (0 of 1 runs)", *["–"] * 5]
    html = write_comparison(tmp_path, results).read_text()
    assert "No run finished" in html and "disk | full" in html and not drawings(html)
    assert not (tmp_path / "comparison.svg").exists() and "comparison.svg" not in (tmp_path / "comparison.md").read_text()


def test_a_missing_figure_is_a_dash(tmp_path):
    bare = RUNS[0] | {
        "training_seconds": None,
        "samples_per_second": None,
        "seconds_to_90": None,
        "curves": {"loss": [], "success": []},
    }
    results = results_of(bare)
    other = results["variants"]["one"] | {"splits": {"seen": results["variants"]["one"]["splits"]["seen"]}}
    results["variants"]["other"] = other
    names, one, other = table_rows(results, intervals=True)
    assert [one[names.index(name)] for name in ("samples/s", "to 90 %", "training")] == ["–"] * 3
    assert other[names.index("synonyms")] == "–"
    assert not drawings(write_comparison(tmp_path, results).read_text())


@pytest.mark.parametrize("missing", ["wrong_object_rate", "grounding"])
def test_an_environment_may_have_fewer_rates_and_no_checks(missing, tmp_path):
    bare = json.loads(json.dumps(RUNS[0]))
    if missing == "grounding":
        bare["evaluation"]["grounding"] = {}
    else:
        for split in bare["evaluation"]["splits"].values():
            del split[missing]
    results = results_of(bare)
    (names, _) = table_rows(results, intervals=False)
    assert ("wrong object" in names) == (missing == "grounding") and ("blank" in names) == (missing != "grounding")
    assert "95" in write_comparison(tmp_path, results).read_text()
